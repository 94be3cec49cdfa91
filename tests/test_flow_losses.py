"""Flow maps from data: the papers' own targets, the limits that join them, and no gradient at the exact answer."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate

from cmjax import Model, Times, losses
from cmjax.core.distances import adaptive, l2, pseudo_huber
from cmjax.core.losses.alpha_flow import adaptive_alpha, alpha_schedule, inverse_alpha
from cmjax.core.pairs import between, dyadic_pairs
from cmjax.core.paths import linear, per_sample, trig
from cmjax.core.preconditioning import linear_flow

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
W = np.array([0.7, 0.9, 0.3, 0.2, -0.4])
L2 = {"distance": l2}
ALPHA = {"weight": inverse_alpha}


def net(w, x, c_noise, *, key=None, c_noise_s, label=None):
    """Nonlinear in x and both times, mixing a sample's elements, another for each class."""
    t, gap = per_sample(c_noise, x), per_sample(c_noise_s, x)
    shift = 0.0 if label is None else 0.1 * per_sample(label.astype(x.dtype), x)
    out = w[0] * jnp.tanh(w[1] * x + w[2] * jnp.cos(2 * t) + shift) + w[3] * jnp.mean(x, axis=1, keepdims=True) ** 2
    return out + w[4] * x * jnp.sin(t + 3 * gap)


MODEL = Model(net, linear, linear_flow)


def setting(count=6, apart=True):
    x0 = exact.data(jax.random.key(1), count)
    t, fraction = jax.random.uniform(jax.random.key(2), (2, count), jnp.float64, 0.2, 0.95)
    return x0, Times(t, s=t * fraction if apart else t)


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
        lambda w: evaluate(losses.meanflow, MODEL, w, KEY, x0, pair, distance=distance),
        lambda w: distance(net(w, x, pair.t, c_noise_s=pair.t - pair.s), target),
    )


def test_improved_mean_flow_is_the_papers():
    """V_θ = u_θ + (t − s)·sg(du/dt) is held to v, the derivative along the network's own velocity."""
    x0, pair = setting()
    x, v = line(x0, pair.t)
    slope = own_slope(W, x, pair.t, pair.s, net(W, x, pair.t, c_noise_s=0 * pair.t))
    for distance in (l2, partial(adaptive, p=1.0, c=1e-2)):
        check_equal(
            lambda w, distance=distance: evaluate(losses.imf, MODEL, w, KEY, x0, pair, distance=distance),
            lambda w, distance=distance: distance(
                net(w, x, pair.t, c_noise_s=pair.t - pair.s) + (pair.t - pair.s)[:, None] * slope, v
            ),
        )


@pytest.mark.parametrize("distance", [l2, partial(adaptive, p=0.75, c=1e-3)])
def test_the_tangents_blend_goes_from_mean_flow_to_improved_mean_flow(distance):
    """Both ends to the last digit, and between them the derivative along the blend of both velocities."""
    x0, pair = setting()
    x, v = line(x0, pair.t)
    own = net(W, x, pair.t, c_noise_s=0 * pair.t)

    def each(method, **blend):
        return lambda w: evaluate(getattr(losses, method), MODEL, w, KEY, x0, pair, distance=distance, **blend)

    for one, other in (
        (each("meanflow", tangent_blend=0.0), each("meanflow")),
        (each("imf", tangent_blend=1.0), each("imf")),
    ):
        np.testing.assert_array_equal(one(W), other(W))
    check_equal(each("meanflow", tangent_blend=1.0), each("imf"), rtol=1e-12)
    check_equal(each("imf", tangent_blend=0.0), each("meanflow"), rtol=1e-12)
    for beta in (0.3, 0.94):
        slope = own_slope(W, x, pair.t, pair.s, (1 - beta) * v + beta * own)
        target = v - (pair.t - pair.s)[:, None] * slope
        for method in ("meanflow", "imf"):
            check_equal(
                each(method, tangent_blend=beta),
                lambda w, target=target: distance(net(w, x, pair.t, c_noise_s=pair.t - pair.s), target),
            )


