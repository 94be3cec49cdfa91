"""Figures against their definitions written out, against SciPy, and against the peers' recorded numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax.metrics import functional


@pytest.fixture(scope="module")
def recorded():
    path = Path(os.environ.get("CMJAX_SHARED", "../shared")) / "parity" / "evalfid.npz"
    if not path.exists():
        pytest.skip(f"the peers' recorded numbers are not at {path}")
    return np.load(path)


def _features(seed, n, d, rank=None):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank or d)) @ rng.normal(size=(rank or d, d)) + rng.normal(size=d)


def _prdc_by_definition(real, fake, k):
    def distance(a, b):
        return np.sqrt(np.sum((a[:, None] - b[None]) ** 2, axis=2))

    def radius(a):
        return np.sort(distance(a, a), axis=1)[:, k]  # place 0 is the point itself

    cross = distance(real, fake)
    in_real, in_fake = cross <= radius(real)[:, None], cross <= radius(fake)[None]
    return (
        in_real.any(axis=0).mean(),
        in_fake.any(axis=1).mean(),
        in_real.sum() / (k * len(fake)),
        in_real.any(axis=1).mean(),
    )


def test_frechet_distance_is_the_peers(recorded):
    assert functional.frechet_distance(recorded["feat_ref"], recorded["feat_gen"]) == pytest.approx(
        float(recorded["fid"]), rel=1e-10
    )


@pytest.mark.parametrize("rank", [None, 3])
def test_frechet_distance_is_the_matrix_square_root_formula(rank):
    x, y = _features(0, 50, 12, rank), _features(1, 40, 12)
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # a small ridge gives sqrtm the full rank that it needs; it moves the distance by about its size
    ridge = 0 if rank is None else 1e-12 * np.eye(12)
    root = scipy.linalg.sqrtm((cov_x + ridge) @ cov_y)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x + cov_y - 2 * np.real(root))
    assert functional.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10 if rank is None else 1e-5)
    assert functional.frechet_distance(functional.statistics(x), y) == functional.frechet_distance(
        x, functional.statistics(y)
    )


def test_frechet_distance_of_few_images_in_many_dimensions():
    x, y = _features(2, 10, 40), _features(3, 8, 40)
    assert functional.frechet_distance(x, y) == pytest.approx(functional.frechet_distance(y, x), rel=1e-6)
    scale = np.trace(functional.statistics(x).cov)
    assert functional.frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * scale)
    assert functional.frechet_distance(x, x + 3.0) == pytest.approx(40 * 9, abs=1e-6 * scale)


def test_frechet_distance_in_one_dimension_is_of_means_and_stds():
    x, y = _features(4, 30, 1), _features(5, 20, 1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert functional.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), d=st.integers(1, 4), levels=st.sampled_from([3, 1000]))
def test_prdc_is_its_definition_also_on_ties_and_copies(seed, k, d, levels):
    rng = np.random.default_rng(seed)
    real, fake = (rng.integers(0, levels, size=(n, d)).astype(np.float64) for n in (31, 23))
    fake[:5] = real[:5]
    assert functional.prdc(real, fake, k=k) == pytest.approx(_prdc_by_definition(real, fake, k), rel=1e-12)


def test_prdc_in_blocks_is_prdc_at_once(monkeypatch):
    real, fake = _features(6, 100, 5), _features(7, 90, 5)
    expected = _prdc_by_definition(real, fake, 5)
    monkeypatch.setattr(functional, "BLOCK_ELEMENTS", 700)  # 7 rows a block, the last one smaller
    assert functional.prdc(real, fake) == pytest.approx(expected, rel=1e-12)
    assert functional.prdc(real, fake, real_radii=functional.squared_radii(real, k=5)) == pytest.approx(
        expected, rel=1e-12
    )


def test_prdc_survives_a_mean_much_larger_than_the_distances():
    real, fake = _features(8, 60, 3), _features(9, 50, 3)
    assert functional.prdc(real + 2.0**26, fake + 2.0**26) == functional.prdc(real, fake)


def test_prdc_of_the_same_distribution_and_of_far_ones():
    same = functional.prdc(_features(10, 1000, 2)[:500], _features(10, 1000, 2)[500:])
    assert same == pytest.approx((1, 1, 1, 1), abs=0.1)
    assert functional.prdc(np.eye(20), np.eye(20) + 100) == (0, 0, 0, 0)


def test_precision_and_recall_are_the_peers(recorded):
    ours = functional.prdc(recorded["feat_ref"], recorded["feat_gen"], k=3)
    assert ours.precision == pytest.approx(float(recorded["precision_k3"]), rel=1e-12)
    assert ours.recall == pytest.approx(float(recorded["recall_k3"]), rel=1e-12)


def test_inception_score_and_kid_are_the_peers(recorded):
    for size in (100, 5000):
        ours = functional.inception_score(recorded["probs"], split_size=size)
        assert ours == pytest.approx(float(recorded[f"is_split{size}"]), rel=1e-10)
    ours = functional.kid(recorded["feat_gen"][:400], recorded["feat_ref"][:400])
    assert ours == pytest.approx(float(recorded["kid_first400"]), rel=1e-10)


def test_inception_score_counts_the_classes_that_are_predicted():
    certain = np.eye(7)[np.arange(72) % 4]
    assert functional.inception_score(certain) == pytest.approx(4)
    assert functional.inception_score(np.full((70, 7), 1 / 7)) == pytest.approx(1)


def test_kid_leaves_out_only_the_diagonal(monkeypatch):
    x, y = _features(11, 13, 4), _features(12, 9, 4)

    def kernel(a, b):
        return (a @ b.T / 4 + 1) ** 3

    expected = (
        kernel(x, x)[~np.eye(13, dtype=bool)].mean()
        + kernel(y, y)[~np.eye(9, dtype=bool)].mean()
        - 2 * kernel(x, y).mean()
    )
    monkeypatch.setattr(functional, "BLOCK_ELEMENTS", 30)
    assert functional.kid(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [10, 4000])
def test_fitted_gaussian_has_the_moments_of_the_images(n):
    rng = np.random.default_rng(13)
    # pixels that stay clear of 0 and 255, so that clipping does not move the moments; n = 10 lacks full rank
    images = np.clip(128 + 8 * _features(14, n, 12).reshape(n, 2, 2, 3), 60, 200).astype(np.uint8)
    samples = functional.fitted_gaussian(images, 20_000, int(rng.integers(1000)))
    assert samples.dtype == np.uint8
    assert samples.shape == (20_000, 2, 2, 3)
    wanted, got = (functional.statistics(a.reshape(len(a), -1)) for a in (images, samples))
    std = np.sqrt(np.diag(wanted.cov))
    assert np.max(np.abs(got.mean - wanted.mean) / std) < 0.04
    assert np.max(np.abs(got.cov - wanted.cov) / np.outer(std, std)) < 0.06


def test_fitted_gaussian_clips_and_depends_on_the_seed_alone():
    images = np.where(np.arange(8).reshape(8, 1, 1, 1) % 2, 255, 0).astype(np.uint8)
    samples = functional.fitted_gaussian(images, 1000, 3)
    # mean 127.5, std 136: a sixth of the samples lies beyond each end
    assert np.mean(samples == 0) == pytest.approx(0.175, abs=0.04)
    assert np.mean(samples == 255) == pytest.approx(0.175, abs=0.04)
    np.testing.assert_array_equal(samples, functional.fitted_gaussian(images, 1000, 3))
    assert np.any(samples != functional.fitted_gaussian(images, 1000, 4))


GOOD = np.random.default_rng(15).normal(size=(10, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.frechet_distance(GOOD, GOOD[:, :2]), "equally many dimensions, got 3 and 2"),
        (lambda: functional.frechet_distance(GOOD[:1], GOOD), r"n >= 2 .* got shape \(1, 3\)"),
        (lambda: functional.statistics(np.where(GOOD > 1, np.nan, GOOD)), "features must be finite"),
        (lambda: functional.prdc(GOOD, GOOD, k=0), "k must be at least 1"),
        (lambda: functional.prdc(GOOD, GOOD[:5], k=5), "less than the number of rows, 5, got 5"),
        (lambda: functional.prdc(GOOD, GOOD[:, :2]), "equally many columns, got 3 and 2"),
        (lambda: functional.prdc(GOOD, GOOD, real_radii=np.ones(9)), "one entry for each of 10 reals"),
        (lambda: functional.kid(GOOD, GOOD[:, :2]), "equally many columns, got 3 and 2"),
        (lambda: functional.inception_score(np.abs(GOOD)), "rows summing to 1"),
        (lambda: functional.inception_score(np.eye(3), split_size=0), "split_size must be at least 1, got 0"),
        (lambda: functional.fitted_gaussian(np.zeros((4, 2, 2, 1), np.float32), 3, 0), "uint8"),
        (lambda: functional.fitted_gaussian(np.zeros((4, 2, 2, 1), np.uint8), 0, 0), "n must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
