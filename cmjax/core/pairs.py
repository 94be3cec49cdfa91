"""Where on a trajectory the student and its target look: samplers of `Pair(t, r)` for a batch."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from cmjax.core.curricula import Curriculum
from cmjax.core.grids import karras_grid
from cmjax.core.typing import Pair, PairSampler, PerSample, Schedule, Step, TimeSampler

Ratio = Callable[[PerSample, Step], PerSample]
"""(t, step) -> r, the target's time, which a curriculum brings nearer to t."""

IntervalProbabilities = Callable[[Float64[np.ndarray, " n"]], Float64[np.ndarray, " n-1"]]
"""A grid -> the probability of each of its intervals."""


def uniform_intervals(grid: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n-1"]:
    """Every interval with probability 1/(n−1).   [Song et al. 2023, alg. 2 and 3]"""
    return np.full(len(grid) - 1, 1 / (len(grid) - 1))


def lognormal_intervals(grid: Float64[np.ndarray, " n"], *, mean: float, std: float) -> Float64[np.ndarray, " n-1"]:
    """p(i) ∝ Pr(t_i < t < t_{i+1}) for ln t ~ N(mean, std²).   [Song & Dhariwal 2024, sec. 3.5]

    Raises: ValueError where std is not positive.
    """
    if std <= 0:
        raise ValueError(f"std must be positive, got {std}")
    below = np.array([math.erf((math.log(t) - mean) / (math.sqrt(2) * std)) for t in grid])
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

    Every stage's grid and distribution is tabulated in float64 here; the sampler returned looks a row up, so N(k)
    may grow without another compilation.
    """
    stages = [karras_grid(int(n), t_min=t_min, t_max=t_max, rho=rho) for n in curriculum.num_scales]
    longest = max(len(grid) for grid in stages)
    grids = np.stack([np.pad(grid, (0, longest - len(grid)), mode="edge") for grid in stages])
    cumulative = np.ones((len(stages), longest - 1))
    for row, grid in zip(cumulative, stages, strict=True):
        row[: len(grid) - 2] = np.cumsum(probabilities(grid))[:-1]

    def draw(key, batch_size, step):
        stage = curriculum.stage(step)
        grid = jnp.asarray(grids)[stage]
        n = jnp.searchsorted(jnp.asarray(cumulative)[stage], jax.random.uniform(key, (batch_size,)), side="right")
        return Pair(t=grid[n + 1], r=grid[n])

    return draw


def with_clean(times: TimeSampler) -> PairSampler:
    """r = 0, the clean data: the pairs of a denoiser."""

    def draw(key, batch_size, step):
        t = times(key, batch_size)
        return Pair(t=t, r=jnp.zeros_like(t))

    return draw


def ratio_pairs(times: TimeSampler, ratio: Ratio) -> PairSampler:
    """t of a continuous distribution and r as a share of it.   [Geng et al. 2024, ECT]"""

    def draw(key, batch_size, step):
        t = times(key, batch_size)
        return Pair(t=t, r=ratio(t, step))

    return draw


def shrinking_gap(*, q: float, stage: Schedule, k: float = 8.0, b: float = 1.0, adjust: str = "sigmoid") -> Ratio:
    """r = t·max(0, 1 − q^−(stage+1)·n(t)), n(t) = 1 + k·sigmoid(−b·t); `adjust="constant"`: n = 1.

    The first stages have r = 0, where the target is the clean data itself and the model a denoiser; later ones bring r
    nearer to t.   [Geng et al. 2024, ECT, eq. 14 and 16]

    Args:   q: > 1. stage: step -> the stage, from 0; traced, so that it is no new compilation.
    Raises: ValueError naming the argument that is out of range.
    """
    if q <= 1:
        raise ValueError(f"q must be above 1, got {q}")
    if adjust not in ("sigmoid", "constant"):
        raise ValueError(f"adjust must be sigmoid or constant, got {adjust!r}")

    def ratio(t, step):
        adjustment = 1 + k * jax.nn.sigmoid(-b * t) if adjust == "sigmoid" else 1.0
        return t * jnp.maximum(1 - q ** -(stage(step) + 1.0) * adjustment, 0)

    return ratio


def sorted_pairs(times: TimeSampler, times_s: TimeSampler, *, apart: float) -> PairSampler:
    """t and the destination s: of two draws the larger and the smaller; exactly s = t for all but a share `apart`.

    r = s: tangent losses have no target's time of their own.   [Geng et al. 2025, MeanFlow, sec. 4.3]
    Raises: ValueError where apart lies outside [0, 1].
    """
    if not 0 <= apart <= 1:
        raise ValueError(f"apart must lie in [0, 1], got {apart}")

    def draw(key, batch_size, step):
        t_key, s_key, apart_key = jax.random.split(key, 3)
        drawn, other = times(t_key, batch_size), times_s(s_key, batch_size)
        t = jnp.maximum(drawn, other)
        s = jnp.where(jax.random.uniform(apart_key, (batch_size,)) < apart, jnp.minimum(drawn, other), t)
        return Pair(t=t, r=s, s=s)

    return draw


def between(pairs: PairSampler, share: Schedule) -> PairSampler:
    """(t, s) of the pairs' (t, r), and between them r = α·s + (1 − α)·t with α = share(step).   [Zhang et al. 2025]"""

    def draw(key, batch_size, step):
        t, s, _ = pairs(key, batch_size, step)
        return Pair(t=t, r=t + share(step) * (s - t), s=s)

    return draw


def part_of(share: float, batch_size: int) -> int:
    """How many samples a share of the batch is, at least one unless it is 0."""
    return max(round(share * batch_size), int(share > 0))


def dyadic_pairs(*, steps: int, share: float, t_max: float = 1.0) -> PairSampler:
    """Of the first `share` of the batch t, s and r halfway: t − s = t_max·2^−j with 1 <= 2^j < steps and t a multiple
    of it; j uniform. Of the rest, whose half steps nothing else teaches, one of `steps` steps: r = s = t − t_max/steps.

    `steps`, a power of two, is the finest number of steps.   [Frans et al. 2025, alg. 1 and its released code]
    Raises: ValueError where steps is no power of two from 2 on, or share lies outside [0, 1].
    """
    levels = round(math.log2(max(steps, 1)))
    if steps < 2 or 2**levels != steps:
        raise ValueError(f"steps must be a power of two from 2 on, got {steps}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")

    def draw(key, batch_size, step):
        level_key, place_key = jax.random.split(key)
        halved = jnp.arange(batch_size) < part_of(share, batch_size)
        count = jnp.where(halved, 2 ** jax.random.randint(level_key, (batch_size,), 0, levels), steps)
        place = jnp.floor(jax.random.uniform(place_key, (batch_size,)) * count)
        t, s = (t_max * (place + 1) / count, t_max * place / count)
        return Pair(t=t, r=jnp.where(halved, (t + s) / 2, s), s=s)

    return draw


def segmented(pairs: PairSampler, edges: Float64[np.ndarray, " n"]) -> PairSampler:
    """The pairs with s the lower edge of the segment that t lies in, and r no lower.   [Heek et al. 2024, sec. 3]

    edges: ascending; the first is the lowest time, and t above the last belongs to the last segment.
    """

    def draw(key, batch_size, step):
        t, r, _ = pairs(key, batch_size, step)
        segment = jnp.searchsorted(jnp.asarray(edges), t, side="left") - 1  # an edge belongs to the segment below it
        s = jnp.asarray(edges, t.dtype)[jnp.clip(segment, 0, len(edges) - 2)]
        return Pair(t=t, r=jnp.maximum(r, s), s=s)

    return draw


def skipping_pairs(*, steps: int, skip: int) -> PairSampler:
    """t = (i + skip)/steps and r = i/steps, i uniform: `skip` of a discrete model's steps at once.   [Luo et al. 2023]

    Raises: ValueError where skip lies outside [1, steps).
    """
    if not 1 <= skip < steps:
        raise ValueError(f"skip must lie between 1 and steps={steps}, got {skip}")

    def draw(key, batch_size, step):
        i = jax.random.randint(key, (batch_size,), 0, steps - skip)
        return Pair(t=(i + skip) / steps, r=i / steps)

    return draw
