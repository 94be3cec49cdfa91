"""The network of matrix products: by its definition, its waves, and its weight head."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.mlp import MLP

TINY = {"width": 6, "depth": 2, "frequencies": 4, "embedding_width": 5}
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def loud(module, shape):
    """Parameters without the zeros that would hide everything behind them."""
    return jax.tree.map(lambda leaf: 0.5 * normal(*leaf.shape), parameter_shapes(module, shape))


def waves(time, highest):
    time = np.float64(time)
    angles = time[:, None] * np.geomspace(0.25, highest, 4)[None]
    return np.concatenate([np.cos(angles), np.sin(angles), time[:, None]], axis=1)


def silu(h):
    return h / (1 + np.exp(-h))


@pytest.mark.parametrize("highest", [16.0, 4.0])
def test_outputs_by_definition(highest):
    module = MLP(**TINY, num_classes=3, max_frequency=highest, two_times=True, guided=True)
    params = loud(module, (2, 3))
    p = jax.tree.map(partial(np.asarray, dtype=np.float64), params)
    x, times = normal(2, 2, 3), {"c_noise": jnp.array([0.1, 1.5]), "c_noise_s": jnp.array([0.0, 0.9])}
    scale, label = jnp.array([1.0, 8.0]), jnp.array([2, -1])
    out = as_net(module)(params, x, **times, guidance=scale, label=label)

    def dense(name, h):
        return h @ p[name]["kernel"] + p[name]["bias"]

    e = dense("Dense_0", waves(times["c_noise"], highest)) + dense("time_s", waves(times["c_noise_s"], highest))
    e += dense("guidance", waves(np.arcsinh(scale) / 2, highest))
    e[0] += p["classes"]["kernel"][2]
    e, h = silu(e), dense("Dense_1", np.float64(x).reshape(2, -1))
    for i in (2, 5):
        s, b = np.split(dense(f"Dense_{i}", e), 2, axis=1)
        inner = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6) * (1 + s) + b
        h = h + dense(f"Dense_{i + 2}", silu(dense(f"Dense_{i + 1}", inner)))
    np.testing.assert_allclose(out, np.reshape(dense("Dense_8", silu(h)), (2, 2, 3)), rtol=1e-4, atol=1e-4)


def test_gentle_waves_have_the_smaller_derivative():
    def steepness(highest):
        module = MLP(**TINY, max_frequency=highest)
        return jnp.abs(jax.jacfwd(module._waves)(jnp.linspace(0, 1.57, 50))).max()

    assert abs(steepness(4.0) - 4) < 0.05
    assert steepness(16.0) > 15


def test_weight_head_beside_the_same_network():
    module, x, c_noise = MLP(**TINY, weight_head=8), normal(2, 3), jnp.array([0.1, 1.5])
    params = init_params(module, jax.random.key(0), (3,))
    out, weight = as_net(module)(params, x, c_noise, return_weight=True)
    np.testing.assert_array_equal(weight, np.zeros(2))
    params["weight_head"]["linear"]["kernel"] = normal(8, 1)
    params |= loud(MLP(**TINY), (3,))
    out, weight = as_net(module)(params, x, c_noise, return_weight=True)
    assert weight.shape == (2,)
    assert jnp.abs(weight[0] - weight[1]) > 1e-3
    without = {name: leaf for name, leaf in params.items() if name != "weight_head"}
    np.testing.assert_array_equal(out, as_net(MLP(**TINY))(without, x, c_noise))
    np.testing.assert_array_equal(out, as_net(module)(params, x, c_noise))


def test_wrong_settings_and_inputs_are_named():
    x, c_noise = jnp.zeros((1, 3)), jnp.zeros(1)
    for fields, inputs, message in (
        ({}, {"label": jnp.zeros(1, int)}, "num_classes=0"),
        ({}, {"return_weight": True}, "weight_head=0"),
        ({"max_frequency": 0.25}, {}, "max_frequency=0.25 must be above"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(MLP(**TINY, **fields).init, **inputs), jax.random.key(0), x, c_noise)


class Scaled(nn.Module):
    """A network with a field that has no hash."""

    table: Any

    @nn.compact
    def __call__(self, x, c_noise):
        return nn.Dense(len(self.table))(x.reshape(len(x), -1)) * self.table[None]


def test_a_network_without_a_hash_has_shapes_and_parameters_too():
    module = Scaled(np.ones(3))
    with pytest.raises(TypeError, match="unhashable"):
        hash(module)
    shapes = parameter_shapes(module, (2, 2, 1))
    assert shapes["Dense_0"]["kernel"].shape == (4, 3)
    params = init_params(module, jax.random.key(0), (2, 2, 1))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    with pytest.raises(TypeError) as caught:
        parameter_shapes(Scaled(None), (2, 2, 1))
    assert caught.value.__context__ is None
