"""Guidance: labels left out at the stated rate, and the mix of two evaluations."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmjax import Times, losses
from cmjax.core.distances import l2
from cmjax.core.guidance import NO_LABEL, autoguided, drop_labels, guided, limited, mix
from cmjax.core.model import BoundModel
from cmjax.core.ode import euler_step
from cmjax.core.oracles import gaussian_denoiser, mixture_denoiser
from cmjax.core.paths import ve
from cmjax.core.weightings import uniform
from cmjax.generation.sampling import with_guidance


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_at_the_rate_and_the_others_stay(rate):
    label = jnp.arange(20_000) % 10
    dropped = drop_labels(jax.random.key(0), label, rate=rate)
    gone = np.asarray(dropped == NO_LABEL)
    assert dropped.dtype == label.dtype
    np.testing.assert_array_equal(np.asarray(dropped)[~gone], np.asarray(label)[~gone])
    assert stats.binomtest(int(gone.sum()), 20_000, rate).pvalue > 1e-3
    assert np.any(gone != np.asarray(drop_labels(jax.random.key(1), label, rate=rate) == NO_LABEL)) == (0 < rate < 1)
    # every class alike
    if 0 < rate < 1:
        assert stats.chisquare(np.bincount(np.asarray(label)[gone], minlength=10)).pvalue > 1e-3


MEANS, VARIANCE = np.array([[-0.8, 0.2], [0.6, -0.1]]), 0.04


def classes(params, x, t, *, key=None, label):
    """The exact denoiser of two Gaussian classes, and of their mixture where there is no label."""
    mean = jnp.asarray(MEANS)[jnp.maximum(label, 0)]
    own = gaussian_denoiser(x, t, mean=mean, variance=VARIANCE)
    weights, variances = jnp.full(2, 0.5), jnp.full(2, VARIANCE)
    both = mixture_denoiser(x, t, weights=weights, means=jnp.asarray(MEANS), variances=variances)
    return jnp.where((label == NO_LABEL)[:, None], both, own)


def test_as_many_labels_may_be_dropped_of_the_first_samples():
    label, key = jnp.arange(400) % 10, jax.random.key(3)
    count = int(jnp.sum(drop_labels(key, label, rate=0.1) == NO_LABEL))
    first = drop_labels(key, label, rate=0.1, first=True)
    np.testing.assert_array_equal(first, jnp.where(jnp.arange(400) < count, NO_LABEL, label))
    assert 20 < count < 60


@pytest.mark.usefixtures("x64")
def test_guidance_mixes_the_two_denoisers():
    x, t = jax.random.normal(jax.random.key(0), (6, 2), jnp.float64), jnp.linspace(0.1, 2.0, 6)
    label = jnp.array([0, 1, 0, 1, 1, 0])
    conditional, unconditional = (classes({}, x, t, label=chosen) for chosen in (label, jnp.full(6, NO_LABEL)))
    assert np.abs(conditional - unconditional).max() > 0.1

    def at(guidance):
        return guided(classes)({}, x, t, guidance=guidance, label=label)

    np.testing.assert_allclose(at(1.0), conditional, rtol=1e-13)
    np.testing.assert_array_equal(at(0.0), unconditional)
    np.testing.assert_allclose(at(3.0), 3 * conditional - 2 * unconditional, rtol=1e-12, atol=1e-14)
    scales = jnp.linspace(0.0, 4.0, 6)
    each = jnp.concatenate(
        [guided(classes)({}, x[i : i + 1], t[i], guidance=scales[i], label=label[i : i + 1]) for i in range(6)]
    )
    np.testing.assert_allclose(at(scales), each, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_only_the_first_channels_may_be_guided():
    x, t, label = (
        jax.random.normal(jax.random.key(0), (6, 2), jnp.float64),
        jnp.linspace(0.1, 2.0, 6),
        jnp.arange(6) % 2,
    )
    every, none = (guided(classes)({}, x, t, guidance=w, label=label) for w in (3.0, 1.0))
    for channels in (1, 2):
        ours = guided(classes, channels=channels)({}, x, t, guidance=3.0, label=label)
        np.testing.assert_array_equal(ours[:, :channels], every[:, :channels])
        np.testing.assert_allclose(ours[:, channels:], none[:, channels:], rtol=1e-13)
    assert np.abs(every - none).max(0).min() > 0.1


@pytest.mark.usefixtures("x64")
def test_velocities_and_scores_mix_as_the_denoisers_do():
    """Of the guided velocity at w: v + (w − 1)·(v − v of no label)."""
    x, t = jax.random.normal(jax.random.key(0), (6, 2), jnp.float64), jnp.linspace(0.1, 2.0, 6)
    label = jnp.array([0, 1, 0, 1, 1, 0])
    own, none = (ve.velocity(x, classes({}, x, t, label=chosen), t) for chosen in (label, jnp.full(6, NO_LABEL)))
    ours = ve.velocity(x, guided(classes)({}, x, t, guidance=2.5, label=label), t)
    np.testing.assert_allclose(ours, mix(own, none, 2.5), rtol=1e-11, atol=1e-13)


def test_both_evaluations_get_the_key_the_conditions_and_further_times():
    seen = []

    def flow(params, x, t, s, *, key=None, label, other):
        seen.append((params, t, s, key, label.tolist(), other))
        return x

    key, x = jax.random.key(3), jnp.ones((2, 3))
    guided(flow)("w", x, 0.5, 0.1, key=key, guidance=2.0, label=jnp.array([4, 7]), other="c")
    assert [call[4] for call in seen] == [[4, 7], [NO_LABEL, NO_LABEL]]
    assert all((call[:4], call[5]) == (("w", 0.5, 0.1, key), "c") for call in seen)


def test_a_guided_model_is_compiled_once():
    traced = []

    @jax.jit
    def evaluate(flow_map, x, conditions):
        traced.append(x)
        return flow_map(x, 1.0, **conditions)

    flow_map = BoundModel({}, classes, (2,), 0.002, 80.0, "denoiser")
    for scale in (2.0, 3.0):
        model, conditions = with_guidance(flow_map, {"label": np.array([0, 1])}, scale, takes=False)
        evaluate(model, jnp.ones((2, 2)), conditions)
    assert len(traced) == 1


@pytest.mark.usefixtures("x64")
def test_the_guidance_of_a_distilled_step_is_the_mix():
    """The teacher of CD takes the scale and the label that its student takes too."""
    x0, t = exact.data(jax.random.key(1), 4), jnp.array([0.5, 1.0, 1.5, 2.0])
    conditions = {"label": jnp.array([0, 1, 1, 0]), "guidance": jnp.array([1.0, 2.0, 3.0, 0.0])}
    seen = []

    def student(params, x, t, *, key=None, label, guidance):
        seen.append((x, label, guidance))
        return x

    exact.evaluate(
        losses.guided_cd, exact.known(student, ve), {}, jax.random.key(0), x0, Times(t, 0.9 * t),
        teacher=partial(classes, {}), ode_step=euler_step, distance=l2, weight=uniform, conditions=conditions,
    )  # fmt: skip
    (x_t, label, guidance), (x_r, *_) = seen
    denoised = guided(classes)({}, x_t, t, **conditions)
    np.testing.assert_allclose(x_r, denoised + 0.9 * (x_t - denoised), rtol=1e-12)
    assert (label is conditions["label"], guidance is conditions["guidance"]) == (True, True)


@pytest.mark.usefixtures("x64")
def test_guidance_in_an_interval_is_guidance_there_and_none_elsewhere():
    x, t = jax.random.normal(jax.random.key(0), (6, 2), jnp.float64), jnp.array([0.1, 0.3, 0.31, 2.0, 5.0, 5.01])
    label = jnp.array([0, 1, 0, 1, 1, 0])
    everywhere, none = (guided(classes)({}, x, t, guidance=w, label=label) for w in (3.0, 1.0))
    ours = limited(guided(classes), low=0.3, high=5.0)
    inside = np.array([False, False, True, True, True, False])
    for scale in (3.0, jnp.full(6, 3.0)):
        expected = np.where(inside[:, None], everywhere, none)
        np.testing.assert_allclose(ours({}, x, t, guidance=scale, label=label), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        ours({}, x, 9.0, guidance=3.0, label=label), classes({}, x, 9.0, label=label), rtol=1e-12
    )
    assert np.abs(everywhere - none).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_autoguidance_leads_away_from_the_weaker_model():
    def at(mean, x, t, *, label=None):
        return gaussian_denoiser(x, t, mean=mean, variance=VARIANCE)

    x, t, means = (
        jnp.ones((2, 2), jnp.float64),
        jnp.array([0.5, 2.0]),
        (jnp.array([[0.3, 0.1]]), jnp.array([[-0.2, 0.4]])),
    )
    ours = autoguided(at, at)
    strong, weak = (at(mean, x, t) for mean in means)
    np.testing.assert_allclose(ours(means, x, t, guidance=2.5), 2.5 * strong - 1.5 * weak, rtol=1e-12)
    np.testing.assert_allclose(ours(means, x, t, guidance=1.0), strong, rtol=1e-12)
    np.testing.assert_allclose(ours(means, x, t, guidance=jnp.array([1.0, 0.0]))[1], weak[1], rtol=1e-12)
