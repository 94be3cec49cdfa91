"""What AnyFlow, MF-RAE and pMF add to MeanFlow: times nearer to noise, a common scale, and a network of images."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate

from cmjax import Batch, Model, Times, losses
from cmjax.core import times
from cmjax.core.derivatives import central_difference
from cmjax.core.distances import l2
from cmjax.core.paths import linear, per_sample
from cmjax.core.preconditioning import clean_velocity, linear_flow, scaled_velocity
from cmjax.core.weightings import towards_noise, uniform

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
W = np.array([0.7, 0.9, 0.3])
T = np.array([0.9, 0.5, 0.7, 0.3, 0.6, 0.8])
S = np.where(np.arange(6) < 2, T, T / 3)
LABEL = jnp.array([0, 1, 2, -1, 1, 2])


def net(w, x, c_noise, *, key=None, c_noise_s, label=None):
    shift = 0.0 if label is None else per_sample(0.3 * label, x)
    return w[0] * jnp.tanh(w[1] * x + w[2] * per_sample(jnp.cos(2 * c_noise) + c_noise_s, x) + shift)


MODEL = Model(net, linear, linear_flow)


def setting():
    x0 = exact.data(jax.random.key(1), 6)
    noise = jax.random.normal(jax.random.key(3), x0.shape, jnp.float64)
    at = Times(jnp.asarray(T), s=jnp.asarray(S))
    return Batch(x0, noise, at, {"label": LABEL}), linear.add_noise(x0, noise, at.t), noise - x0


def test_times_are_shifted_towards_noise():
    np.testing.assert_allclose(times.shifted(jnp.array([0.0, 0.2, 1.0]), 5.0), [0, 1 / 1.8, 1], rtol=1e-12)
    sampled, before = (times.uniform(t_min=0.0, t_max=1.0, shift=shift)(KEY, 100) for shift in (5.0, 1.0))
    np.testing.assert_array_equal(sampled, times.shifted(before, 5.0))
    one, other = times.logit_normal(mean=0.3 + np.log(2.0), std=1.0), times.logit_normal(mean=0.3, std=1.0)
    np.testing.assert_allclose(one(KEY, 100), times.shifted(other(KEY, 100), 2.0), rtol=1e-12)


def test_anyflows_weight_has_a_mean_of_one_over_its_times():
    """And is t·√(1 − t) but for a factor, whose mean over [0, 1] is 4/15."""
    sampled = times.uniform(t_min=0.0, t_max=1.0, shift=5.0)(KEY, 200_000)
    assert float(jnp.mean(towards_noise(sampled, sampled, shift=5.0))) == pytest.approx(1, abs=5e-3)
    t = jnp.array([0.2, 0.9])
    np.testing.assert_allclose(towards_noise(t, t), 15 / 4 * t * jnp.sqrt(1 - t), rtol=1e-4)


@pytest.mark.parametrize("derivative", [jax.jvp, central_difference(step=0.005)])
def test_anyflow_is_the_papers(derivative):
    """The guided student, each sample of the map scaled to the mean of those with s = t."""
    batch, x, v = setting()
    t, s = batch.times.t, batch.times.s
    w = jnp.where(LABEL < 0, 1.0, 3.0)[:, None]
    nothing = jnp.full_like(LABEL, -1)

    def u(now, label, move=0.0):
        return net(W, x + per_sample(now - t, x) * move, now, c_noise_s=now - s, label=label)

    predicted = (u(t, LABEL) - (1 - w) * u(t, nothing)) / w
    h = 1e-5 if derivative is jax.jvp else 0.005
    slope = (u(t + h, LABEL, v) - u(t - h, LABEL, v)) / (2 * h) / w
    error = towards_noise(t, t) * l2(predicted, v - (t - s)[:, None] * slope)
    mean = error[:2].mean()
    expected = jnp.where(jnp.arange(6) < 2, error, error * mean / (error + 1e-5))
    ours = losses.anyflow(MODEL, W, None, batch, weight=towards_noise, guidance=3.0, derivative=derivative)
    np.testing.assert_allclose(ours, expected, rtol=1e-6 if derivative is jax.jvp else 1e-10)
    gradient = jax.grad(lambda w: losses.anyflow(MODEL, w, None, batch, weight=uniform).sum())(jnp.asarray(W))
    assert np.all(gradient != 0)


def test_a_batch_without_s_equal_to_t_is_not_scaled():
    batch = setting()[0]
    batch = Batch(batch.x0, batch.noise, Times(jnp.asarray(T), s=jnp.asarray(T / 3)), {})
    ours = losses.anyflow(MODEL, W, None, batch, weight=uniform)
    np.testing.assert_allclose(ours, losses.meanflow(MODEL, W, None, batch, distance=l2), rtol=1e-12)


def test_anyflows_gradient_is_mean_flows_times_a_positive_number():
    """So it is none in the mean at the exact map, where MeanFlow's is none."""
    batch = setting()[0]
    batch = Batch(batch.x0, batch.noise, batch.times, {})

    def slopes(loss, **choices):
        return np.asarray(jax.jacrev(lambda w: loss(MODEL, w, None, batch, **choices))(jnp.asarray(W)))

    ours, theirs = slopes(losses.anyflow, weight=uniform), slopes(losses.meanflow, distance=l2)
    scale = ours[:, :1] / theirs[:, :1]
    np.testing.assert_allclose(ours, scale * theirs, rtol=1e-10)
    assert np.all(scale > 0)
    np.testing.assert_allclose(scale[:2], 1, rtol=1e-12)


