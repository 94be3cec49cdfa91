"""Paths: the velocity is the derivative of the trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.paths import Path, per_sample, ve

TRIG = Path(a=jnp.cos, b=jnp.sin, da=lambda t: -jnp.sin(t), db=jnp.cos)
LINEAR = Path(a=lambda t: 1 - t, b=lambda t: t, da=lambda t: -jnp.ones_like(t), db=jnp.ones_like)


def batch(seed=0, shape=(5, 3, 2)):
    x0, noise = jax.random.normal(jax.random.key(seed), (2, *shape))
    return x0, noise, jnp.linspace(0.1, 0.9, shape[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", [ve, TRIG, LINEAR], ids=["ve", "trig", "linear"])
def test_velocity_is_the_time_derivative_of_the_trajectory(path):
    x0, noise, t = batch()
    x_t, derivative = jax.jvp(lambda t: path.add_noise(x0, noise, t), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(path.velocity(x_t, x0, t), derivative, rtol=1e-12, atol=1e-13)


def test_ve_is_the_papers_formula():
    x0, noise, t = batch()
    column = np.asarray(t)[:, None, None]
    np.testing.assert_allclose(ve.add_noise(x0, noise, t), x0 + column * noise, rtol=1e-6)
    np.testing.assert_allclose(ve.velocity(x0, noise, t), (x0 - noise) / column, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 5, 5, 3), (4, 4)])
def test_a_time_for_each_sample_and_one_for_all(shape):
    x0, noise, t = batch(shape=shape)
    rows = [ve.add_noise(x0[i : i + 1], noise[i : i + 1], float(t[i])) for i in range(len(t))]
    np.testing.assert_allclose(ve.add_noise(x0, noise, t), jnp.concatenate(rows), rtol=1e-6)
    assert per_sample(t, x0).shape == (4,) + (1,) * (len(shape) - 1)
    assert per_sample(0.5, x0).shape == (1,) * len(shape)
