"""The probability-flow ODE as an invertible map between images and noise, and the likelihood that it gives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.core.ode import ode_velocity
from cmjax.core.paths import Path, flat, widened
from cmjax.core.typing import Integrator, Keys, PerSample, Samples, TimeGrid, Velocity

Probe = Callable[[Any, tuple[int, ...], Any], Array]
"""(key, shape, dtype) -> independent numbers of mean 0 and variance 1."""


def encode(
    denoiser: Any, x: Samples, *, times: TimeGrid, path: Path, integrate: Integrator, **conditions: Array
) -> Samples:
    """Computes the noise z of the sample x: the end of the PF-ODE from x at times[-1] up to times[0], divided by
    b(times[0]).

    Args: denoiser: (x, t, **conditions) -> D(x, t). x: (b, ...), treated as the state at the smallest time.
          times: descending, as for the samplers. integrate: `partial(solve, ode_step=heun_step)`, or
          `partial(solve_to_tolerance, rtol=…, atol=…)`, with which `decode` recovers x to within the tolerances.
    """
    times = checks.descending(times, least=2)
    velocity = ode_velocity(lambda x, t: denoiser(x, t, **conditions), path)
    return integrate(velocity, x, times[::-1]) / path.b(times[0])


def decode(
    denoiser: Any, noise: Samples, *, times: TimeGrid, path: Path, integrate: Integrator, **conditions: Array
) -> Samples:
    """Computes the samples of `noise`: the state at times[-1] of the PF-ODE from b(times[0])·noise, the inverse of
    `encode`.

    The arguments are those of `encode`.
    """
    times = checks.descending(times, least=2)
    velocity = ode_velocity(lambda x, t: denoiser(x, t, **conditions), path)
    return integrate(velocity, path.b(times[0]) * noise, times)


def log_likelihood(
    denoiser: Any,
    key: Keys,
    x: Samples,
    *,
    times: TimeGrid,
    path: Path,
    integrate: Integrator,
    probe: Probe = jax.random.rademacher,
    num_probes: int = 1,
    log_prior: Callable[[Samples], PerSample] | None = None,
    **conditions: Array,
) -> PerSample:
    """log p(x) = log p_T(x_T) + ∫∇·v(x_t, t) dt from times[-1] to times[0], in nats, (b,).   [Song et al. 2021, eq. 39]

    The divergence is estimated by Hutchinson's trace E[eᵀ(∂v/∂x)e] with probes e that are drawn once for the whole
    trajectory. It is unbiased, so averages over samples or keys converge.

    Args: denoiser, x, times, integrate: as for `encode`. key: one, or (b,) keys, one for each sample.
          probe: `jax.random.rademacher` (smaller variance) or `jax.random.normal`. num_probes: how many to average.
          log_prior: log p_T; by default for N(0, b(T)²), which on the `ve` path neglects the variance of the data.
    """
    times, key, x = checks.descending(times, least=2), checks.as_key(key, x.shape[0]), widened(x)
    velocity = ode_velocity(lambda x, t: denoiser(x, t, **conditions), path)
    probes = _draw(key, x, probe, num_probes)

    def joint(state, t):
        """d(x, ∫∇·v)/dt, both in one array (b, d + 1), so that any integrator can take it."""
        slope, divergence = _with_divergence(velocity, state[:, :-1].reshape(x.shape), t, probes)
        return jnp.concatenate([flat(slope), divergence[:, None]], axis=1)

    # (b, d + 1): the last column collects the integral of the divergence
    start = jnp.concatenate([flat(x), jnp.zeros_like(flat(x)[:, :1])], axis=1)
    # the integral runs from data to noise, so the descending times are reversed
    end = integrate(joint, start, times[::-1])
    x_T = end[:, :-1].reshape(x.shape)
    return (log_prior or _gaussian_prior(path.b(times[0])))(x_T) + end[:, -1]


def bits_per_dim(log_likelihood: PerSample, size: int, *, bin_width: float = 1 / 127.5) -> PerSample:
    """Bits per dimension of uniformly dequantised data, −(log2 p(x) + size·log2 bin_width)/size, (b,).

    Args: log_likelihood: ln p(x), (b,). size: the number of elements of a sample, h·w·c.
          bin_width: the width of one level in the units of x, 1/127.5 for 8 bits in [-1, 1].
    """
    return -log_likelihood / (size * jnp.log(2.0)) - jnp.log2(bin_width)


def _with_divergence(velocity: Velocity, x: Samples, t: Any, probes: Array) -> tuple[Samples, PerSample]:
    """v(x, t) and the mean of eᵀ(∂v/∂x)e over probes e (p, b, ...)."""

    def push(e):
        # forward mode gives v and (∂v/∂x)e in one evaluation
        slope, derivative = jax.jvp(lambda x: velocity(x, t), (x,), (e,))
        return slope, jnp.sum(flat(e * derivative), axis=1)

    # the velocity is the same for all probes; the estimates are (p, b)
    slope, estimates = jax.vmap(push, out_axes=(None, 0))(probes)
    return slope, estimates.mean(0)


def _draw(key: Keys, x: Samples, probe: Probe, num: int) -> Float[Array, "p b *dims"]:
    if key.ndim == 0:
        return probe(key, (num, *x.shape), x.dtype)
    return jax.vmap(lambda k: probe(k, (num, *x.shape[1:]), x.dtype), out_axes=1)(key)


def _gaussian_prior(std: Any) -> Callable[[Samples], PerSample]:
    def log_density(x):
        rows = flat(x)
        return -jnp.sum(rows**2, axis=1) / (2 * std**2) - rows.shape[1] / 2 * jnp.log(2 * jnp.pi * std**2)

    return log_density
