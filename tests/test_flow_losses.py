"""Flow maps from data: the papers' own targets, the limits that join them, and no gradient at the exact answer."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.distances import adaptive, l2, pseudo_huber
from cmjax.core.flow_losses import alpha_flow_loss, improved_mean_flow_loss, mean_flow_loss, shortcut_loss
from cmjax.core.losses import consistency_training_loss
from cmjax.core.pairs import between, dyadic_pairs
from cmjax.core.paths import linear, per_sample
from cmjax.core.preconditioning import linear_flow, precondition_flow
from cmjax.core.typing import Pair

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
W = np.array([0.7, 0.9, 0.3, 0.2, -0.4])
L2 = {"path": linear, "distance": l2}


def net(w, x, c_noise, *, key=None, c_noise_s, label=None):
    """Nonlinear in x and both times, mixing a sample's elements, another for each class."""
    t, gap = per_sample(c_noise, x), per_sample(c_noise_s, x)
    shift = 0.0 if label is None else 0.1 * per_sample(label.astype(x.dtype), x)
    out = w[0] * jnp.tanh(w[1] * x + w[2] * jnp.cos(2 * t) + shift) + w[3] * jnp.mean(x, axis=1, keepdims=True) ** 2
    return out + w[4] * x * jnp.sin(t + 3 * gap)


def setting(count=6, apart=True):
    x0 = exact.data(jax.random.key(1), count)
    t, share = jax.random.uniform(jax.random.key(2), (2, count), jnp.float64, 0.2, 0.95)
    return x0, Pair(t, t * share, t * share) if apart else Pair(t, t, t)


def line(x0, t, key=KEY):
    noise = jax.random.normal(jax.random.split(key)[0], x0.shape, x0.dtype)
    return linear.add_noise(x0, noise, t), noise - x0


def own_slope(w, x, t, s, v):
    """v·∂_x u + ∂_t u of u(x, t, s), from the whole Jacobian of each sample."""

    def u(x, t, s):
        return net(w, x[None], t[None], c_noise_s=(t - s)[None])[0]

    by_x, by_t = jax.vmap(jax.jacobian(u, argnums=(0, 1)))(x, t, s)
    return jnp.einsum("bij,bj->bi", by_x, v) + by_t


def check_equal(ours, own, rtol=1e-10):
    """Values and gradients of two losses of the parameters."""
    (value, gradient), (own_value, own_gradient) = (exact.loss_and_gradient(loss, W) for loss in (ours, own))
    np.testing.assert_allclose(value, own_value, rtol=rtol)
    np.testing.assert_allclose(gradient, own_gradient, rtol=rtol)
    assert np.all(gradient != 0)


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "s = t"])
@pytest.mark.parametrize("distance", [l2, partial(adaptive, p=0.75, c=1e-3), partial(pseudo_huber, c=0.1)])
def test_mean_flow_is_the_papers(distance, apart):
    """u_tgt = v − (t − s)(v·∂_x u + ∂_t u), the frozen network apart from the trained one."""
    x0, pair = setting(apart=apart)
    x, v = line(x0, pair.t)
    target = v - (pair.t - pair.s)[:, None] * own_slope(W, x, pair.t, pair.s, v)
    check_equal(
        lambda w: mean_flow_loss(net, w, KEY, x0, pair, path=linear, distance=distance),
        lambda w: distance(net(w, x, pair.t, c_noise_s=pair.t - pair.s), target),
    )


def test_improved_mean_flow_is_the_papers():
    """V_θ = u_θ + (t − s)·sg(du/dt) is held to v, the derivative along the network's own velocity."""
    x0, pair = setting()
    x, v = line(x0, pair.t)
    slope = own_slope(W, x, pair.t, pair.s, net(W, x, pair.t, c_noise_s=0 * pair.t))
    for distance in (l2, partial(adaptive, p=1.0, c=1e-2)):
        check_equal(
            lambda w, distance=distance: improved_mean_flow_loss(net, w, KEY, x0, pair, path=linear, distance=distance),
            lambda w, distance=distance: distance(
                net(w, x, pair.t, c_noise_s=pair.t - pair.s) + (pair.t - pair.s)[:, None] * slope, v
            ),
        )


def target_of(loss, x0, pair, **knobs):
    """(b, 2): the target, seen through a distance that keeps it."""
    seen = []

    def distance(x, y):
        seen.append(y)
        return l2(x, y)

    loss(net, W, KEY, x0, pair, path=linear, distance=distance, **knobs)
    return seen[0]


