"""Samplers of `Times` for flow maps: three times of a trajectory, and times by their distance."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from cmjax.core.batch import Times
from cmjax.core.pairs import PairSampler, Ratio, check_fraction, two_samples
from cmjax.core.paths import Path
from cmjax.core.times import part_of
from cmjax.core.typing import PerSample, PRNGKey, Schedule, TimeSampler
from cmjax.ranges import Fraction, LogMean, LogStd, Within

Below = Callable[[PRNGKey, PerSample], PerSample]
"""(key, highest (b,)) -> times (b,) of a distribution that ends at `highest`."""


def parted(pairs: PairSampler, *, middle: bool = False) -> PairSampler:
    """t and s of the pairs, and r between them: uniform, or in the middle.   [Boffi et al. 2025, self-distillation]"""

    def sample(key, batch_size, step):
        pairs_key, part_key = jax.random.split(key)
        times = pairs(pairs_key, batch_size, step)
        t, s = times.t, times.destination
        part = 0.5 if middle else jax.random.uniform(part_key, (batch_size,))
        return Times(t=t, r=t + part * (s - t), s=s)

    return sample


def near(pairs: PairSampler, fraction: Schedule, *, least: float = 1e-4) -> PairSampler:
    """t and s of the pairs, and r between them, a fraction(step) of the way from t, but at least `least`.

    [Luo et al. 2025, SoFlow, alg. 1]
    """

    def sample(key, batch_size, step):
        times = pairs(key, batch_size, step)
        t, s = times.t, times.destination
        return Times(t=t, r=jnp.maximum(s, jnp.minimum(t + fraction(step) * (s - t), t - least)), s=s)

    return sample


def falling_fraction(*, start: Fraction, end: Fraction, total_steps: int) -> Schedule:
    """step -> a fraction that falls from `start` to `end` exponentially over the run.   [Luo et al. 2025, SoFlow]

    Raises: ValueError unless 0 < end <= start <= 1.
    """
    if not 0 < end <= start <= 1:
        raise ValueError(f"start and end must satisfy 0 < end <= start <= 1, got {start} and {end}")
    return lambda step: start * (end / start) ** (jnp.asarray(step, jnp.float32) / total_steps)


def matched_by(pairs: PairSampler, times: TimeSampler) -> PairSampler:
    """The pairs, with times of another distribution where s = t.   [Lee et al. 2025, decoupled MeanFlow; TVM]"""

    def sample(key, batch_size, step):
        pairs_key, times_key = jax.random.split(key)
        sampled = pairs(pairs_key, batch_size, step)
        t, s, alone = sampled.t, sampled.destination, times(times_key, batch_size)
        return Times(t=jnp.where(s < t, t, alone), s=jnp.where(s < t, s, alone))

    return sample


def ending_pairs(times: TimeSampler, *, mean: LogMean, std: LogStd, apart: Fraction) -> PairSampler:
    """t = s + d, where `times` are the lengths d, and s is logit-normal, N(mean, std²), below 1 − d.

    For a fraction 1 − `apart`, the first samples, t = s is of the whole logit-normal distribution.
    [Zhou et al. 2025, terminal velocity matching, the released code]
    Raises: ValueError where apart lies outside [0, 1].
    """
    check_fraction("apart", apart)

    def sample(key, batch_size, step):
        length_key, end_key = jax.random.split(key)
        alone = jnp.arange(batch_size) < part_of(1 - apart, batch_size)
        length = jnp.where(alone, 0.0, times(length_key, batch_size))
        # by the inverse distribution function: its values below that of 1 − d are all equally probable
        # ln((1 − d)/d) is the logit of 1 − d; it is inf at d = 0, and then nothing is cut off
        most = jax.scipy.stats.norm.cdf((jnp.log1p(-length) - jnp.log(length) - mean) / std)
        least = jnp.finfo(length.dtype).tiny
        # the inverse is −inf at 0
        place = jnp.maximum(most * jax.random.uniform(end_key, (batch_size,)), least)
        s = jax.nn.sigmoid(mean + std * jax.scipy.stats.norm.ppf(place))
        # the sum may be rounded to above 1, where the path ends
        return Times(t=jnp.minimum(s + length, 1.0), s=s)

    return sample


def long_pairs(times: TimeSampler, times_s: TimeSampler, *, apart: Fraction) -> PairSampler:
    """t = s + d, where `times` are the lengths d, and s = (1 − d)·s' with s' of `times_s`; for the rest, t alone = s.

    [Sabour et al. 2025, align your flow, alg. 1]   Raises: ValueError where apart lies outside [0, 1].
    """
    check_fraction("apart", apart)

    def sample(key, batch_size, step):
        length, place, differ = two_samples(key, batch_size, times, times_s, apart, False)
        s = (1 - length) * place
        t = s + length
        return Times(t=t, s=jnp.where(differ, s, t))

    return sample


def skipping_grid_pairs(grid: Float64[np.ndarray, " n"], levels: TimeSampler, *, fraction: float) -> PairSampler:
    """t, r and s on the grid, t > r >= s, where all samples of a batch have r as many points below t.

    The number m of points has a probability ∝ m; t and s are uniform. The first `fraction` of the batch has
    t = r = s of the distribution `levels`, for the loss of a denoiser.   [Kim et al. 2024, CTM, the released code]

    Args:   grid: (n,), ascending.
    Raises: ValueError where fraction lies outside [0, 1].
    """
    check_fraction("fraction", fraction)
    last = len(grid) - 1
    below = np.cumsum(np.arange(1, last + 1)) / (last * (last + 1) / 2)

    def sample(key, batch_size, step):
        count_key, t_key, s_key, level_key = jax.random.split(key, 4)
        points = jnp.asarray(grid, jnp.float32)
        # one number for the whole batch: the teacher's loop is as long for all samples
        count = 1 + jnp.searchsorted(jnp.asarray(below, jnp.float32), jax.random.uniform(count_key), side="right")
        # the last entry of `below` may be rounded to less than 1
        count = jnp.minimum(count, last)
        t, s = (jax.random.uniform(of, (batch_size,)) for of in (t_key, s_key))
        # t is any of the points count … last, and s any of those from the lowest one up to r
        place = count + jnp.floor(t * (last - count + 1)).astype(int)
        end = jnp.floor(s * (place - count + 1)).astype(int)
        alone, level = jnp.arange(batch_size) < part_of(fraction, batch_size), levels(level_key, batch_size)
        return Times(*(jnp.where(alone, level, points[i]) for i in (place, place - count, end)))

    return sample


def grouped(below: Below, ratio: Ratio, *, group: int, t_max: float) -> PairSampler:
    """Times for groups of samples that follow one another, equal within each: t up to t_max, s up to t, r from `ratio`.

    r is s where the ratio gives less.   [Zhou et al. 2025, IMM, alg. 1]
    """

    def sample(key, batch_size, step):
        t_key, s_key = jax.random.split(key)
        t = below(t_key, jnp.full(batch_size // group, t_max))
        s = below(s_key, t)
        return Times(*(jnp.repeat(time, group) for time in (t, jnp.clip(ratio(t, step), s, t), s)))

    return sample


def uniform_below(*, t_min: float) -> Below:
    """Uniform times between t_min and `highest`.   [Zhou et al. 2025, IMM]"""
    return lambda key, highest: t_min + jax.random.uniform(key, highest.shape) * (highest - t_min)


def lognormal_below(*, mean: LogMean, std: LogStd, path: Path, t_min: float) -> Below:
    """Times between t_min and `highest`, whose noise levels σ = b/a have the density of ln σ ~ N(mean, std²) there."""

    def sample(key, highest):
        # ends of the unit normal that is truncated, as `truncated_normal` counts them
        low, high = ((jnp.log(path.noise_level(t)) - mean) / std for t in (jnp.full_like(highest, t_min), highest))
        level = jnp.exp(mean + std * jax.random.truncated_normal(key, low, high))
        # exp, ln and `time_at` may round a level beyond its ends
        return jnp.clip(path.time_at(level), t_min, highest)

    return sample


def level_gap(*, k: Annotated[float, Within(0, 100)], path: Path, t_min: float, t_max: float) -> Ratio:
    """The time r >= t_min with b/a lower than at t by 2^−k of its range: b/a at t_max minus that at t_min.

    [Zhou et al. 2025, IMM]   Raises: ValueError where the noise level is infinite at t_max.
    """
    if t_max >= path.signal_ends:
        raise ValueError(f"needs a noise level that is finite at t_max={t_max:g}: set it a little lower")

    def ratio(t, step):
        least, most = (path.noise_level(jnp.asarray(end, t.dtype)) for end in (t_min, t_max))
        return path.time_at(jnp.maximum(path.noise_level(t) - (most - least) / 2**k, least))

    return ratio


def all_of(grid: Float64[np.ndarray, " n"]) -> PairSampler:
    """The n − 1 points of an ascending grid above its first, from the last one down, again and again.

    [Hu et al. 2025, CMT]
    """

    def sample(key, batch_size, step):
        # from the last point down to the second
        points = jnp.asarray(grid[:0:-1], jnp.float32)
        return Times(points[jnp.arange(batch_size) % len(points)])

    return sample


def two_of(grid: Float64[np.ndarray, " n"]) -> PairSampler:
    """t and s < t, two points of an ascending grid, all such pairs equally probable.   [MF-RAE, the released code]"""

    def sample(key, batch_size, step):
        first_key, apart_key = jax.random.split(key)
        one = jax.random.randint(first_key, (batch_size,), 0, len(grid))
        # 1 … n − 1 places further on, in a circle: any point but the first one's
        other = (one + jax.random.randint(apart_key, (batch_size,), 1, len(grid))) % len(grid)
        points = jnp.asarray(grid, jnp.float32)
        return Times(points[jnp.maximum(one, other)], s=points[jnp.minimum(one, other)])

    return sample