def test_the_tangents_blend_is_not_guidances():
    """With guidance the target keeps the guided velocity v', whatever the derivative is along."""
    x0, pair = setting()
    x, v = line(x0, pair.t)
    without, with_label = velocities(x, pair.t)
    guided = jnp.where((LABEL < 0)[:, None], v, 2.5 * v + (1 - 2.5 - 0.4) * without + 0.4 * with_label)

    def slope(along):
        def u(shift):
            t = pair.t + shift
            return net(W, x + shift * along, t, c_noise_s=t - pair.s, label=LABEL)

        return jax.jvp(u, (0.0,), (1.0,))[1]

    for beta in (0.0, 0.3, 1.0):
        ours = target_of(
            losses.meanflow, x0, pair, guidance=2.5, blend=0.4, tangent_blend=beta, conditions={"label": LABEL}
        )
        expected = guided - (pair.t - pair.s)[:, None] * slope((1 - beta) * guided + beta * with_label)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


def target_of(loss, x0, pair, **knobs):
    """(b, 2): the target, seen through a distance that keeps it."""
    seen = []

    def distance(x, y):
        seen.append(y)
        return l2(x, y)

    evaluate(loss, MODEL, W, KEY, x0, pair, distance=distance, **knobs)
    return seen[0]


LABEL = jnp.array([0, 1, 2, -1, 1, -1])


def velocities(x, t):
    """u(x, t, t) without a label and with it."""
    return (net(W, x, t, c_noise_s=0 * t, label=chosen) for chosen in (jnp.full(6, -1), LABEL))


@pytest.mark.parametrize("blend", [0.0, 0.4])
def test_guidance_enters_the_velocity(blend):
    """v' = w·v + (1 − w − κ)·u(·, no label) + κ·u(·, label) at s = t; of samples without a label, v."""
    x0, pair = setting(apart=False)
    x, v = line(x0, pair.t)
    without, with_label = velocities(x, pair.t)
    expected = jnp.where((LABEL < 0)[:, None], v, 2.5 * v + (1 - 2.5 - blend) * without + blend * with_label)
    ours = target_of(losses.meanflow, x0, pair, guidance=2.5, blend=blend, conditions={"label": LABEL})
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_imfs_guidance_is_that_of_the_released_code():
    """v + (1 − 1/w)·(u(·, label) − u(·, no label)) at times of the interval, with one scale or each sample's own."""
    x0, pair = setting()
    x, v = line(x0, pair.t)
    without, with_label = velocities(x, pair.t)
    scales = jnp.array([2.5, 1.0, 4.0, 2.0, 3.0, 1.5])
    within = (pair.t >= 0.4) & (pair.t <= 0.8)

    def expected(w):
        guided = v + ((1 - 1 / w) * within)[:, None] * (with_label - without)
        return jnp.where((LABEL < 0)[:, None], v, guided)

    assert np.any(within & (LABEL >= 0))
    assert np.any(~within & (LABEL >= 0))
    ours = partial(target_of, losses.imf, x0, pair, interval=(0.4, 0.8))
    np.testing.assert_allclose(ours(guidance=2.5, conditions={"label": LABEL}), expected(2.5), rtol=1e-12)

    def net_with_scale(w, x, c_noise, *, key=None, c_noise_s, label, guidance):
        return net(w, x, c_noise, c_noise_s=c_noise_s, label=label)

    seen = []
    evaluate(
        losses.imf, Model(net_with_scale, linear, linear_flow), W, KEY, x0, pair, interval=(0.4, 0.8),
        distance=lambda x, y: (seen.append(y), l2(x, y))[1], conditions={"label": LABEL, "guidance": scales},
    )  # fmt: skip
    np.testing.assert_allclose(seen[0], expected(scales), rtol=1e-12)


def test_the_guided_velocity_is_the_direction_of_the_derivative():
    x0, pair = setting()
    x, v = line(x0, pair.t)
    label = jnp.array([0, 1, 2, 0, 1, 2])
    guided = 2.5 * v - 1.5 * net(W, x, pair.t, c_noise_s=0 * pair.t, label=jnp.full(6, -1))

    def u(shift):
        t = pair.t + shift
        return net(W, x + shift * guided, t, c_noise_s=t - pair.s, label=label)

    slope = jax.jvp(u, (0.0,), (1.0,))[1]
    ours = target_of(losses.meanflow, x0, pair, guidance=2.5, conditions={"label": label})
    np.testing.assert_allclose(ours, guided - (pair.t - pair.s)[:, None] * slope, rtol=1e-10)


def alpha_loss(w, alpha, x0, pair, weight=inverse_alpha, target_params=W):
    pair = between(lambda key, batch_size, step: pair, lambda step: alpha)(KEY, len(x0), 0)
    return evaluate(losses.alphaflow, MODEL, w, KEY, x0, pair, target_params=target_params, alpha=alpha, weight=weight)


