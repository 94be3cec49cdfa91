"""Pairs: neighbours on the exact grid of N(k), at the stated frequencies, and the pairs off any grid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmjax import Times
from cmjax.core import curricula
from cmjax.core.grids import karras_grid
from cmjax.core.pairs import (
    between,
    capped_pairs,
    ddim_grid_pairs,
    dyadic_pairs,
    grid_pairs,
    lognormal_intervals,
    part_of,
    ratio_pairs,
    segmented,
    shrinking_gap,
    single,
    skipping_pairs,
    sorted_pairs,
    uniform_intervals,
)
from cmjax.core.paths import ve
from cmjax.core.times import held_at, logit_normal, lognormal, student, uniform

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


def test_lognormal_times_alone():
    drawn = single(lognormal(mean=-1.2, std=1.2, path=ve))(jax.random.key(0), 20_000, 0)
    assert stats.kstest(np.log(drawn.t), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    assert (drawn.r, drawn.s) == (None, None)
    with pytest.raises(ValueError, match="std"):
        lognormal(mean=0.0, std=-1.0, path=ve)


def test_pairs_are_a_function_of_the_key():
    draw = grid_pairs(curricula.constant(num_scales=500), **GRID)
    one, again, other = (draw(jax.random.key(seed), 16, 0).t for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_times_that_are_missing_are_named():
    with pytest.raises(ValueError, match="destination"):
        _ = Times(jnp.ones(1), jnp.ones(1)).destination
    with pytest.raises(ValueError, match="time of the target"):
        _ = Times(jnp.ones(1)).target


def test_the_gap_shrinks_with_the_step_in_one_program():
    """Stage by stage: from the clean data to the nearest r, q^−(stage + 1)·(1 + 8·sigmoid(−t)) of t below it."""
    draw = ratio_pairs(lognormal(mean=-1.1, std=2.0, path=ve), shrinking_gap(q=2.0, stage=lambda step: step // 100))
    draw = jax.jit(draw, static_argnums=1)
    for stage in range(8):
        t, r, s = draw(jax.random.key(stage), 1000, jnp.int32(100 * stage + 57))
        assert s is None
        t = np.asarray(t, np.float64)
        fraction = 2.0 ** -(stage + 1) * (1 + 8 / (1 + np.exp(t)))
        np.testing.assert_allclose(r, t * np.maximum(1 - fraction, 0), rtol=1e-4, atol=1e-6)
        assert np.all(r < t)
    assert draw._cache_size() == 1
    assert np.any(draw(jax.random.key(0), 1000, jnp.int32(0)).r == 0)


@pytest.mark.parametrize(("knobs", "name"), [({"q": 1.0}, "q must"), ({"q": 2.0, "adjust": "linear"}, "adjust")])
def test_a_gap_that_does_not_shrink_is_refused(knobs, name):
    with pytest.raises((ValueError, TypeError), match=name):
        shrinking_gap(stage=lambda step: step, **knobs)


@pytest.mark.parametrize("apart", [0.0, 0.25, 1.0])
def test_sorted_pairs_are_exactly_equal_but_for_a_share(apart):
    """t is the larger of the two draws on the diagonal too, and s the smaller where they are apart."""
    t_of, s_of = logit_normal(mean=-0.4, std=1.0), logit_normal(mean=-1.0, std=1.6)
    t, _, s = sorted_pairs(t_of, s_of, apart=apart)(jax.random.key(0), 20_000, 0)
    different = np.asarray(s != t)
    assert np.all(s <= t)
    assert stats.binomtest(int(different.sum()), 20_000, apart).pvalue > 1e-3

    def larger(x):
        logit = np.log(x / (1 - x))
        return stats.norm(-0.4, 1.0).cdf(logit) * stats.norm(-1.0, 1.6).cdf(logit)

    def smaller(x):
        logit = np.log(x / (1 - x))
        return 1 - stats.norm(-0.4, 1.0).sf(logit) * stats.norm(-1.0, 1.6).sf(logit)

    assert stats.kstest(np.asarray(t, np.float64), larger).pvalue > 1e-3
    if apart:
        assert stats.kstest(np.asarray(s, np.float64)[different], smaller).pvalue > 1e-3
    with pytest.raises(ValueError, match="apart"):
        sorted_pairs(t_of, s_of, apart=1.5)


@pytest.mark.parametrize("pairs", [sorted_pairs, capped_pairs])
def test_shares_may_be_exact(pairs):
    """Always as many samples, the first of the batch, have s = t; nearly all others do not."""
    times = logit_normal(mean=0.0, std=1.0)
    for seed in range(3):
        t, _, s = pairs(times, times, apart=0.25, exact=True)(jax.random.key(seed), 400, 0)
        np.testing.assert_array_equal((t == s)[:300], True)
        assert np.any(t[300:] != s[300:])
        assert pairs is capped_pairs or np.all(t[300:] > s[300:])


def test_a_time_of_flow_matching_may_be_a_single_draw():
    """α-Flow's: its median is that of the distribution, .401, where the larger of two has .537; s < t is as it was."""
    times = logit_normal(mean=-0.4, std=1.0)
    two, one = (
        sorted_pairs(times, times, apart=0.5, exact=True, single=single)(jax.random.key(0), 40_000, 0)
        for single in (False, True)
    )
    medians = [float(jnp.median(pair.t[:20_000])) for pair in (two, one)]
    np.testing.assert_allclose(medians, [0.537, 0.401], atol=0.008)
    np.testing.assert_array_equal(one.t[:20_000], one.s[:20_000])
    for first, second in zip((two.t, two.s), (one.t, one.s), strict=True):
        np.testing.assert_array_equal(first[20_000:], second[20_000:])


