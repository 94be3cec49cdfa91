"""Sums over batches are the figures of all images at once, and those of the peers."""

import numpy as np
import pytest
import scipy.linalg

from cmjax.metrics import functional
from cmjax.metrics.accumulator import Accumulator, Moments


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "evalfid.npz")


def in_batches(name, rows, size=37):
    """Features are also kept as rows."""
    names = ("features", "rows") if name == "features" else (name,)
    return [dict.fromkeys(names, rows[start : start + size]) for start in range(0, len(rows), size)]


def accumulate(batches):
    accumulator = Accumulator()
    for outputs in batches:
        accumulator.add(outputs)
    return accumulator


def test_batches_give_the_peers_figures(recorded):
    real = accumulate(in_batches("features", recorded["feat_ref"]))
    fake = accumulate(in_batches("features", recorded["feat_gen"]))
    fid = functional.frechet_distance(real.statistics(), fake.statistics())
    assert fid == pytest.approx(float(recorded["fid"]), rel=1e-9)
    x, y = real.statistics(), fake.statistics()
    root = scipy.linalg.sqrtm(x.cov @ y.cov)
    assert fid == pytest.approx(np.sum((x.mean - y.mean) ** 2) + np.trace(x.cov + y.cov - 2 * root.real), rel=1e-9)
    probabilities = accumulate(in_batches("probabilities", recorded["probs"]))
    assert probabilities.inception_score() == pytest.approx(float(recorded["is_split5000"]), rel=1e-9)


def test_kid_and_neighbours_of_the_kept_rows_are_the_peers(recorded):
    real, fake = (recorded[name].astype(np.float32).astype(np.float64) for name in ("feat_ref", "feat_gen"))
    found = functional.prdc(real, fake, k=3)
    assert found.precision == pytest.approx(float(recorded["precision_k3"]), abs=1e-6)
    assert found.recall == pytest.approx(float(recorded["recall_k3"]), abs=1e-6)
    assert functional.kid_of_subsets(recorded["feat_gen"][:400], recorded["feat_ref"][:400]) == pytest.approx(
        float(recorded["kid_first400"]), rel=1e-6
    )


def test_the_inception_score_goes_by_splits(recorded, monkeypatch):
    monkeypatch.setattr("cmjax.metrics.accumulator.SPLIT", 100)
    tally = accumulate(in_batches("probabilities", recorded["probs"]))
    assert tally.inception_score() == pytest.approx(float(recorded["is_split100"]), rel=1e-9)


def test_moments_keep_their_digits_far_from_zero():
    rows = np.random.default_rng(0).normal(size=(400, 5)) + 1e6
    moments = Moments(5)
    for start in range(0, 400, 50):
        moments.add(rows[start : start + 50])
    np.testing.assert_allclose(moments.statistics().cov, np.cov(rows, rowvar=False), rtol=1e-6)


def test_a_tally_that_was_written_goes_on(recorded, tmp_path):
    batches = in_batches("features", recorded["feat_ref"])
    half = accumulate(batches[:5])
    np.savez(tmp_path / "tally.npz", **half.arrays())
    with np.load(tmp_path / "tally.npz") as file:
        goes_on = Accumulator.of_arrays(dict(file))
    for batch in batches[5:]:
        goes_on.add(batch)
    whole = accumulate(batches)
    np.testing.assert_array_equal(goes_on.statistics().cov, whole.statistics().cov)
    np.testing.assert_array_equal(goes_on.kept_rows(), whole.kept_rows())


def test_kid_of_subsets_is_near_that_of_all_rows(recorded):
    x, y = recorded["feat_gen"], recorded["feat_ref"]
    assert functional.kid_of_subsets(x, y, subsets=30, size=200) == pytest.approx(functional.kid(x, y), rel=0.05)


def test_cmmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 30, 8)))

    def mean_kernel(a, b):
        return np.exp(-np.sum((a[:, None] - b[None]) ** 2, axis=2) / 200).mean()

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert functional.cmmd(x, y) == pytest.approx(expected, rel=1e-6)
    assert functional.cmmd(x, x) == pytest.approx(0, abs=1e-9)
