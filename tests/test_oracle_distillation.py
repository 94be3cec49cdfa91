"""Consistency distillation of an exact teacher, against the exact consistency function."""

import numpy as np
import pytest

from benchmarks import oracle

NOISE = np.random.default_rng(0).standard_normal((512, 2))


@pytest.mark.slow
def test_the_exact_map_is_one_answer_along_a_trajectory():
    x_t = 80.0 * NOISE
    answer = oracle.exact_map(x_t, 80.0, steps=2048)
    for r in (5.0, 0.7, 0.1):
        x_r = oracle.exact_map(x_t, 80.0, r, steps=2048)
        np.testing.assert_allclose(oracle.exact_map(x_r, r, steps=2048), answer, rtol=0, atol=1e-5)
    np.testing.assert_allclose(oracle.exact_map(x_t, 80.0, steps=4096), answer, rtol=0, atol=1e-5)


def test_the_exact_map_carries_noise_to_the_data():
    data = oracle.mixture()
    samples = oracle.exact_map(80.0 * np.random.default_rng(1).standard_normal((8192, 2)), 80.0, steps=128)
    drawn = oracle.draw_data(np.random.default_rng(2), 8192)
    for points in (samples, drawn):  # within 4 standard errors of a mean, a variance and a mode's fraction
        np.testing.assert_allclose(points.mean(0), 0.0, atol=4 * 0.5 / 8192**0.5)
        np.testing.assert_allclose((points**2).mean(), 0.25, rtol=4 * 2**0.5 / 8192**0.5)
    fraction = [
        np.bincount(np.argmin(np.sum((points[:, None] - data["means"][None]) ** 2, axis=2), axis=1), minlength=6) / 8192
        for points in (samples, drawn)
    ]
    np.testing.assert_allclose(fraction[0], fraction[1], atol=4 * (2 * 0.2 * 0.8 / 8192) ** 0.5)


def test_the_modes_are_apart():
    """Between two neighbours the density falls below half of what it is at the fainter one."""
    data = oracle.mixture()

    def density(x):
        squared = np.sum((x[None] - data["means"]) ** 2, axis=1)
        return data["weights"] @ np.exp(-squared / (2 * data["variances"]))

    for i, mean in enumerate(data["means"]):
        gaps = np.linalg.norm(data["means"] - mean[None], axis=1)
        nearest = data["means"][np.argsort(gaps)[1]]
        assert density((mean + nearest) / 2) < 0.5 * min(density(mean), density(nearest)), i


@pytest.mark.slow
def test_a_few_steps_beat_the_mean_of_the_data_and_the_untrained_student():
    settings = oracle.Settings(steps=300, batch=128, width=64, s0=8, s1=8, points=512, exact_steps=256)
    report, samples = oracle.run(settings)
    assert report["rms"] < 0.5 * min(report["rms_untrained"], report["rms_mean_of_data"])
    assert oracle.plot(samples).shape == (488, 1464, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_distilled_student_is_the_exact_consistency_function(seed):
    report, _ = oracle.run(oracle.Settings(seed=seed))
    assert report["exact_change_at_half_the_steps"] < 1e-5
    assert report["rms"] <= 0.03, report
