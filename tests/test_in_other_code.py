"""`sample_fn` inside other people's JAX code: under their transformations, and with their networks."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax import oracles, preconditioning

SHAPE = (4, 6)
CONSISTENCY = partial(preconditioning.consistency, sigma_data=0.5, t_min=0.002)


def exact(x, t):
    """The consistency function of Gaussian data."""
    return oracles.gaussian_flow_map(x, t, 0.002, mean=0.3, variance=0.04)


sample = partial(cmjax.sample_fn, exact, shape=SHAPE, times=(80.0, 0.8), t_min=0.002)


def test_under_jit_and_vmap_over_keys():
    keys = jax.random.split(jax.random.key(0), 5)
    batched = jax.jit(jax.vmap(sample))(keys)
    assert batched.shape == (5, *SHAPE)
    np.testing.assert_allclose(batched[3], sample(keys[3]), atol=1e-6)


def test_map_over_times():
    second = jnp.array([0.2, 0.8, 3.0])

    def at(time):
        times = jnp.stack([jnp.array(80.0), time])
        return cmjax.sample_fn(exact, jax.random.key(0), SHAPE, times=times, t_min=0.002)

    mapped = jax.jit(partial(jax.lax.map, at))(second)
    np.testing.assert_allclose(mapped[1], sample(jax.random.key(0)), atol=1e-6)


def test_gradients_through_it_find_the_noise_of_a_target():
    target = 0.3 + 0.2 * jnp.linspace(-1, 1, 6)[None]

    def distance(noise):
        return jnp.sum((exact(80.0 * noise, 80.0) - target) ** 2)

    @jax.jit
    def step(noise, _):
        return noise - 10.0 * jax.grad(distance)(noise), None

    noise = jax.lax.scan(step, jnp.zeros((1, 6)), length=100)[0]
    assert distance(noise) < 1e-6

    def mean_of_samples(shift):
        return jnp.mean(sample_with(shift, jax.random.key(0)))

    def sample_with(shift, key):
        return cmjax.sample_fn(lambda x, t: exact(x, t) + shift, key, SHAPE, times=(80.0, 0.8), t_min=0.002)

    slope = jax.grad(mean_of_samples)(0.1)
    estimate = (mean_of_samples(0.11) - mean_of_samples(0.09)) / 0.02
    np.testing.assert_allclose(slope, estimate, rtol=1e-2)


def test_an_nnx_module_as_the_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(7, 16, rngs=rngs), nnx.Linear(16, 6, rngs=rngs)

        def __call__(self, x, c_noise):
            return self.out(jax.nn.silu(self.hidden(jnp.concatenate([x, c_noise[:, None]], axis=1))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def net(params, x, c_noise, *, key=None):
        return nnx.merge(graph, params)(x, c_noise)

    check_network(net, state)


def test_an_equinox_module_as_the_network():
    equinox = pytest.importorskip("equinox")
    mlp = equinox.nn.MLP(7, 6, 16, 1, key=jax.random.key(0))
    params, static = equinox.partition(mlp, equinox.is_array)

    def net(params, x, c_noise, *, key=None):
        module = equinox.combine(params, static)
        return jax.vmap(module)(jnp.concatenate([x, c_noise[:, None]], axis=1))

    check_network(net, params)


def check_network(net, params):
    """It is sampled under jit, and its gradient is finite and not zero."""
    f = cmjax.Model(net, cmjax.paths.ve, CONSISTENCY)

    @jax.jit
    def mean_square(params, key):
        flow_map = partial(f, params)
        return jnp.mean(cmjax.sample_fn(flow_map, key, SHAPE, times=(80.0, 0.8), t_min=0.002) ** 2)

    value, gradient = jax.value_and_grad(mean_square)(params, jax.random.key(0))
    leaves = jax.tree.leaves(gradient)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 1e-6


SHARDED = """
    from functools import partial

    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    import cmjax
    from cmjax import oracles

    exact = lambda x, t: oracles.gaussian_flow_map(x, t, 0.002, mean=0.3, variance=0.04)
    keys = jax.random.split(jax.random.key(0), 16)

    def sample(keys):
        return cmjax.sample_fn(exact, keys, (len(keys), 6), times=(80.0, 0.8), t_min=0.002)

    alone = sample(keys)
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    named = jax.jit(sample, in_shardings=split, out_shardings=split)(keys)
    assert named.sharding.shard_shape(named.shape) == (2, 6)
    mapped = jax.jit(jax.shard_map(sample, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(keys)
    np.testing.assert_allclose(named, alone, atol=1e-6)
    np.testing.assert_allclose(mapped, alone, atol=1e-6)
    print("the same on 8 devices")
"""


def test_sharded_over_eight_devices_by_name_and_by_shard_map():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)], cwd=Path(__file__).parents[1], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same on 8 devices" in done.stdout
