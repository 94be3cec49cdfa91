"""One-step ODE methods, and a whole trajectory by them in either direction of time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.core.paths import Path, per_sample
from cmjax.core.typing import BoundDenoiser, OdeStep, Samples, Time, Velocity


def ode_velocity(denoise: BoundDenoiser, path: Path) -> Velocity:
    """(x, t) -> dx/dt of the probability-flow ODE whose denoiser is `denoise`.   [Song et al. 2021, eq. 13]"""
    return lambda x, t: path.velocity(x, denoise(x, t), t)


def euler_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·v(x, t): first order, one evaluation. t, r: scalars or (b,)."""
    return x + per_sample(jnp.asarray(r) - t, x) * velocity(x, t)


def ddim_step(velocity: Velocity, x: Samples, t: Time, r: Time, *, path: Path) -> Samples:
    """`Path.ddim` with the denoised data that the velocity tells: Euler's step on the `ve` and linear paths."""
    return path.ddim(x, path.denoised(x, velocity(x, t), t), t, r)


def heun_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·(v(x, t) + v(x_euler, r))/2: second order, two evaluations.   [Karras et al. 2022, alg. 1]"""
    gap = per_sample(jnp.asarray(r) - t, x)
    slope = velocity(x, t)
    return x + gap * (slope + velocity(x + gap * slope, r)) / 2


def halfway(t: Time, r: Time, rho: float) -> Array:
    """The time halfway between t and r in t^(1/rho)."""
    return ((jnp.asarray(t) ** (1 / rho) + jnp.asarray(r) ** (1 / rho)) / 2) ** rho


def midpoint_step(velocity: Velocity, x: Samples, t: Time, r: Time, *, rho: float = 1.0) -> Samples:
    """x + (r − t)·v(x_m, m) with x_m an Euler step to the middle m: second order, two evaluations.

    m lies halfway between t and r in t^(1/rho). `rho=3` is the released OpenAI code's `sample_dpm`, a relative of
    DPM-Solver-2. Unlike Heun's it never evaluates at r, so that r may be 0.
    """
    middle = halfway(t, r, rho)
    return x + per_sample(jnp.asarray(r) - t, x) * velocity(euler_step(velocity, x, t, middle), middle)


def solve(velocity: Velocity, x: Samples, times: Float[Array, " n"], *, ode_step: OdeStep) -> Samples:
    """The state at times[-1] of the solution through x at times[0], one `ode_step` for each interval of times (n,)."""

    def advance(x, interval):
        return ode_step(velocity, x, *interval), None

    return jax.lax.scan(advance, x, (times[:-1], times[1:]))[0]