def alpha_gradient(alpha, x0, pair, **knobs):
    return exact.loss_and_gradient(lambda w: alpha_loss(w, alpha, x0, pair, **knobs), W)[1]


def test_alpha_flow_goes_from_flow_matching_to_mean_flow():
    """At 1 regression onto v; towards 0 MeanFlow's gradient, with slope one in α; at 0 MeanFlow's loss itself."""
    x0, pair = setting()
    x, v = line(x0, pair.t)

    def flow_matching(w):
        return l2(net(w, x, pair.t, c_noise_s=pair.t - pair.s), v)

    matching = exact.loss_and_gradient(flow_matching, W)[1]
    np.testing.assert_allclose(alpha_gradient(1.0, x0, pair), matching, rtol=1e-10)
    limit = exact.loss_and_gradient(lambda w: evaluate(losses.meanflow, MODEL, w, KEY, x0, pair, **L2), W)[1]
    far, near = (np.linalg.norm(alpha_gradient(alpha, x0, pair) - limit) for alpha in (2e-3, 1e-3))
    assert near < 0.01 * np.linalg.norm(limit)
    assert 1.8 < far / near < 2.2
    np.testing.assert_allclose(alpha_gradient(0.0, x0, pair), limit, rtol=1e-12)


def test_the_adaptive_weight_of_alpha_flow_is_that_of_the_released_code():
    """α/(mean of Δ² + c) on the mean square; 1/(…) where s = t, which is flow matching, and at α = 0."""
    x0, pair = setting()
    pair = pair._replace(s=jnp.where(jnp.arange(6) < 2, pair.t, pair.s))
    x, v = line(x0, pair.t)
    alpha, c = 0.3, 1e-3
    r = pair.t + alpha * (pair.s - pair.t)
    later = net(1.1 * W, x - (pair.t - r)[:, None] * v, r, c_noise_s=r - pair.s)
    fraction = jnp.where(jnp.arange(6) < 2, 1.0, alpha)[:, None]
    target = fraction * v + (1 - fraction) * later
    fixed = jnp.mean((net(W, x, pair.t, c_noise_s=pair.t - pair.s) - target) ** 2, axis=1)

    def own(w):
        return fraction[:, 0] / (fixed + c) * l2(net(w, x, pair.t, c_noise_s=pair.t - pair.s), target)

    weight = partial(adaptive_alpha, c=c)
    check_equal(lambda w: alpha_loss(w, alpha, x0, pair, weight=weight, target_params=1.1 * W), own)
    mean_flow = partial(adaptive, p=1.0, c=2 * c)  # of the sum of two elements
    check_equal(
        lambda w: alpha_loss(w, 0.0, x0, pair, weight=weight),
        lambda w: evaluate(losses.meanflow, MODEL, w, KEY, x0, pair, distance=mean_flow),
    )


def test_alpha_is_one_then_falls_and_is_exactly_zero_from_71_percent_of_the_run_on():
    alpha = alpha_schedule(total_steps=1000)
    values = np.array([float(alpha(step)) for step in range(1001)])
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values[500], 0.5, rtol=1e-6)
    np.testing.assert_allclose(values[600], 1 / (1 + np.exp(2.5)), rtol=1e-5)
    assert np.argmax(values < 1) == 289
    assert np.argmax(values == 0) == 712


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_alpha_flow_is_consistency_training_on_the_linear_path(alpha):
    """Of f(x, t) = Φ(x, t, s), whose difference is (t − s) times that of the velocities; weighted by 1/α."""
    x0, pair = setting()
    pair = between(lambda key, batch_size, step: pair, lambda step: alpha)(KEY, len(x0), 0)

    def weight(t, r):
        return 1 / (alpha * (pair.t - pair.s) ** 2)

    def discrete(w):
        f = exact.known(lambda w, x, t, key: MODEL(w, x, t, pair.s, key=key), linear)
        return evaluate(losses.ct, f, w, KEY, x0, pair, target_params=1.1 * W, weight=weight, **L2).mean()

    ours = jax.grad(lambda w: alpha_loss(w, alpha, x0, pair, target_params=1.1 * W).mean())
    np.testing.assert_allclose(ours(jnp.asarray(W)), jax.grad(discrete)(jnp.asarray(W)), rtol=1e-9)


def random_times(count):
    t, fraction = jax.random.uniform(jax.random.key(2), (2, count), jnp.float64, 0.2, 0.95)
    s = jnp.where(jnp.arange(count) % 4, t * fraction, t)
    return Times(t, s, s)