def test_mean_flow_follows_a_teachers_velocity():
    """Then no sample has a gradient at the exact map."""
    x0, t = exact.data(jax.random.key(1), 64), jax.random.uniform(jax.random.key(2), (64,), jnp.float64, 0.2, 0.9)

    def each(bend, params):
        exactly = exact.velocity_network()

        def bent(params, x, c_noise, *, key=None, c_noise_s):
            return exactly(params, x, c_noise, c_noise_s=c_noise_s) * (1 + bend * c_noise_s[:, None])

        model = Model(bent, linear, linear_flow)
        taught = {"teacher": lambda x, t: exact.denoise(linear, x, t), "distance": l2}
        return evaluate(losses.meanflow, model, params, KEY, x0, Times(t, s=t / 2), **taught)

    assert np.abs(exact.gradients(partial(each, 0.0))).max() < 1e-11
    assert np.abs(exact.gradients(partial(each, 0.1))).max() > 1e-3


def image_net(w, x, c_noise, *, key=None, label=None):
    return jnp.tanh(w[1] * x + w[2] * per_sample(jnp.cos(2 * c_noise), x))


def test_pmf_is_imf_of_images_whose_velocity_is_bounded_near_the_data():
    t = jnp.array([0.01, 0.04, 0.3, 0.9, 0.85, 0.6])
    batch = setting()[0]
    batch = Batch(batch.x0, batch.noise, Times(t, s=t / 2), {})
    x, scale = linear.add_noise(batch.x0, batch.noise, t), 1 / jnp.maximum(t, 0.05)[:, None]
    model, seen = Model(clean_velocity(image_net), linear, linear_flow), []

    def distance(x, y):
        seen.append((x, y))
        return l2(x, y)

    plain = losses.pmf(model, W, None, batch, distance=distance)
    np.testing.assert_allclose(seen[0][1], scale * (x - batch.x0), rtol=1e-12)

    def u(shift, along):
        at, now = x + shift * along, t + shift
        return (at - image_net(W, at, now - t / 2)) / jnp.maximum(now, 0.05)[:, None]

    own = scale * (x - image_net(W, x, 0 * t))
    out, slope = jax.jvp(partial(u, along=own), (0.0,), (1.0,))
    np.testing.assert_allclose(seen[0][0], out + (t / 2)[:, None] * slope, rtol=1e-12)
    with_term = losses.pmf(model, W, None, batch, distance=l2, perceptual=l2, perceptual_before=0.8)
    gap = l2(x - t[:, None] * out, batch.x0)
    np.testing.assert_allclose(with_term - plain, jnp.where(t < 0.8, 0.4 * gap / (gap + 0.01), 0), rtol=1e-9)


@pytest.mark.slow
def test_pmf_takes_lpips():
    """With small random weights; a term of images at t < 0.8 alone, and its gradient is finite."""
    from cmjax.nets.features.lpips import lpips, parameter_shapes

    leaves, tree = jax.tree.flatten(parameter_shapes())
    keys = jax.random.split(KEY, len(leaves))
    weights = [0.05 * jax.random.normal(key, leaf.shape, jnp.float32) for key, leaf in zip(keys, leaves, strict=True)]
    x0 = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), jnp.float32, -1, 1)
    noise = jax.random.normal(jax.random.key(3), x0.shape, jnp.float32)
    t = jnp.array([0.5, 0.9], jnp.float32)
    batch = Batch(x0, noise, Times(t, s=t / 2), {})
    model = Model(clean_velocity(image_net), linear, linear_flow)
    weights = tree.unflatten(weights)
    weights["heads"] = [jnp.abs(head) for head in weights["heads"]]
    perceptual = partial(lpips, weights, resize=16)

    def terms(w):
        both = (losses.pmf(model, w, None, batch, distance=l2, perceptual=p) for p in (perceptual, None))
        return jnp.subtract(*both)

    value, slope = terms(jnp.asarray(W, jnp.float32)), jax.jacrev(terms)(jnp.asarray(W, jnp.float32))
    assert value[0] > 0
    assert value[1] == 0
    assert np.all(np.isfinite(slope))
    assert np.any(slope[0] != 0)


def test_a_network_is_multiplied_by_the_scale_of_guidance():
    def guided_net(w, x, c_noise, *, key=None, c_noise_s, guidance, return_weight=False):
        out = net(w, x, c_noise, c_noise_s=c_noise_s)
        return (out, c_noise) if return_weight else out

    batch, x, _ = setting()
    t = batch.times.t
    inputs, scale = {"c_noise_s": t - batch.times.s}, jnp.arange(1.0, 7.0)
    out, weight = scaled_velocity(guided_net)(W, x, t, guidance=scale, return_weight=True, **inputs)
    np.testing.assert_allclose(out, scale[:, None] * net(W, x, t, **inputs))
    np.testing.assert_array_equal(weight, t)
    np.testing.assert_array_equal(scaled_velocity(net)(W, x, t, **inputs), net(W, x, t, **inputs))
