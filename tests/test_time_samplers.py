"""Distributions of the student's time, against SciPy's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmjax.core import times
from cmjax.core.paths import ddpm, linear, trig, ve, vp

COUNT = 20_000


def fits(sample, cdf):
    return stats.kstest(np.asarray(sample, np.float64), cdf).pvalue > 1e-3


@pytest.mark.parametrize("path", [ve, linear, trig(sigma_data=0.5), vp()], ids=["ve", "linear", "trig", "vp"])
def test_the_noise_level_is_lognormal_on_every_path(path):
    t = times.lognormal(mean=-1.0, std=1.4, path=path)(jax.random.key(0), COUNT)
    assert fits(np.log(path.noise_level(t)), stats.norm(-1.0, 1.4).cdf)
    assert not fits(np.log(path.noise_level(t)), stats.norm(-0.9, 1.4).cdf)


def test_on_the_trigflow_path_it_is_scms_proposal():
    """t = arctan(e^τ/σ_d), τ ~ N(mean, std²)."""
    t = times.lognormal(mean=-1.0, std=1.4, path=trig(sigma_data=0.5))(jax.random.key(0), 1000)
    tau = -1.0 + 1.4 * jax.random.normal(jax.random.key(0), (1000,))
    np.testing.assert_allclose(t, np.arctan(np.exp(tau) / 0.5), rtol=1e-5)


@pytest.mark.parametrize(("df", "scale"), [(0.01, 0.2), (3.0, 0.5), (1.0, 2.0)])
def test_students_t_is_truncated(df, scale):
    """ln t within [0, ln 80], of TCM's heavy tails and of lighter ones."""
    t = times.student(df=df, scale=scale, path=ve)(jax.random.key(0), COUNT)
    assert t.min() >= 1
    assert t.max() <= 80 * (1 + 1e-6)
    low, high = stats.t(df, scale=scale).cdf([0.0, math.log(80)])
    log_t = np.log(np.asarray(t, np.float64))
    assert fits(log_t, lambda x: (stats.t(df, scale=scale).cdf(x) - low) / (high - low))
    assert not fits(log_t, stats.uniform(0, math.log(80)).cdf)


@pytest.mark.usefixtures("x64")
def test_students_quantiles_are_scipys(monkeypatch):
    """At the draws themselves, to the table's resolution; elsewhere between other bounds and on another path."""
    shares = jnp.linspace(0.0, 1 - 1e-9, 101)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: shares)
    for lowest, highest in ((1.0, 80.0), (0.05, 10.0)):
        draw = times.student(df=0.01, scale=0.2, path=linear, lowest=lowest, highest=highest)
        low, high = stats.t(0.01, scale=0.2).cdf(np.log([lowest, highest]))
        expected = stats.t(0.01, scale=0.2).ppf(low + (high - low) * np.asarray(shares))
        level = linear.noise_level(draw(jax.random.key(0), 101))
        np.testing.assert_allclose(np.log(level), expected, atol=1e-5)


def test_uniform_in_the_root_and_logit_normal():
    t = times.uniform(t_min=0.002, t_max=80.0, rho=7.0)(jax.random.key(0), COUNT)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert fits(np.asarray(t, np.float64) ** (1 / 7), stats.uniform(low, high - low).cdf)
    assert fits(times.uniform(t_min=0.0, t_max=2.0)(jax.random.key(0), COUNT), stats.uniform(0, 2).cdf)
    t = times.logit_normal(mean=-0.4, std=1.0)(jax.random.key(0), COUNT)
    assert fits(np.log(t / (1 - t)), stats.norm(-0.4, 1.0).cdf)
    assert 0 < t.min() < t.max() < 1


def test_times_of_a_table_lie_in_it():
    t = times.lognormal(mean=0.0, std=4.0, path=ddpm())(jax.random.key(0), COUNT)
    assert t.min() == 0
    assert t.max() == np.float32(0.999)


@pytest.mark.parametrize(
    ("draw", "knobs", "name"),
    [
        (times.lognormal, {"mean": 0.0, "std": 0.0, "path": ve}, "std"),
        (times.logit_normal, {"mean": 0.0, "std": -1.0}, "std"),
        (times.uniform, {"t_min": 1.0, "t_max": 0.5}, "t_min"),
        (times.student, {"df": 0.0, "scale": 1.0, "path": ve}, "df"),
        (times.student, {"df": 1.0, "scale": -1.0, "path": ve}, "scale"),
        (times.student, {"df": 1.0, "scale": 1.0, "path": ve, "lowest": 2.0, "highest": 2.0}, "highest"),
    ],
)
def test_what_is_out_of_range_is_named(draw, knobs, name):
    with pytest.raises(ValueError, match=name):
        draw(**knobs)
