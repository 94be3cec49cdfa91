"""Samplers of `Times` for a batch: the times on a trajectory at which student and target are evaluated."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from cmjax.core.batch import Times
from cmjax.core.curricula import Curriculum
from cmjax.core.grids import karras_grid
from cmjax.core.times import part_of
from cmjax.core.typing import PerSample, PRNGKey, Schedule, Step, TimeSampler
from cmjax.ranges import AboveOne, Count, Fraction, LogMean, LogStd, NotNegative

PairSampler = Callable[[PRNGKey, int, Step], Times]
"""(key, batch_size, step) -> Times. A curriculum acts through `step`."""

Ratio = Callable[[PerSample, Step], PerSample]
"""(t, step) -> r, the target's time, which a curriculum brings nearer to t."""

IntervalProbabilities = Callable[[Float64[np.ndarray, " n"]], Float64[np.ndarray, " n-1"]]
"""A grid -> the probability of each of its intervals."""


def uniform_intervals(grid: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n-1"]:
    """The probability 1/(n − 1) for every interval.   [Song et al. 2023, alg. 2 and 3]"""
    return np.full(len(grid) - 1, 1 / (len(grid) - 1))


def lognormal_intervals(grid: Float64[np.ndarray, " n"], *, mean: LogMean, std: LogStd) -> Float64[np.ndarray, " n-1"]:
    """The probabilities p(i) ∝ Pr(t_i < t < t_{i+1}) for ln t ~ N(mean, std²).   [Song & Dhariwal 2024, sec. 3.5]

    Raises: ValueError where std is not positive, or no time of the grid is probable.
    """
    if std <= 0:
        raise ValueError(f"std must be positive, got {std}")
    below = np.array([math.erf((math.log(t) - mean) / (math.sqrt(2) * std)) for t in grid])
    if not below[-1] > below[0]:
        raise ValueError(f"no time of the grid is probable with mean={mean} and std={std}")
    return np.diff(below) / (below[-1] - below[0])


def grid_pairs(
    curriculum: Curriculum,
    *,
    t_min: float,
    t_max: float,
    rho: float,
    probabilities: IntervalProbabilities = uniform_intervals,
) -> PairSampler:
    """Neighbours (t, r) = (t_{n+1}, t_n) on the Karras grid of N(k) points.   [Song et al. 2023, alg. 2 and 3]

    The grid and the distribution of every stage are tabulated here in float64; the returned sampler looks up a row, so
    N(k) may grow without another compilation.
    """
    stages = [karras_grid(int(n), t_min=t_min, t_max=t_max, rho=rho) for n in curriculum.num_scales]
    longest = max(len(grid) for grid in stages)
    # rows of one length: a shorter grid repeats its last point, which is never sampled
    grids = np.stack([np.pad(grid, (0, longest - len(grid)), mode="edge") for grid in stages])
    # 1 from the last interval of a grid on: no uniform number lies beyond it
    cumulative = np.ones((len(stages), longest - 1))
    for row, grid in zip(cumulative, stages, strict=True):
        row[: len(grid) - 2] = np.cumsum(probabilities(grid))[:-1]

    def sample(key, batch_size, step):
        stage = curriculum.stage(step)
        grid = jnp.asarray(grids)[stage]
        # the inverse of the distribution function: the interval n of each sample, (b,)
        n = jnp.searchsorted(jnp.asarray(cumulative)[stage], jax.random.uniform(key, (batch_size,)), side="right")
        return Times(t=grid[n + 1], r=grid[n])

    return sample


def single(times: TimeSampler) -> PairSampler:
    """The time t alone, for models that learn at one time: denoisers and continuous-time consistency models."""
    return lambda key, batch_size, step: Times(times(key, batch_size))


def ratio_pairs(times: TimeSampler, ratio: Ratio) -> PairSampler:
    """t from a continuous distribution, and r, a fraction of t.   [Geng et al. 2024, ECT]"""

    def sample(key, batch_size, step):
        t = times(key, batch_size)
        return Times(t=t, r=ratio(t, step))

    return sample


LEAST_GAP = 512
"""The least (t − r)/t, in units of rounding, 2^−14 in float32: there t − r is right to 0.1 %, and beyond rounding takes
more of it."""


def shrinking_gap(
    *,
    q: AboveOne,
    stage: Schedule,
    k: NotNegative = 8.0,
    b: NotNegative = 1.0,
    adjust: Literal["sigmoid", "constant"] = "sigmoid",
    ratio_limit: Fraction = 1.0,
) -> Ratio:
    """r = t·max(0, 1 − q^−(stage+1)·n(t)), n(t) = 1 + k·sigmoid(−b·t); `adjust="constant"`: n = 1. r/t stays at
    most `ratio_limit`, and 1 − 2^−14 in float32: stages that would come nearer have the same gap.

    Where r = 0 the target is the clean data itself, so the model learns to denoise; every stage brings r nearer to t.
    With q = 2 and k = 8, r/t in the first stage is 0 at t = 1, 0.47 at t = 5 and 0.5 at t = 80; in the eighth it is
    0.988 at t = 1.   [Geng et al. 2024, ECT, eq. 14 and 16]

    Args:   q: > 1. stage: step -> the stage, from 0; it is traced, so a new stage needs no compilation.
    Raises: ValueError naming the argument that is out of range.
    """
    if q <= 1:
        raise ValueError(f"q must be above 1, got {q}")
    if adjust not in ("sigmoid", "constant"):
        raise ValueError(f"adjust must be sigmoid or constant, got {adjust!r}")
    check_fraction("ratio_limit", ratio_limit)

    def ratio(t, step):
        adjustment = 1 + k * jax.nn.sigmoid(-b * t) if adjust == "sigmoid" else 1.0
        least = max(1 - ratio_limit, LEAST_GAP * float(jnp.finfo(t.dtype).eps))
        gap = jnp.clip(q ** -jnp.asarray(stage(step) + 1, float) * adjustment, least, 1)
        return t - t * gap  # rounded once: of t·(1 − gap) the factor would be rounded too

    return ratio


def sorted_pairs(
    times: TimeSampler,
    times_s: TimeSampler,
    *,
    apart: Fraction,
    exact: bool = False,
    single: bool = False,
    whole: Fraction = 0.0,
) -> PairSampler:
    """t, the larger of two times, and the destination s: the smaller one for a fraction `apart`, s = t for the rest.

    exact: the rest are the first samples of the batch, always as many, as in the JAX code of MeanFlow and iMF; else
        each sample is one of them with probability 1 − apart, as in MeanFlow's code for CIFAR-10.
    single: where s = t, t is the first one alone, of distribution `times`.   [Zhang et al. 2025, α-Flow]
    whole: a fraction of the batch, its last samples, whose destination is s = 0.   [Wang et al. 2025, TiM; AnyFlow]

    [Geng et al. 2025, MeanFlow, sec. 4.3; the first form of the released samplers]
    Raises: ValueError where apart or whole lies outside [0, 1].
    """
    check_fraction("apart", apart)
    check_fraction("whole", whole)

    def sample(key, batch_size, step):
        one, other, differ = two_samples(key, batch_size, times, times_s, apart, exact)
        larger = jnp.maximum(one, other)
        t = jnp.where(differ, larger, one) if single else larger
        s = jnp.where(differ, jnp.minimum(one, other), t)
        if whole:
            s = jnp.where(jnp.arange(batch_size) < batch_size - part_of(whole, batch_size), s, 0.0)
        return Times(t=t, s=s)

    return sample


def capped_pairs(times: TimeSampler, times_s: TimeSampler, *, apart: Fraction, exact: bool = False) -> PairSampler:
    """t, and the destination s = min(t, another time) for a fraction `apart`; s = t for the rest.

    `exact` is as in `sorted_pairs`. Unlike there, t keeps its own distribution, and s = t occurs more often than with
    probability 1 − apart.
    [Geng et al. 2025, MeanFlow; the second form of the released samplers, for CIFAR-10]
    Raises: ValueError where apart lies outside [0, 1].
    """
    check_fraction("apart", apart)

    def sample(key, batch_size, step):
        t, other, differ = two_samples(key, batch_size, times, times_s, apart, exact)
        return Times(t=t, s=jnp.where(differ, jnp.minimum(t, other), t))

    return sample


def two_samples(key, batch_size, times, times_s, apart, exact):
    """A time of each distribution, (b,), and where both count: for the fraction `apart`, the last ones if `exact`."""
    t_key, s_key, apart_key = jax.random.split(key, 3)
    if exact:
        # a number of samples, and not a chance for each: the first ones have s = t
        differ = jnp.arange(batch_size) >= part_of(1 - apart, batch_size)
    else:
        differ = jax.random.uniform(apart_key, (batch_size,)) < apart
    return times(t_key, batch_size), times_s(s_key, batch_size), differ


def check_fraction(name: str, fraction: float) -> None:
    """Raises ValueError where the fraction lies outside [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {fraction}")


def between(pairs: PairSampler, fraction: Schedule) -> PairSampler:
    """t and s of the pairs, and between them r = α·s + (1 − α)·t, α = fraction(step).   [Zhang et al. 2025, α-Flow]"""

    def sample(key, batch_size, step):
        sampled = pairs(key, batch_size, step)
        t, s = sampled.t, sampled.destination
        return Times(t=t, r=t + fraction(step) * (s - t), s=s)

    return sample


def dyadic_pairs(*, steps: Count, fraction: float, t_max: float = 1.0) -> PairSampler:
    """Times on dyadic grids, for shortcut models: [0, t_max] in 1, 2, 4, … or `steps` equal intervals.

    Each sample of the first `fraction` of the batch takes one of the grids coarser than `steps`, all equally probable,
    and one of its intervals: t and s are the ends, r is the middle. Each of the rest takes an interval of the finest
    grid; there r = s, because it does not learn from half steps.   [Frans et al. 2025, alg. 1 and the released code]

    Args:   steps: intervals of the finest grid, a power of two.
    Raises: ValueError where steps is not a power of two that is at least 2, or fraction lies outside [0, 1].
    """
    levels = round(math.log2(max(steps, 1)))
    if steps < 2 or 2**levels != steps:
        raise ValueError(f"steps must be a power of two from 2 on, got {steps}")
    check_fraction("fraction", fraction)

    def sample(key, batch_size, step):
        level_key, place_key = jax.random.split(key)
        halved = jnp.arange(batch_size) < part_of(fraction, batch_size)
        # of each sample: the number of its grid's intervals, and the one that it takes
        count = jnp.where(halved, 2 ** jax.random.randint(level_key, (batch_size,), 0, levels), steps).astype(float)
        place = jnp.floor(jax.random.uniform(place_key, (batch_size,)) * count)
        t, s = (t_max * (place + 1) / count, t_max * place / count)
        return Times(t=t, r=jnp.where(halved, (t + s) / 2, s), s=s)

    return sample


def segmented(pairs: PairSampler, edges: Float64[np.ndarray, " n"]) -> PairSampler:
    """The pairs with s, the lower edge of the segment in which t lies; an r below s is replaced by s.

    [Heek et al. 2024, multistep consistency models, sec. 3]

    edges: ascending; the first is the lowest time. t above the last edge belongs to the last segment.
    """

    def sample(key, batch_size, step):
        sampled = pairs(key, batch_size, step)
        t, r = sampled.t, sampled.target
        # an edge belongs to the segment below it, also where the grid of t rounds it up
        segment = jnp.searchsorted(jnp.asarray(edges * (1 + 1e-6)), t, side="left") - 1
        s = jnp.asarray(edges, t.dtype)[jnp.clip(segment, 0, len(edges) - 2)]
        return Times(t=t, r=jnp.maximum(r, s), s=s)

    return sample


def skipping_pairs(*, steps: Count, skip: Count) -> PairSampler:
    """t = (i + skip)/steps and r = i/steps, i uniform: `skip` steps of a discrete model apart.   [Luo et al. 2023]

    Raises: ValueError where skip lies outside [1, steps).
    """
    if not 1 <= skip < steps:
        raise ValueError(f"skip must lie between 1 and steps={steps}, got {skip}")

    def sample(key, batch_size, step):
        i = jax.random.randint(key, (batch_size,), 0, steps - skip).astype(float)
        return Times(t=(i + skip) / steps, r=i / steps)

    return sample


def ddim_grid_pairs(*, steps: Count, skip: Count) -> PairSampler:
    """Neighbours on the grid of a DDIM sampler of steps/skip steps: t = (skip·(i + 1) − 1)/steps with i uniform, and
    r = max(t − skip/steps, 0).   [Luo et al. 2023, released code]

    The grid is that of the student's samplers, 19, 39, …, 999 of 1000 with skip = 20, and r = 0 for the first of them.
    Raises: ValueError where skip lies outside [2, steps].
    """
    if not 2 <= skip <= steps:
        raise ValueError(f"skip must lie between 2 and steps={steps}, got {skip}")

    def sample(key, batch_size, step):
        start = skip * (jax.random.randint(key, (batch_size,), 0, steps // skip) + 1) - 1
        return Times(t=start / steps, r=jnp.maximum(start - skip, 0) / steps)

    return sample
