"""One-step ODE methods and a whole trajectory by them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.core.paths import per_sample
from cmjax.core.typing import OdeStep, Samples, Time, Velocity


def euler_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·v(x, t): first order, one evaluation. t, r: scalars or (b,)."""
    return x + per_sample(jnp.asarray(r) - t, x) * velocity(x, t)


def heun_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·(v(x, t) + v(x_euler, r))/2: second order, two evaluations.   [Karras et al. 2022, alg. 1]"""
    gap = per_sample(jnp.asarray(r) - t, x)
    slope = velocity(x, t)
    return x + gap * (slope + velocity(x + gap * slope, r)) / 2


def solve(velocity: Velocity, x: Samples, times: Float[Array, " n"], *, ode_step: OdeStep) -> Samples:
    """The state at times[-1] of the solution through x at times[0], one `ode_step` for each interval of times (n,)."""

    def advance(x, interval):
        return ode_step(velocity, x, *interval), None

    return jax.lax.scan(advance, x, (times[:-1], times[1:]))[0]
