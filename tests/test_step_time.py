"""What the benchmark counts, and that its sections run."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import method_costs, net_time, step_time
from cmjax.nets.layers import convolve
from cmjax.nets.mlp import MLP


def test_operations_are_two_for_each_multiply_add():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert step_time.flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    assert step_time.flops(jax.jit(lambda a: (a @ b) + 1), a) == 2 * 3 * 4 * 5
    repeated = jax.vmap(lambda c: jax.lax.scan(lambda c, _: (c @ b[:, :4], None), c, length=7)[0])
    assert step_time.flops(repeated, a) == 7 * 2 * 3 * 4 * 4
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    forward = 2 * (2 * 8 * 8) * (3 * 3 * 3) * 5
    assert step_time.flops(lambda x, k: convolve(x, k, 1), x, kernel) == forward
    strided = jax.grad(lambda x: jax.lax.conv_general_dilated(x, kernel.transpose(3, 2, 0, 1), (2, 2), "SAME").sum())
    assert step_time.flops(strided, jnp.zeros((2, 3, 8, 8))) == pytest.approx(2 * forward / 4, rel=0.3)


def test_ratios_are_medians_of_both_clocks():
    above, below = np.array([[2.0, 4.0], [4.0, 4.0], [9.0, 8.0]]), np.full((3, 2), 2.0)
    assert step_time.ratio("r", above, below) == {"r": 2.0, "r_processor_time": 2.0}


def test_a_run_with_growing_scales_compiles_its_step_once():
    report = step_time.compilations(argparse.Namespace())
    assert report == {"num_scales": [2, 21], "of_the_train_step": 1, "during_the_run": []}


def test_a_network_is_measured_by_its_programs():
    report = net_time.measure(MLP(width=256, depth=1), batch=4, rounds=1)
    assert report["parameters"] > 2 * 32 * 32 * 3 * 256
    assert all(report[f"{name}_s"] > 0 for name in ("forward", "ct_step", "sampling_of_64"))
    assert report["ct_step_memory_gb"] * 1e9 > 4 * report["parameters"]


@pytest.mark.slow
def test_a_method_costs_more_memory_than_denoising():
    report = method_costs.measure(["lsd"], argparse.Namespace(net="mlp", batch=8, rounds=1))["lsd"]
    assert report["memory"] > 1
    assert report["time"] > 0
    assert not report["teacher"]
