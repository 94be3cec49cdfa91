"""Samplers of `Times` for flow maps: three times of a trajectory, and times by their distance."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from cmjax.core.batch import Times
from cmjax.core.pairs import PairSampler, check_fraction, two_samples
from cmjax.core.times import part_of
from cmjax.core.typing import Schedule, TimeSampler
from cmjax.ranges import Fraction


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
        count = 1 + jnp.searchsorted(jnp.asarray(below, jnp.float32), jax.random.uniform(count_key), side="right")
        count = jnp.minimum(count, last)
        t, s = (jax.random.uniform(of, (batch_size,)) for of in (t_key, s_key))
        place = count + jnp.floor(t * (last - count + 1)).astype(int)
        end = jnp.floor(s * (place - count + 1)).astype(int)
        alone, level = jnp.arange(batch_size) < part_of(fraction, batch_size), levels(level_key, batch_size)
        return Times(*(jnp.where(alone, level, points[i]) for i in (place, place - count, end)))

    return sample
