"""Solvers against the closed-form flow of Gaussian data."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.ode import euler_step, heun_step, solve
from cmjax.core.oracles import gaussian_denoiser, gaussian_flow_map
from cmjax.core.paths import ve

DATA = {"mean": 0.3, "variance": 0.25}


def velocity(x, t):
    return ve.velocity(x, gaussian_denoiser(x, t, **DATA), t)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("ode_step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_order_of_convergence(ode_step, order):
    x = jnp.linspace(-3.0, 3.0, 6)[:, None]
    exact = gaussian_flow_map(x, 2.0, 0.1, **DATA)
    sizes = np.array([64, 128, 256, 512])
    errors = [
        np.max(np.abs(solve(velocity, x, jnp.linspace(2.0, 0.1, n + 1), ode_step=ode_step) - exact)) for n in sizes
    ]
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.06)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("ode_step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_one_step_is_right_to_one_order_more(ode_step, order):
    x, gaps = jnp.array([[1.7]]), np.array([0.04, 0.02, 0.01])
    errors = [
        abs(float((ode_step(velocity, x, 1.0, 1 - h) - gaussian_flow_map(x, 1.0, 1 - h, **DATA))[0, 0])) for h in gaps
    ]
    assert np.polyfit(np.log(gaps), np.log(errors), 1)[0] == pytest.approx(order + 1, abs=0.06)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ode_step", [euler_step, heun_step])
def test_solve_is_the_loop(ode_step):
    x, times = jax.random.normal(jax.random.key(0), (3, 2, 2)), jnp.array([3.0, 1.0, 0.4, 0.1])
    looped = x
    for t, r in pairwise(times):
        looped = ode_step(velocity, looped, t, r)
    np.testing.assert_allclose(solve(velocity, x, times, ode_step=ode_step), looped, rtol=1e-13)
    compiled = jax.jit(partial(solve, velocity, ode_step=ode_step))(x, times)
    np.testing.assert_allclose(compiled, looped, rtol=1e-13)


@pytest.mark.parametrize("ode_step", [euler_step, heun_step])
def test_a_time_for_each_sample(ode_step):
    x, t, r = jax.random.normal(jax.random.key(0), (3, 2, 2)), jnp.array([2.0, 1.0, 0.5]), jnp.array([1.0, 0.9, 0.1])
    rows = [ode_step(velocity, x[i : i + 1], float(t[i]), float(r[i])) for i in range(3)]
    np.testing.assert_allclose(ode_step(velocity, x, t, r), jnp.concatenate(rows), rtol=1e-5)