def in_the_mean(method, params, variance):
    x0, count = exact.data(jax.random.key(1), 120_000), 120_000
    exactly, pair = Model(exact.velocity_network(variance), linear, linear_flow), random_times(count)
    if method == "alphaflow":
        pair = pair._replace(r=pair.t + 1e-3 * (pair.s - pair.t))
        knobs = {"alpha": 1e-3, "target_params": exact.AT_ZERO, **ALPHA}
    elif method == "shortcut":  # what is not halved, at the exact limit of many steps
        pair = Times(pair.t, pair.t - 1e-4, pair.t - 1e-4)
        knobs = {"fraction": 0.0, "target_params": exact.AT_ZERO, **L2}
    else:
        knobs = {"distance": partial(adaptive, p=0.5, c=1e-2), **({"tangent_blend": 0.5} if "half" in method else {})}
    method = method.removesuffix(" half")
    return evaluate(getattr(losses, method), exactly, params, KEY, x0, pair, **knobs)


@pytest.mark.parametrize("method", ["meanflow", "meanflow half", "imf", "imf half", "alphaflow", "shortcut"])
def test_no_gradient_at_the_exact_mean_velocity(method):
    """In expectation over data and noise; and there is one at that for data of 1.2 times the variance."""
    right, wrong = exact.standard_errors(partial(in_the_mean, method))
    assert right < 4
    assert wrong > 20


def test_shortcuts_halves_leave_the_exact_mean_velocity_alone():
    """To rounding, in every sample; those of a network bent in t − s do not."""
    x0, pair = exact.data(jax.random.key(1), 64), dyadic_pairs(steps=16, fraction=1.0)(jax.random.key(3), 64, 0)

    def each(bend, params):
        exactly = exact.velocity_network()

        def bent(params, x, c_noise, **times):
            return exactly(params, x, c_noise, **times) * (1 + bend * times["c_noise_s"][:, None])

        return evaluate(
            losses.shortcut, Model(bent, linear, linear_flow), params, KEY, x0, pair,
            target_params=exact.AT_ZERO, fraction=1.0, **L2,
        )  # fmt: skip

    assert np.abs(exact.gradients(partial(each, 0.0))).max() < 1e-12
    assert np.abs(exact.gradients(partial(each, 0.1))).max() > 1e-3


def test_shortcut_is_two_half_steps_then_flow_matching():
    """The target network's halves for the first fraction, the velocity for the rest; one loss for each sample."""
    x0, pair = exact.data(jax.random.key(1), 8), dyadic_pairs(steps=8, fraction=0.25)(jax.random.key(3), 8, 0)
    x, v = line(x0, pair.t)
    t, r, s = pair

    def u(w, x, t, s):
        return net(w, x, t, c_noise_s=t - s)

    one = u(1.1 * W, x, t, r)
    two = u(1.1 * W, x - (t - r)[:, None] * one, r, s)
    target = jnp.where(jnp.arange(8)[:, None] < 2, (one + two) / 2, v)
    for distance in (l2, partial(adaptive, p=1.0, c=1e-3)):
        check_equal(
            lambda w, distance=distance: evaluate(
                losses.shortcut, MODEL, w, KEY, x0, pair, target_params=1.1 * W, fraction=0.25, distance=distance
            ),
            lambda w, distance=distance: distance(u(w, x, t, s), target),
        )