@pytest.mark.parametrize(
    ("loss", "blend"), [(mean_flow_loss, 0.0), (mean_flow_loss, 0.4), (improved_mean_flow_loss, 0.0)]
)
def test_guidance_enters_the_velocity(loss, blend):
    """v' = w·v + (1 − w − κ)·u(·, no label) + κ·u(·, label) at s = t; of samples without a label, v."""
    x0, pair = setting(apart=False)
    x, v = line(x0, pair.t)
    label = jnp.array([0, 1, 2, -1, 1, -1])
    knobs = {"guidance": 2.5, "conditions": {"label": label}, **({"blend": blend} if blend else {})}
    without, with_label = (net(W, x, pair.t, c_noise_s=0 * pair.t, label=chosen) for chosen in (jnp.full(6, -1), label))
    expected = jnp.where((label < 0)[:, None], v, 2.5 * v + (1 - 2.5 - blend) * without + blend * with_label)
    np.testing.assert_allclose(target_of(loss, x0, pair, **knobs), expected, rtol=1e-12)


def test_the_guided_velocity_is_the_direction_of_the_derivative():
    x0, pair = setting()
    x, v = line(x0, pair.t)
    label = jnp.array([0, 1, 2, 0, 1, 2])
    guided = 2.5 * v - 1.5 * net(W, x, pair.t, c_noise_s=0 * pair.t, label=jnp.full(6, -1))

    def u(shift):
        t = pair.t + shift
        return net(W, x + shift * guided, t, c_noise_s=t - pair.s, label=label)

    slope = jax.jvp(u, (0.0,), (1.0,))[1]
    ours = target_of(mean_flow_loss, x0, pair, guidance=2.5, conditions={"label": label})
    np.testing.assert_allclose(ours, guided - (pair.t - pair.s)[:, None] * slope, rtol=1e-10)


def alpha_gradient(alpha, x0, pair):
    pair = between(lambda key, batch_size, step: pair, lambda step: alpha)(KEY, len(x0), 0)
    return exact.loss_and_gradient(lambda w: alpha_flow_loss(net, w, W, KEY, x0, pair, alpha=alpha, **L2), W)[1]


def test_alpha_flow_goes_from_flow_matching_to_mean_flow():
    """At 1 regression onto v; towards 0 MeanFlow's gradient, with slope one in α."""
    x0, pair = setting()
    x, v = line(x0, pair.t)

    def flow_matching(w):
        return l2(net(w, x, pair.t, c_noise_s=pair.t - pair.s), v)

    matching = exact.loss_and_gradient(flow_matching, W)[1]
    np.testing.assert_allclose(alpha_gradient(1.0, x0, pair), matching, rtol=1e-10)
    limit = exact.loss_and_gradient(lambda w: mean_flow_loss(net, w, KEY, x0, pair, **L2), W)[1]
    far, near = (np.linalg.norm(alpha_gradient(alpha, x0, pair) - limit) for alpha in (2e-3, 1e-3))
    assert near < 0.01 * np.linalg.norm(limit)
    assert 1.8 < far / near < 2.2


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_alpha_flow_is_consistency_training_on_the_linear_path(alpha):
    """Of f(x, t) = Φ(x, t, s), whose difference is (t − s) times that of the velocities; weighted by 1/α."""
    x0, pair = setting()
    pair = between(lambda key, batch_size, step: pair, lambda step: alpha)(KEY, len(x0), 0)
    flow = precondition_flow(net, linear_flow)

    def weight(t, r):
        return 1 / (alpha * (pair.t - pair.s) ** 2)

    def discrete(w):
        return consistency_training_loss(
            lambda w, x, t, key: flow(w, x, t, pair.s, key=key), w, 1.1 * W, KEY, x0, pair, weight=weight, **L2
        ).mean()

    ours = jax.grad(lambda w: alpha_flow_loss(net, w, 1.1 * W, KEY, x0, pair, alpha=alpha, **L2).mean())
    np.testing.assert_allclose(ours(jnp.asarray(W)), jax.grad(discrete)(jnp.asarray(W)), rtol=1e-9)


def random_times(count):
    t, share = jax.random.uniform(jax.random.key(2), (2, count), jnp.float64, 0.2, 0.95)
    s = jnp.where(jnp.arange(count) % 4, t * share, t)
    return Pair(t, s, s)


