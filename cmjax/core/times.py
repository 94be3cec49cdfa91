"""Distributions of the student's time t: samplers (key, batch_size) -> t (b,).

Distributions of the noise level are converted by the path's `time_of`, so they mean the same on every path.
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.checks import known_size
from cmjax.core.paths import Path
from cmjax.core.typing import TimeSampler
from cmjax.ranges import LARGE, AtLeastOne, LogMean, LogStd, NotNegative, Positive, Within


def lognormal(*, mean: LogMean, std: LogStd, path: Path) -> TimeSampler:
    """The time of the noise level σ with ln σ ~ N(mean, std²).   [Karras et al. 2022, table 1]"""
    _check_positive("std", std)
    return lambda key, batch_size: path.time_at(jnp.exp(mean + std * jax.random.normal(key, (batch_size,))))


def student(
    *,
    df: Positive,
    scale: Positive,
    path: Path,
    lowest: Positive = 1.0,
    highest: Positive = 80.0,
    points: Annotated[int, Within(2, LARGE)] = 4096,
) -> TimeSampler:
    """The time of the noise level σ in [lowest, highest], with ln σ ~ truncated Student-t.   [Lee et al. 2025, TCM]

    The distribution has `df` degrees of freedom and this `scale`. It is sampled by its inverse distribution
    function, tabulated at `points` in float64; with df = 0.01 the tails are too heavy for rejection sampling.
    """
    for name, value in (("df", df), ("scale", scale), ("lowest", lowest)):
        _check_positive(name, value)
    if highest <= lowest:
        raise ValueError(f"highest must be above lowest={lowest}, got {highest}")
    grid = np.linspace(math.log(lowest), math.log(highest), points)
    # up to a constant factor, which the division below removes
    log_density = -(df + 1) / 2 * np.log1p((grid / scale) ** 2 / df)
    density = np.exp(log_density - log_density.max())
    # the trapezoid rule on evenly spaced points
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]

    def sample(key, batch_size):
        level = jnp.interp(jax.random.uniform(key, (batch_size,)), jnp.asarray(cumulative), jnp.asarray(grid))
        return path.time_at(jnp.exp(level))

    return sample


def uniform(*, t_min: NotNegative, t_max: Positive, rho: AtLeastOne = 1.0, shift: Positive = 1.0) -> TimeSampler:
    """The time t with t^(1/rho) uniform between its values at t_min and t_max.   [Song et al. 2023, app. B.2]

    With a `shift` t becomes `shifted(t, shift)`, for paths whose times end at 1.   Raises: ValueError for others.
    """
    if shift != 1 and t_max > 1:
        raise ValueError(f"shift={shift} is of times up to 1, not up to t_max={t_max}")
    if not 0 <= t_min < t_max:
        raise ValueError(f"t_min and t_max must satisfy 0 <= t_min < t_max, got {t_min} and {t_max}")
    low, high = t_min ** (1 / rho), t_max ** (1 / rho)
    return lambda key, size: shifted((low + (high - low) * jax.random.uniform(key, (size,))) ** rho, shift)


def shifted(t: Any, shift: float) -> Any:
    """The times k·t/(1 + (k − 1)·t), k = `shift`: nearer to noise, t = 1, where k > 1.   [Esser et al. 2024, eq. 23]

    k is the square root of how many more values a sample has than one whose times need no shift. Of `logit_normal` it
    adds ln k to the mean.
    """
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def logit_normal(*, mean: LogMean, std: LogStd) -> TimeSampler:
    """t = sigmoid(n) in (0, 1) with n ~ N(mean, std²), for the linear path.   [Esser et al. 2024, sec. 3.1]"""
    _check_positive("std", std)
    return lambda key, batch_size: jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch_size,)))


def part_of(fraction: float, batch_size: int | Any) -> int:
    """Counts the samples in a fraction of the batch: at least one, unless the fraction is 0.

    Raises: ValueError where the batch size is symbolic.
    """
    known_size(batch_size, f"fraction={fraction} of the batch")
    # on the host, since shapes follow from it
    return max(round(fraction * batch_size), int(fraction > 0))


def held_at(times: TimeSampler, *, at: float, fraction: float) -> TimeSampler:
    """The time `at` for the first `fraction` of the batch, `times` for the rest.   [Lee et al. 2025, TCM, alg. 1]"""

    def sample(key, batch_size):
        held = jnp.arange(batch_size) < part_of(fraction, batch_size)
        return jnp.where(held, at, times(key, batch_size))

    return sample


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
