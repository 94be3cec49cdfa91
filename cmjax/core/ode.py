"""The probability-flow ODE: one-step methods, and whole trajectories in either direction of time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.core.paths import Path, as_time, flat, per_sample
from cmjax.core.typing import BoundDenoiser, OdeStep, Samples, Time, Velocity
from cmjax.ranges import AtLeastOne


def ode_velocity(denoise: BoundDenoiser, path: Path) -> Velocity:
    """(x, t) -> dx/dt of the probability-flow ODE whose denoiser is `denoise`.   [Song et al. 2021, eq. 13]"""
    return lambda x, t: path.velocity(x, denoise(x, t), t)


def euler_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·v(x, t): first order, one evaluation. t, r: scalars or (b,)."""
    return x + per_sample(jnp.asarray(r) - t, x) * velocity(x, t)


def ddim_step(velocity: Velocity, x: Samples, t: Time, r: Time, *, path: Path) -> Samples:
    """`Path.ddim` with D computed from the velocity; on the `ve` and linear paths it is an Euler step."""
    return path.ddim(x, path.denoised(x, velocity(x, t), t), t, r)


def heun_step(velocity: Velocity, x: Samples, t: Time, r: Time) -> Samples:
    """x + (r − t)·(v(x, t) + v(x_euler, r))/2: second order, two evaluations.   [Karras et al. 2022, alg. 1]"""
    gap = per_sample(jnp.asarray(r) - t, x)
    slope = velocity(x, t)
    return x + gap * (slope + velocity(x + gap * slope, r)) / 2


def halfway(t: Time, r: Time, rho: float) -> Array:
    """Gives the time halfway between t and r in t^(1/rho)."""
    return ((jnp.asarray(t) ** (1 / rho) + jnp.asarray(r) ** (1 / rho)) / 2) ** rho


def midpoint_step(velocity: Velocity, x: Samples, t: Time, r: Time, *, rho: AtLeastOne = 1.0) -> Samples:
    """x + (r − t)·v(x_m, m) with x_m an Euler step to the middle m: second order, two evaluations.

    m lies halfway between t and r in t^(1/rho). `rho=3` is the released OpenAI code's `sample_dpm`, a relative of
    DPM-Solver-2. Unlike Heun's step it never evaluates at r, so r may be 0.
    """
    middle = halfway(t, r, rho)
    return x + per_sample(jnp.asarray(r) - t, x) * velocity(euler_step(velocity, x, t, middle), middle)


def solve(velocity: Velocity, x: Samples, times: Float[Array, " n"], *, ode_step: OdeStep) -> Samples:
    """The state at times[-1] of the solution through x at times[0], one `ode_step` for each interval of times (n,)."""

    times = as_time(times, x)

    def advance(x, interval):
        # the state that the scan carries keeps its dtype, whatever the velocity's
        return ode_step(velocity, x, *interval).astype(times.dtype), None

    return jax.lax.scan(advance, x.astype(times.dtype), (times[:-1], times[1:]))[0].astype(x.dtype)


def solve_to_tolerance(
    velocity: Velocity,
    x: Samples,
    times: Float[Array, " n"],
    *,
    rtol: float,
    atol: float,
    max_steps: int = 4096,
) -> Samples:
    """The state at times[-1] of the solution through x at times[0], with as many steps as the tolerances need.

    Tsitouras' fifth-order Runge-Kutta method under a PI controller, by diffrax. All samples share their steps, and the
    sample with the largest error sets their size. So the other results depend on it, but by less than the tolerances.

    Args:   velocity: (x, t) -> dx/dt. times: the first and the last are used, in either order. rtol, atol: each
            sample's error of a step, as a root mean square, stays below atol + rtol·|x|.
    Raises: ValueError where a tolerance is negative or both are zero, ImportError where diffrax is not installed,
            RuntimeError (from diffrax) where max_steps are not enough.
    """
    if min(rtol, atol) < 0 or max(rtol, atol) == 0:
        raise ValueError(f"rtol and atol must be at least 0, and one of them above, got {rtol} and {atol}")
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("solving to a tolerance needs diffrax: pip install 'cmjax[ode]'") from error

    def largest_of_samples(scaled_error):
        return jnp.max(jnp.sqrt(jnp.mean(flat(scaled_error) ** 2, axis=1)))

    # a mild controller, at the edge of what diffrax's documentation recommends: p, i >= 0.2, 0.3 and p + i <= 0.7
    controller = diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4, norm=largest_of_samples)
    states = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: velocity(x, t)),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[-1],
        # diffrax then chooses the first step by the tolerances, too
        dt0=None,
        y0=x,
        stepsize_controller=controller,
        max_steps=max_steps,
    ).ys
    # diffrax saves the state at t1 alone
    return jnp.asarray(states)[-1]