def test_capped_pairs_keep_the_distribution_of_t():
    """Chosen to be equal first, then s is no larger than t: the second form of the authors' sampler."""
    t_of, s_of = logit_normal(mean=-0.6, std=1.6), logit_normal(mean=-1.0, std=1.6)
    t, r, s = capped_pairs(t_of, s_of, apart=0.75)(jax.random.key(0), 40_000, 0)
    logit_t, logit_s = (np.log(x / (1 - x)) for x in (np.asarray(t, np.float64), np.asarray(s, np.float64)))
    assert r is None
    assert np.all(s <= t)
    assert stats.kstest(logit_t, stats.norm(-0.6, 1.6).cdf).pvalue > 1e-3
    apart = 0.75 * stats.norm.cdf(0.4 / np.hypot(1.6, 1.6))  # the second draw is the smaller
    assert stats.binomtest(int(np.sum(s < t)), 40_000, apart).pvalue > 1e-3
    assert np.mean(logit_s[s < t]) < np.mean(logit_t[s < t])
    with pytest.raises(ValueError, match="apart"):
        capped_pairs(t_of, s_of, apart=-0.1)


def test_a_share_of_the_batch_is_held_at_the_boundary():
    draw = held_at(student(df=0.01, scale=0.2, path=ve), at=1.0, fraction=0.25)
    t = draw(jax.random.key(0), 64)
    np.testing.assert_array_equal(t[:16], 1.0)
    assert np.all(t[16:] > 1)
    assert len(np.unique(t[16:])) > 40


def test_between_divides_the_way_from_t_to_s():
    draw = sorted_pairs(logit_normal(mean=-0.4, std=1.0), logit_normal(mean=-0.4, std=1.0), apart=0.5)
    t, _, s = draw(jax.random.key(0), 1000, 0)
    for step, alpha in ((0, 1.0), (1, 0.5), (3, 0.25)):
        pair = between(draw, lambda step: 1 / (1 + step))(jax.random.key(0), 1000, step)
        np.testing.assert_array_equal(pair.t, t)
        np.testing.assert_array_equal(pair.s, s)
        np.testing.assert_allclose(pair.r, alpha * s + (1 - alpha) * t, rtol=1e-6)
        np.testing.assert_array_equal(pair.r[t == s], t[t == s])


def test_dyadic_steps_and_their_halves():
    """All of it in binary fractions, so to the bit; every step of every length is drawn alike."""
    draw = jax.jit(dyadic_pairs(steps=8, fraction=0.75), static_argnums=1)
    t, r, s = (np.asarray(time, np.float64) for time in draw(jax.random.key(0), 20_000, 0))
    halved = np.arange(20_000) < 15_000
    length = (t - s)[halved]
    assert set(length) == {1.0, 0.5, 0.25}  # whose halves are the finest, 1/8
    np.testing.assert_array_equal(r[halved], (s + (t - s) / 2)[halved])
    assert stats.chisquare(np.unique(length, return_counts=True)[1]).pvalue > 1e-3
    places = (t[halved] / length)[length == 0.25]
    np.testing.assert_array_equal(np.unique(places), [1, 2, 3, 4])
    assert stats.chisquare(np.unique(places, return_counts=True)[1]).pvalue > 1e-3
    np.testing.assert_array_equal((t - s)[~halved], 1 / 8)
    np.testing.assert_array_equal(r[~halved], s[~halved])
    assert stats.chisquare(np.unique(t[~halved], return_counts=True)[1]).pvalue > 1e-3
    assert len(np.unique(t[~halved])) == 8


