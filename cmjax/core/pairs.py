"""Where on a trajectory the student and its target look: samplers of `Pair(t, r)` for a batch."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from cmjax.core.curricula import Curriculum
from cmjax.core.grids import karras_grid
from cmjax.core.typing import Pair, PairSampler

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


def lognormal_times(*, mean: float, std: float) -> PairSampler:
    """ln t ~ N(mean, std²) and r = 0, the clean data: the pairs of a denoiser.   [Karras et al. 2022, table 1]"""
    if std <= 0:
        raise ValueError(f"std must be positive, got {std}")

    def draw(key, batch_size, step):
        t = jnp.exp(mean + std * jax.random.normal(key, (batch_size,)))
        return Pair(t=t, r=jnp.zeros_like(t))

    return draw
