"""Solvers, which go from noise to data with a denoiser: the probability-flow ODE and its stochastic variants.

Each is a function (denoise, x, times, noises, *, path, to_zero) -> samples. It goes from the state x at times[0] along
the descending `times`, and then, by one denoising evaluation, to time 0; `to_zero=False` leaves that evaluation out and
returns the state at times[-1]. Each solver has its own loop, which keeps what the solver remembers from step to step.
Solvers of the ODE draw no noise and ignore `noises`.
"""

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.core.ode import ddim_step, euler_step, heun_step, midpoint_step, ode_velocity, solve, solve_to_tolerance
from cmjax.core.paths import Path
from cmjax.core.typing import BoundDenoiser, Integrator, Noises, OdeStep, Samples, TimeGrid
from cmjax.ranges import AtLeastOne, NotNegative, Within

Tolerance = Annotated[float, Within(1e-12, 1)]
ADAMS = np.array([[24, 0, 0, 0], [12, 12, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24
"""Weights of the newest slope and the three before it in the evaluations of `pndm`; the last row in all that follow."""


def by_ode(
    denoise: BoundDenoiser,
    x: Samples,
    times: TimeGrid,
    noises: Noises,
    *,
    path: Path,
    integrate: Integrator,
    to_zero: bool = True,
) -> Samples:
    """Samples by the probability-flow ODE with any integrator, for example `partial(solve, ode_step=heun_step)`."""
    times = checks.descending(times)
    x = integrate(ode_velocity(denoise, path), x, times)
    return denoise(x, times[-1]) if to_zero else x


def euler(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """Euler's method: first order, N evaluations for N times; DDIM on the `ve` path.   [Karras et al. 2022, alg. 1]"""
    return by_ode(denoise, x, times, noises, path=path, integrate=partial(solve, ode_step=euler_step), to_zero=to_zero)


def ddim(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """DDIM: first order, N evaluations; exact if D is constant on a trajectory.   [Song et al. 2021, DDIM, eq. 12]"""
    integrate = partial(solve, ode_step=partial(ddim_step, path=path))
    return by_ode(denoise, x, times, noises, path=path, integrate=integrate, to_zero=to_zero)


def heun(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """Heun's method: second order, 2N − 1 evaluations; the step to 0 is Euler's.   [Karras et al. 2022, alg. 1]"""
    return by_ode(denoise, x, times, noises, path=path, integrate=partial(solve, ode_step=heun_step), to_zero=to_zero)


def midpoint(
    denoise: BoundDenoiser,
    x: Samples,
    times: TimeGrid,
    noises: Noises,
    *,
    path: Path,
    rho: AtLeastOne = 1.0,
    to_zero: bool = True,
) -> Samples:
    """The midpoint method: second order, 2N − 1 evaluations. `rho` sets the middle time, see `midpoint_step`.

    Raises: ValueError where rho is below 1.
    """
    if rho < 1:
        raise ValueError(f"rho must be at least 1, got {rho}")
    integrate = partial(solve, ode_step=partial(midpoint_step, rho=rho))
    return by_ode(denoise, x, times, noises, path=path, integrate=integrate, to_zero=to_zero)


def tsit5(
    denoise: BoundDenoiser,
    x: Samples,
    times: TimeGrid,
    noises: Noises,
    *,
    path: Path,
    rtol: Tolerance = 1e-5,
    atol: Tolerance = 1e-5,
    to_zero: bool = True,
) -> Samples:
    """Tsitouras' method with as many steps as the tolerances need, see `solve_to_tolerance`; it needs diffrax."""
    integrate = partial(solve_to_tolerance, rtol=rtol, atol=atol)
    return by_ode(denoise, x, times, noises, path=path, integrate=integrate, to_zero=to_zero)


def dpmpp_2m(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """DPM-Solver++(2M): second order, N evaluations.   [Lu et al. 2022, DPM-Solver++, alg. 2]

    Each step is a DDIM step with D_i + h_i/(2·h_{i−1})·(D_i − D_{i−1}) in place of D_i: this extrapolates D to the
    middle of the step in λ = ln(a/b), with h_i = λ_{i+1} − λ_i. The first step, which has no D_{i−1}, and the last,
    which is infinitely long, are of first order.
    """
    times = checks.descending(times)
    gaps = _log_steps(path, times)
    lookback = jnp.concatenate([jnp.zeros_like(gaps[:1]), gaps[1:] / (2 * gaps[:-1])])  # (n − 1,)
    x = _extrapolated(denoise, x, times, path, lookback[:, None])[0]
    return denoise(x, times[-1]) if to_zero else x


def dpmpp_3m(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """DPM-Solver++(3M): third order, N evaluations.   [Lu et al. 2022, DPM-Solver++]

    Each step is a DDIM step with D_i + (p + c)·h_i/h_{i−1}·(D_i − D_{i−1}) − c·h_i/h_{i−2}·(D_{i−1} − D_{i−2}) in
    place of D_i: exact where D is a parabola in λ = ln(a/b). p = 1/(1 − e^−h) − 1/h, q = p − (2·p − 1)/h and
    c = (p·h_{i−1} + q·h_i)/(h_{i−1} + h_{i−2}). The first step is of first order, the second of second order.
    The released code has q/2, with which the order is 2.
    """
    times = checks.descending(times)
    x = _extrapolated(denoise, x, times, path, _parabola(_log_steps(path, times)))[0]
    return denoise(x, times[-1]) if to_zero else x


def dpmpp_3m_states(denoise: BoundDenoiser, x: Samples, times: TimeGrid, *, path: Path) -> Float[Array, "n b *dims"]:
    """The states at all `times`, the first of which is x, by the steps of `dpmpp_3m`: n − 1 evaluations."""
    times = checks.descending(times)
    states = _extrapolated(denoise, x, times, path, _parabola(_log_steps(path, times)), every=True)[1]
    return jnp.concatenate([x[None], states])


def pndm(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """PNDM without its Runge-Kutta start, as Stable Diffusion has it: N + 1 evaluations for N times, two or more.

    Each step is a DDIM step with a mean of the last four estimates of the noise, by the weights of Adams and Bashforth;
    the first takes the mean of the estimates at both of its ends.   [Liu et al. 2022, PNDM, eq. 12 and 13]
    """
    times = checks.descending(times, least=2)
    # a = 1 and b = 0, those of the clean data, at which the last step ends
    ends = jnp.array([1.0, 0.0])[:, None] if to_zero else jnp.zeros((2, 0))
    a, b = jnp.concatenate([jnp.stack([path.a(times), path.b(times)]), ends.astype(times.dtype)], axis=1)
    later = np.arange(1, len(a) - 1)
    interval, place = np.r_[0, 0, later], np.r_[0, 1, later]  # the first interval is gone through twice
    weights = jnp.asarray(ADAMS[np.minimum(np.arange(len(place)), len(ADAMS) - 1)], times.dtype)

    def advance(carry, step):
        x, before, earlier = carry
        t, a_t, b_t, a_r, b_r, again, weights = step
        newest = ((x - path.a(t) * denoise(x, t)) / path.b(t), *earlier)
        noise = sum(weight * estimate for weight, estimate in zip(weights, newest, strict=True))
        # the second evaluation goes through the first interval once more, from its start and with the mean of both ends
        start = jnp.where(again, before, x)
        # and leaves no estimate behind: the next step has that at the start as its only earlier one
        kept = tuple(jnp.where(again, *both) for both in zip(earlier, newest[:-1], strict=True))
        return (a_r / a_t * (start - b_t * noise) + b_r * noise, x, kept), None

    here, there = (a[interval], b[interval]), (a[interval + 1], b[interval + 1])
    steps = (times[place], *here, *there, np.arange(len(place)) == 1, weights)
    return jax.lax.scan(advance, (x, x, (jnp.zeros_like(x),) * 3), steps)[0][0]


def states(
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, *, path: Path, ode_step: OdeStep
) -> Float[Array, "n b *dims"]:
    """The states at all `times`, the first of which is x, by one `ode_step` for each interval.

    A last time that is known to be 0 is reached by DDIM: the velocity is not defined there.
    """
    known, velocity = checks.known(times), ode_velocity(denoise, path)
    times = checks.descending(times)
    to_zero = known is not None and known[-1] == 0

    def advance(x, interval):
        x = ode_step(velocity, x, *interval)
        return x, x

    inner = times[:-1] if to_zero else times
    last, after = jax.lax.scan(advance, x, (inner[:-1], inner[1:]))
    ends = [denoise(last, inner[-1])[None]] if to_zero else []
    return jnp.concatenate([x[None], after, *ends])


def _log_steps(path: Path, times: Array) -> Array:
    """The steps h_i = λ_{i+1} − λ_i of λ = ln(a/b), (n − 1,)."""
    return jnp.diff(jnp.log(path.a(times)) - jnp.log(path.b(times)))


def _parabola(gaps: Array) -> Array:
    """The factors (n − 1, 2) of `dpmpp_3m`."""
    # h_{i−1} and h_{i−2}; what wraps around at the first two steps is not used
    one, two = jnp.roll(gaps, 1), jnp.roll(gaps, 2)
    # p − ½ by its series where h is small: the difference of two large numbers would be rounded
    series = gaps / 12 - gaps**3 / 720 + gaps**5 / 30240 - gaps**7 / 1209600
    above = jnp.where(gaps < 1, series, -1 / jnp.expm1(-gaps) - 1 / gaps - 0.5)
    p, q = 0.5 + above, 0.5 + above - 2 * above / gaps
    c = (p * one + q * gaps) / (one + two)
    near, far = (p + c) * gaps / one, -c * gaps / two
    place = jnp.arange(len(gaps))
    near = jnp.where(place > 1, near, jnp.where(place == 1, gaps / (2 * one), 0))
    return jnp.stack([near, jnp.where(place > 1, far, 0)], axis=1)


def _extrapolated(
    denoise: BoundDenoiser, x: Samples, times: Array, path: Path, lookback: Array, *, every: bool = False
) -> tuple[Samples, Any]:
    """DDIM steps with D_i + Σ_j lookback[i, j]·(D_{i−j} − D_{i−j−1}) for D_i: the last state, and `every` state."""

    def advance(carry, step):
        x, earlier = carry
        t, r, factors = step
        newest = (denoise(x, t), *earlier)
        changes = (factors[j] * (newest[j] - newest[j + 1]) for j in range(len(earlier)))
        x = path.ddim(x, sum(changes, newest[0]), t, r)
        return (x, newest[:-1]), x if every else None

    # the first factors are 0: the zeros in place of earlier estimates do not count
    earlier = (jnp.zeros_like(x),) * lookback.shape[1]
    (x, _), after = jax.lax.scan(advance, (x, earlier), (times[:-1], times[1:], lookback))
    return x, after


def churn(
    denoise: BoundDenoiser,
    x: Samples,
    times: TimeGrid,
    noises: Noises,
    *,
    path: Path,
    s_churn: NotNegative,
    s_min: NotNegative = 0.0,
    s_max: NotNegative = np.inf,
    s_noise: NotNegative = 1.0,
    to_zero: bool = True,
) -> Samples:
    """EDM's stochastic sampler: before every Heun step it adds noise and moves back to the higher noise level.

    σ̂ = (1 + γ)·σ and x̂ = x + √(σ̂² − σ²)·s_noise·z, with γ = min(s_churn/N, √2 − 1) where s_min <= σ <= s_max, and
    γ = 0 elsewhere.
    [Karras et al. 2022, alg. 2]

    Args:   path: one with `time_of`. Noise levels are σ = b/a, and x is also scaled by a(t̂)/a(t), t̂ the time of σ̂.
    Raises: ValueError where s_churn or s_noise is negative, or s_max is below s_min.
    """
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn and s_noise must be at least 0, got {s_churn} and {s_noise}")
    if s_max < s_min:
        raise ValueError(f"s_max must be at least s_min={s_min}, got {s_max}")
    times = checks.descending(times)
    levels = path.b(times) / path.a(times)
    most = min(s_churn / len(times), 2**0.5 - 1)
    gammas = jnp.where((levels >= s_min) & (levels <= s_max), most, 0.0).astype(times.dtype)
    raised = jnp.where(gammas > 0, path.time_at((1 + gammas) * levels), times)  # exact where no noise is added
    kept = path.a(raised) / path.a(times)
    # √(σ̂² − σ²) = σ·√(γ·(2 + γ)), without cancellation
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
    denoise: BoundDenoiser, x: Samples, times: TimeGrid, noises: Noises, *, path: Path, to_zero: bool = True
) -> Samples:
    """Ancestral Euler, N evaluations: each step samples the reverse of the noising process, with D as the clean data.

    x_r = a_r·(1 − q²)·D + q·b_r/b_t·x_t + b_r·√(1 − q²)·z, with q = σ_r/σ_t and σ = b/a. On the `ve` path this is an
    Euler step to σ_r²/σ_t, and then noise of std σ_r·√(1 − q²).   [Ho et al. 2020, eq. 6; k-diffusion]
    """
    times = checks.descending(times)

    def advance(x, step):
        index, t, r = step
        ratio = path.b(r) / path.b(t)
        q = ratio * path.a(t) / path.a(r)
        # 1 − q², without cancellation
        renewed = (1 - q) * (1 + q)
        x = path.a(r) * renewed * denoise(x, t) + q * ratio * x + path.b(r) * jnp.sqrt(renewed) * noises(index)
        return x, None

    x = jax.lax.scan(advance, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]
    return denoise(x, times[-1]) if to_zero else x
