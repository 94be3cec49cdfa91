"""From noise to data by a denoiser: the solvers of the probability-flow ODE and of its stochastic relatives.

All are functions (denoise, x, times, noises, *, path, to_zero) -> samples. They go from the state x at times[0] along
the descending `times`, and then, by one denoising evaluation, to time 0; `to_zero=False` leaves that evaluation out and
returns the state at times[-1]. Each solver has its own loop, which keeps what the solver remembers from step to step.
Solvers of the ODE draw no noise and ignore `noises`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.core.ode import (
    ddim_step,
    euler_step,
    heun_step,
    midpoint_step,
    ode_velocity,
    solve,
    solve_to_tolerance,
)
from cmjax.core.paths import Path
from cmjax.core.typing import BoundDenoiser, Integrator, Noises, OdeStep, Samples

Times = Float[Array, " n"]


def by_ode(
    denoise: BoundDenoiser,
    x: Samples,
    times: Times,
    noises: Noises,
    *,
    path: Path,
    integrate: Integrator,
    to_zero: bool = True,
) -> Samples:
    """The probability-flow ODE by any integrator, for example `partial(solve, ode_step=heun_step)`."""
    x = integrate(ode_velocity(denoise, path), x, times)
    return denoise(x, times[-1]) if to_zero else x


def euler(
    denoise: BoundDenoiser, x: Samples, times: Times, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """First order, N evaluations for N times; on the `ve` path this is DDIM.   [Karras et al. 2022, alg. 1]"""
    return by_ode(denoise, x, times, noises, path=path, integrate=_along(euler_step), to_zero=to_zero)


def ddim(
    denoise: BoundDenoiser, x: Samples, times: Times, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """First order, N evaluations; exact where D is constant along a trajectory.   [Song et al. 2021, DDIM, eq. 12]"""
    integrate = _along(partial(ddim_step, path=path))
    return by_ode(denoise, x, times, noises, path=path, integrate=integrate, to_zero=to_zero)


def heun(
    denoise: BoundDenoiser, x: Samples, times: Times, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """Second order, 2N − 1 evaluations: the last step, to 0, is Euler's.   [Karras et al. 2022, alg. 1]"""
    return by_ode(denoise, x, times, noises, path=path, integrate=_along(heun_step), to_zero=to_zero)


def midpoint(
    denoise: BoundDenoiser,
    x: Samples,
    times: Times,
    noises: Noises,
    *,
    path: Path,
    rho: float = 1.0,
    to_zero: bool = True,
) -> Samples:
    """Second order, 2N − 1 evaluations; `rho`, at least 1, places the middle, see `midpoint_step`."""
    if rho < 1:
        raise ValueError(f"rho must be at least 1, got {rho}")

    def step(velocity, x, t, r):
        return midpoint_step(velocity, x, t, r, rho=rho)

    return by_ode(denoise, x, times, noises, path=path, integrate=_along(step), to_zero=to_zero)


def _along(ode_step: OdeStep) -> Integrator:
    return lambda velocity, x, times: solve(velocity, x, times, ode_step=ode_step)


def tsit5(
    denoise: BoundDenoiser,
    x: Samples,
    times: Times,
    noises: Noises,
    *,
    path: Path,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    to_zero: bool = True,
) -> Samples:
    """As many steps as the tolerances ask for, see `solve_to_tolerance`; needs diffrax."""

    def integrate(velocity, x, times):
        return solve_to_tolerance(velocity, x, times, rtol=rtol, atol=atol)

    return by_ode(denoise, x, times, noises, path=path, integrate=integrate, to_zero=to_zero)