def in_the_mean(method, params, variance):
    x0, count = exact.data(jax.random.key(1), 120_000), 120_000
    exactly, pair = exact.velocity_network(variance), random_times(count)
    if method == "alpha":
        pair, alpha = pair._replace(r=pair.t + 1e-3 * (pair.s - pair.t)), {"alpha": 1e-3}
        return alpha_flow_loss(exactly, params, exact.AT_ZERO, KEY, x0, pair, **alpha, **L2)
    if method == "shortcut":  # what is not halved, at the exact limit of many steps
        pair = Pair(pair.t, pair.t - 1e-4, pair.t - 1e-4)
        return shortcut_loss(exactly, params, exact.AT_ZERO, KEY, x0, pair, share=0.0, **L2)
    return {"mean_flow": mean_flow_loss, "improved": improved_mean_flow_loss}[method](
        exactly, params, KEY, x0, pair, path=linear, distance=partial(adaptive, p=0.5, c=1e-2)
    )


@pytest.mark.parametrize("method", ["mean_flow", "improved", "alpha", "shortcut"])
def test_no_gradient_at_the_exact_mean_velocity(method):
    """In expectation over data and noise; and there is one at that for data of 1.2 times the variance."""
    right, wrong = exact.standard_errors(partial(in_the_mean, method))
    assert right < 4
    assert wrong > 20


def test_shortcuts_halves_leave_the_exact_mean_velocity_alone():
    """To rounding, in every sample; those of a network bent in t − s do not."""
    x0, pair = exact.data(jax.random.key(1), 64), dyadic_pairs(steps=16, share=1.0)(jax.random.key(3), 64, 0)

    def losses(bend, params):
        exactly = exact.velocity_network()

        def bent(params, x, c_noise, **times):
            return exactly(params, x, c_noise, **times) * (1 + bend * times["c_noise_s"][:, None])

        return shortcut_loss(bent, params, exact.AT_ZERO, KEY, x0, pair, share=1.0, **L2)

    assert np.abs(exact.gradients(partial(losses, 0.0))).max() < 1e-12
    assert np.abs(exact.gradients(partial(losses, 0.1))).max() > 1e-3


def test_shortcut_is_two_half_steps_then_flow_matching():
    """The target network's halves for the first share, the velocity for the rest; one loss for each sample."""
    x0, pair = exact.data(jax.random.key(1), 8), dyadic_pairs(steps=8, share=0.25)(jax.random.key(3), 8, 0)
    x, v = line(x0, pair.t)
    t, r, s = pair

    def u(w, x, t, s):
        return net(w, x, t, c_noise_s=t - s)

    one = u(1.1 * W, x, t, r)
    two = u(1.1 * W, x - (t - r)[:, None] * one, r, s)
    target = jnp.where(jnp.arange(8)[:, None] < 2, (one + two) / 2, v)
    for distance in (l2, partial(adaptive, p=1.0, c=1e-3)):
        check_equal(
            lambda w, distance=distance: shortcut_loss(
                net, w, 1.1 * W, KEY, x0, pair, path=linear, share=0.25, distance=distance
            ),
            lambda w, distance=distance: distance(u(w, x, t, s), target),
        )


@pytest.mark.parametrize("method", ["shortcut", "alpha"])
def test_no_gradient_enters_the_target_network(method):
    x0 = exact.data(jax.random.key(1), 8)
    pair = dyadic_pairs(steps=8, share=0.5)(jax.random.key(3), 8, 0)

    def mean(w, target):
        if method == "shortcut":
            return shortcut_loss(net, w, target, KEY, x0, pair, share=0.5, **L2).mean()
        return alpha_flow_loss(net, w, target, KEY, x0, pair, alpha=0.5, **L2).mean()

    w, target = jnp.asarray(W), jnp.asarray(1.1 * W)
    student, other = jax.grad(mean, argnums=(0, 1))(w, target)
    assert np.all(student != 0)
    assert not np.any(other)
    assert mean(w, target) != mean(w, 2 * target)
    shared = jax.grad(lambda w: mean(w, w))(w)
    np.testing.assert_array_equal(shared, jax.grad(mean)(w, jnp.array(W)))


def test_gradients_are_finite_where_the_network_is_right_in_float32():
    """At x = y and s = t."""
    x0, t = jnp.ones((3, 2), jnp.float32), jnp.array([0.1, 0.5, 1.0], jnp.float32)
    noise = jax.random.normal(jax.random.split(KEY)[0], x0.shape, jnp.float32)

    def right(w, x, c_noise, *, key=None, c_noise_s):
        return w + noise - x0

    for distance in (partial(adaptive, p=1.0, c=1e-3), partial(pseudo_huber, c=0.0), l2):
        for loss in (mean_flow_loss, improved_mean_flow_loss):
            value, slope = jax.value_and_grad(
                lambda w, loss=loss, distance=distance: loss(
                    right, w, KEY, x0, Pair(t, t, t), path=linear, distance=distance
                ).mean()
            )(jnp.float32(0))
            assert value == pytest.approx(0, abs=1e-6)
            assert np.isfinite(slope)
