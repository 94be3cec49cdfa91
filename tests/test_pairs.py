"""Pairs: neighbours on the exact grid of N(k), at the stated frequencies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmjax.core import curricula
from cmjax.core.grids import karras_grid
from cmjax.core.pairs import grid_pairs, lognormal_intervals, uniform_intervals, with_clean
from cmjax.core.paths import ve
from cmjax.core.times import lognormal

GRID = {"t_min": 0.002, "t_max": 80.0, "rho": 7.0}
GROWING = curricula.doubling(s0=2, s1=64, total_steps=600)
LOGNORMAL = partial(lognormal_intervals, mean=-1.1, std=2.0)


def intervals_drawn(pair, n):
    """Indices on the grid of n points, after checking that each pair is two neighbours of that grid, to the bit."""
    grid = karras_grid(n, **GRID).astype(np.float32)
    index = np.searchsorted(grid, np.asarray(pair.r))
    np.testing.assert_array_equal(pair.r, grid[index])
    np.testing.assert_array_equal(pair.t, grid[index + 1])
    return index


@pytest.mark.parametrize("probabilities", [uniform_intervals, LOGNORMAL], ids=["uniform", "lognormal"])
def test_pairs_are_neighbours_on_the_grid_of_each_stage(probabilities):
    draw = jax.jit(grid_pairs(GROWING, **GRID, probabilities=probabilities), static_argnums=1)
    for start, n in zip(GROWING.starts.tolist(), GROWING.num_scales.tolist(), strict=True):
        for step in (start, start + 99):
            index = intervals_drawn(draw(jax.random.key(step), 512, jnp.int32(step)), n)
            assert index.max() <= n - 2
    assert draw._cache_size() == 1


@pytest.mark.parametrize("probabilities", [uniform_intervals, LOGNORMAL], ids=["uniform", "lognormal"])
def test_the_extreme_draws_are_the_ends_of_the_grid(probabilities, monkeypatch):
    draw = grid_pairs(GROWING, **GRID, probabilities=probabilities)
    ends = jnp.array([0, 1 - 2**-24], jnp.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: ends)
    for step in GROWING.starts.tolist():
        pair = draw(jax.random.key(0), 2, step)
        assert pair.r[0] == np.float32(GRID["t_min"])
        assert pair.t[1] == np.float32(GRID["t_max"])


def test_uniform_frequencies():
    draw = grid_pairs(curricula.constant(num_scales=18), **GRID)
    counts = np.bincount(intervals_drawn(draw(jax.random.key(0), 17_000, 0), 18), minlength=17)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_lognormal_frequencies():
    draw = grid_pairs(curricula.constant(num_scales=11), **GRID, probabilities=LOGNORMAL)
    counts = np.bincount(intervals_drawn(draw(jax.random.key(0), 50_000, 0), 11), minlength=10)
    mass = np.diff(stats.norm(-1.1, 2.0).cdf(np.log(karras_grid(11, **GRID))))
    assert stats.chisquare(counts, 50_000 * mass / mass.sum()).pvalue > 1e-3


def test_interval_probabilities():
    grid = karras_grid(40, **GRID)
    mass = np.diff(stats.norm(-1.1, 2.0).cdf(np.log(grid)))
    np.testing.assert_allclose(LOGNORMAL(grid), mass / mass.sum(), rtol=1e-12)
    np.testing.assert_allclose(uniform_intervals(grid), 1 / 39, rtol=1e-12)
    with pytest.raises(ValueError, match="std"):
        lognormal_intervals(grid, mean=0.0, std=0.0)


def test_lognormal_times_and_the_clean_data():
    pair = with_clean(lognormal(mean=-1.2, std=1.2, path=ve))(jax.random.key(0), 20_000, 0)
    assert stats.kstest(np.log(pair.t), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    assert not np.any(pair.r)
    with pytest.raises(ValueError, match="std"):
        lognormal(mean=0.0, std=-1.0, path=ve)


def test_pairs_are_a_function_of_the_key():
    draw = grid_pairs(curricula.constant(num_scales=500), **GRID)
    one, again, other = (draw(jax.random.key(seed), 16, 0).t for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
