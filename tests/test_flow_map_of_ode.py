"""The example learns the flow of a pendulum, by the losses that learn images."""

import jax
import jax.numpy as jnp
import pytest

from cmjax import Batch, Model, Times, losses, preconditioning
from cmjax.core.distances import l2
from examples import flow_map_of_ode as example


def oscillated(x):
    """The velocity of x'' = −x."""
    return jnp.stack([x[:, 1], -x[:, 0]], axis=1)


def exact_mean_velocity(params, x, c_noise, *, key=None, **conditions):
    there = conditions["c_noise_s"][:, None]
    gap = jnp.where(there > 0, there, 1.0)
    moved = x * jnp.cos(gap) + oscillated(x) * jnp.sin(gap)
    return jnp.where(there > 0, (x - moved) / gap, -oscillated(x))


@pytest.mark.parametrize("name", ["lsd", "psd", "meanflow"])
def test_the_exact_flow_of_an_oscillator_has_no_loss(name):
    """A batch of states and their velocities is all that a loss needs; of other velocities or states it is not 0."""
    model = Model(exact_mean_velocity, example.STATES, preconditioning.linear_flow)
    x, t, s = jax.random.normal(jax.random.key(0), (8, 2)), jnp.linspace(0.5, 2.0, 8), jnp.linspace(0.1, 0.4, 8)
    wrong = Model(lambda *inputs, **named: 1.1 * exact_mean_velocity(*inputs, **named), model.path, model.scalings)
    batch = Batch(x, -oscillated(x), Times(t, (t + s) / 2, s))
    loss = getattr(losses, name)
    assert jnp.max(loss(model, None, None, batch, distance=l2)) < 1e-10
    assert jnp.min(loss(wrong, None, None, batch, distance=l2)) > 1e-5


@pytest.mark.slow
def test_a_short_training_brings_the_map_near_the_solution(tmp_path):
    before = example.main(["--steps=1"])
    after = example.main(["--steps=600", f"--out={tmp_path / 'x.png'}"])
    assert after["1·T"] < 0.2 < 0.4 < before["1·T"]
    assert (tmp_path / "x.png").stat().st_size > 10_000