def test_the_half_steps_of_the_released_code_are_guided_where_they_are_finest_and_clipped():
    """Without dropout: the half steps are given no key, the trained step is."""
    t, s = jnp.array([1.0, 0.5, 0.25, 0.75, 0.5, 1.0]), jnp.array([0.5, 0.25, 0.0, 0.5, 0.375, 0.875])
    pair, c = Times(t, (t + s) / 2, s), 0.6  # halves of 1/4, of 1/8, the finest, and flow matching
    x0, label = 2 * exact.data(jax.random.key(1), 6), jnp.array([0, 1, 2, 1, 0, 1])
    x, v = line(x0, t)
    keys = []

    def told(w, x, c_noise, *, key=None, **inputs):
        keys.append(key is not None)
        return net(w, x, c_noise, **inputs)

    def u(x, t, s, label):
        return net(1.1 * W, x, t, c_noise_s=t - s, label=label)

    def guided(x, t, s):
        without = u(x, t, s, jnp.full(6, -1))
        return jnp.where(jnp.arange(6)[:, None] < 1, u(x, t, s, label), without + 3 * (u(x, t, s, label) - without))

    one = guided(x, t, pair.r)
    two = guided(jnp.clip(x - (t - pair.r)[:, None] * one, -c, c), pair.r, s)
    target = jnp.where(jnp.arange(6)[:, None] < 4, jnp.clip((one + two) / 2, -c, c), v)
    loss = partial(
        evaluate, losses.shortcut, Model(told, linear, linear_flow), key=KEY, x0=x0, times=pair, fraction=4 / 6,
        target_params=1.1 * W, conditions={"label": label}, **L2,
    )  # fmt: skip
    np.testing.assert_allclose(
        loss(params=W, guidance=3.0, clip=c), l2(net(W, x, t, c_noise_s=t - s, label=label), target), rtol=1e-12
    )
    assert keys == [False] * 4 + [True]
    assert np.any(loss(params=W) != loss(params=W, clip=c))
    assert np.any(loss(params=W) != loss(params=W, guidance=3.0))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_alpha_flow_is_guided_as_meanflow_and_clipped_where_it_is_discrete(alpha):
    x0, pair = setting()
    pair = between(lambda key, batch_size, step: pair, lambda step: alpha)(KEY, len(x0), 0)
    x, v = line(x0, pair.t)
    without, with_label = velocities(x, pair.t)
    mixed = 2.5 * v - 1.9 * without + 0.4 * with_label
    v = jnp.where(((LABEL >= 0) & (pair.t >= 0.4) & (pair.t <= 0.8))[:, None], mixed, v)

    def u(x, t, s):
        return net(W, x, t, c_noise_s=t - s, label=LABEL)

    if alpha:
        later = u(x - (pair.t - pair.r)[:, None] * v, pair.r, pair.s)
        target = jnp.clip(alpha * v + (1 - alpha) * later, -0.7, 0.7)
        assert np.any(jnp.abs(alpha * v + (1 - alpha) * later) > 0.7)
    else:
        slope = jax.jvp(lambda x, t: u(x, t, pair.s), (x, pair.t), (v, jnp.ones(6)))[1]
        target = v - (pair.t - pair.s)[:, None] * slope
    ours = evaluate(
        losses.alphaflow, MODEL, W, KEY, x0, pair, alpha=alpha, weight=lambda gap, alpha: jnp.ones_like(gap),
        guidance=2.5, blend=0.4, interval=(0.4, 0.8), clip=0.7, conditions={"label": LABEL},
    )  # fmt: skip
    np.testing.assert_allclose(ours, l2(u(x, pair.t, pair.s), target), rtol=1e-10)


@pytest.mark.parametrize("method", ["shortcut", "alpha"])
def test_no_gradient_enters_the_target_network(method):
    x0 = exact.data(jax.random.key(1), 8)
    pair = dyadic_pairs(steps=8, fraction=0.5)(jax.random.key(3), 8, 0)

    def mean(w, target):
        if method == "shortcut":
            return evaluate(losses.shortcut, MODEL, w, KEY, x0, pair, target_params=target, fraction=0.5, **L2).mean()
        return evaluate(losses.alphaflow, MODEL, w, KEY, x0, pair, target_params=target, alpha=0.5, **ALPHA).mean()

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
        for loss in (losses.meanflow, losses.imf):

            def mean(w, loss=loss, distance=distance):
                model = Model(right, linear, linear_flow)
                return evaluate(loss, model, w, KEY, x0, Times(t, s=t), noise=noise, distance=distance).mean()

            value, slope = jax.value_and_grad(mean)(jnp.float32(0))
            assert value == pytest.approx(0, abs=1e-6)
            assert np.isfinite(slope)


@pytest.mark.parametrize("loss", [losses.meanflow, losses.imf])
def test_another_path_and_guidance_without_labels_are_clear_errors(loss):
    x0, pair = setting()
    alpha_on_trig = Model(net, trig(sigma_data=0.5), linear_flow)
    with pytest.raises(ValueError, match="linear"):
        evaluate(losses.alphaflow, alpha_on_trig, W, KEY, x0, pair, alpha=0.5, **ALPHA)
    with pytest.raises(ValueError, match="'label'"):
        evaluate(loss, MODEL, W, KEY, x0, pair, guidance=2.0, **L2)
    with pytest.raises(ValueError, match="s, the destination"):
        evaluate(loss, MODEL, W, KEY, x0, Times(pair.t), **L2)