def test_every_half_step_is_taught():
    """What the longest steps are made of, down to the finest, is itself among the steps that are drawn."""
    t, r, s = (
        np.asarray(time) for time in dyadic_pairs(steps=16, fraction=0.5, t_max=4.0)(jax.random.key(0), 20_000, 0)
    )
    drawn = set(zip(t, s, strict=True))
    halves = {*zip(t[:10_000], r[:10_000], strict=True), *zip(r[:10_000], s[:10_000], strict=True)}
    assert halves <= drawn
    assert (4.0, 0.0) in drawn
    assert len(drawn) == 1 + 2 + 4 + 8 + 16


def test_the_smallest_share_is_one_sample():
    assert [part_of(fraction, 8) for fraction in (0.0, 0.01, 0.125, 0.3, 1.0)] == [0, 1, 1, 2, 8]
    _, r, s = dyadic_pairs(steps=16, fraction=0.01)(jax.random.key(0), 8, 0)
    assert np.flatnonzero(np.asarray(r != s)).tolist() == [0]


@pytest.mark.parametrize("knobs", [{"steps": 1}, {"steps": 12}, {"steps": 0}, {"steps": 8, "fraction": 1.5}])
def test_what_cannot_be_halved_is_refused(knobs):
    with pytest.raises(ValueError, match="fraction" if "fraction" in knobs else "steps"):
        dyadic_pairs(**{"fraction": 0.5, **knobs})


def test_segments_end_at_their_lower_edge():
    edges = np.array([0.0, 0.5, 1.0, 4.0])
    draw = segmented(ratio_pairs(uniform(t_min=0.001, t_max=5.0), lambda t, step: 0.6 * t), edges)
    t, r, s = (np.asarray(time) for time in jax.jit(draw, static_argnums=1)(jax.random.key(0), 5000, 0))
    for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 6.0)):
        inside = (t > low) & (t <= high)
        assert inside.sum() > 100
        np.testing.assert_array_equal(s[inside], np.float32(low))
        np.testing.assert_allclose(r[inside], np.maximum(0.6 * t[inside], low), rtol=1e-6)
    at_edges = segmented(lambda key, batch_size, step: Times(jnp.asarray([0.5, 1.0, 4.0]), jnp.zeros(3)), edges)
    np.testing.assert_array_equal(at_edges(jax.random.key(0), 3, 0).s, [0.0, 0.5, 1.0])


def test_a_ddim_grids_pairs_are_its_neighbours():
    t, r, s = ddim_grid_pairs(steps=1000, skip=20)(jax.random.key(0), 20_000, 0)
    assert s is None
    starts = np.rint(np.asarray(t) * 1000).astype(int)
    assert sorted(set(starts)) == list(range(19, 1000, 20))
    np.testing.assert_allclose(r, np.maximum(starts - 20, 0) / 1000, rtol=2e-7)
    assert stats.chisquare(np.bincount(starts // 20)).pvalue > 1e-3
    with pytest.raises(ValueError, match="skip"):
        ddim_grid_pairs(steps=10, skip=11)


@pytest.mark.parametrize("ratio_limit", [1 - 2**-14, 0.9961])
def test_the_gap_is_exact_down_to_its_limit(ratio_limit):
    """In float32, against the formula in float64, in 24 stages of q = 2."""
    t = np.geomspace(0.01, 80, 1000, dtype=np.float32)
    for stage in range(24):
        r = shrinking_gap(q=2, stage=lambda step, stage=stage: stage, ratio_limit=ratio_limit)(jnp.asarray(t), 0)
        exact = np.clip(2.0 ** -(stage + 1) * (1 + 8 / (1 + np.exp(t.astype(np.float64)))), 1 - ratio_limit, 1) * t
        np.testing.assert_allclose(t.astype(np.float64) - np.asarray(r, np.float64), exact, rtol=1.5e-3)


def test_skipping_pairs_skip_steps_of_a_discrete_model():
    t, r, s = skipping_pairs(steps=50, skip=20)(jax.random.key(0), 20_000, 0)
    assert s is None
    i = np.rint(np.asarray(r) * 50).astype(int)
    np.testing.assert_allclose(r, i / 50, rtol=2e-7)
    np.testing.assert_allclose(t, (i + 20) / 50, rtol=2e-7)
    assert stats.chisquare(np.bincount(i, minlength=30)).pvalue > 1e-3
    assert i.max() == 29
    for skip in (0, 50):
        with pytest.raises(ValueError, match="skip"):
            skipping_pairs(steps=50, skip=skip)