def dpmpp_2m(
    denoise: BoundDenoiser, x: Samples, times: Times, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """DPM-Solver++(2M): second order, N evaluations.   [Lu et al. 2022, DPM-Solver++, alg. 2]

    Steps of DDIM in which the denoised D_i is extrapolated to the middle of the step in λ = ln(a/b): with
    h_i = λ_{i+1} − λ_i, to D_i + h_i/(2·h_{i−1})·(D_i − D_{i−1}). The first step, which has no D_{i−1}, and the last,
    which is infinitely long, are of first order.
    """
    gaps = jnp.diff(jnp.log(path.a(times)) - jnp.log(path.b(times)))
    lookback = jnp.concatenate([jnp.zeros_like(gaps[:1]), gaps[1:] / (2 * gaps[:-1])])  # (n − 1,)

    def advance(carry, step):
        x, previous = carry
        t, r, factor = step
        denoised = denoise(x, t)
        return (path.ddim(x, denoised + factor * (denoised - previous), t, r), denoised), None

    (x, _), _ = jax.lax.scan(advance, (x, jnp.zeros_like(x)), (times[:-1], times[1:], lookback))
    return denoise(x, times[-1]) if to_zero else x


def churn(
    denoise: BoundDenoiser,
    x: Samples,
    times: Times,
    noises: Noises,
    *,
    path: Path,
    s_churn: float,
    s_min: float = 0.0,
    s_max: float = np.inf,
    s_noise: float = 1.0,
    to_zero: bool = True,
) -> Samples:
    """EDM's stochastic sampler: before every Heun step some noise is added and the time set back.

    σ̂ = (1 + γ)·σ and x̂ = x + √(σ̂² − σ²)·s_noise·z, γ = min(s_churn/N, √2 − 1) where s_min <= σ <= s_max and else 0.
    [Karras et al. 2022, alg. 2]

    Args:   path: one with `time_of`; noise levels are σ = b/a, and x is scaled by the signal's gain on the way.
    Raises: ValueError where s_churn or s_noise is negative, or s_max is below s_min.
    """
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn and s_noise must be at least 0, got {s_churn} and {s_noise}")
    if s_max < s_min:
        raise ValueError(f"s_max must be at least s_min={s_min}, got {s_max}")
    levels = path.b(times) / path.a(times)
    most = min(s_churn / len(times), 2**0.5 - 1)
    gammas = jnp.where((levels >= s_min) & (levels <= s_max), most, 0.0).astype(times.dtype)
    raised = jnp.where(gammas > 0, path.time_at((1 + gammas) * levels), times)  # to the bit where nothing is added
    kept = path.a(raised) / path.a(times)
    added = path.a(raised) * levels * jnp.sqrt(gammas * (2 + gammas)) * s_noise
    velocity = ode_velocity(denoise, path)

    def advance(x, step):
        index, raised_t, gain, noise_scale, r = step
        x = gain * x + noise_scale * noises(index)
        return heun_step(velocity, x, raised_t, r), None

    inner = (jnp.arange(len(times) - 1), raised[:-1], kept[:-1], added[:-1], times[1:])
    x = jax.lax.scan(advance, x, inner)[0]
    if not to_zero:
        return x
    return denoise(kept[-1] * x + added[-1] * noises(len(times) - 1), raised[-1])


def ancestral(
    denoise: BoundDenoiser, x: Samples, times: Times, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """Ancestral Euler, N evaluations: the reverse of the noising process with the denoised in place of the data.

    With q = σ_r/σ_t, σ = b/a: x_r = a_r·(1 − q²)·D + q·b_r/b_t·x_t + b_r·√(1 − q²)·z, which on the `ve` path is an
    Euler step to σ_r²/σ_t and noise of std σ_r·√(1 − q²).   [Ho et al. 2020, eq. 6; k-diffusion]
    """

    def advance(x, step):
        index, t, r = step
        ratio = path.b(r) / path.b(t)
        q = ratio * path.a(t) / path.a(r)
        renewed = (1 - q) * (1 + q)
        x = path.a(r) * renewed * denoise(x, t) + q * ratio * x + path.b(r) * jnp.sqrt(renewed) * noises(index)
        return x, None

    x = jax.lax.scan(advance, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]
    return denoise(x, times[-1]) if to_zero else x
