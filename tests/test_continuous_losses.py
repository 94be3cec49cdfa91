"""The limit of the discrete losses: reached with slope one, sCM's own formula, and no gradient at the exact answer."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate

from cmjax import Model, Times
from cmjax.core import losses, preconditioning, weightings
from cmjax.core.distances import curvature_speed, l1, l2, linf, pseudo_huber, speed_by
from cmjax.core.losses.tangents import clipped, tangent, unchanged, unit_norm, unit_rms
from cmjax.core.ode import heun_step
from cmjax.core.paths import linear, per_sample, trig, ve

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
SIGMA = 0.5
TRIG = trig(sigma_data=SIGMA)
W = np.array([0.7, 0.9, 0.3, 0.2, -0.4])
ON = {
    "ve": (ve, partial(preconditioning.edm, sigma_data=SIGMA), jnp.ones_like),
    "trig": (TRIG, partial(preconditioning.trig, sigma_data=SIGMA), jnp.cos),
    "trig_edm": (TRIG, partial(preconditioning.trig_edm, sigma_data=SIGMA), jnp.cos),
    "linear": (linear, preconditioning.linear, jnp.ones_like),
}


def net(w, x, c_noise, *, key=None, return_weight=False):
    """Nonlinear in x and the time, mixing a sample's elements."""
    c = per_sample(c_noise, x)
    out = w[0] * jnp.tanh(w[1] * x + w[2] * jnp.cos(2 * c)) + w[3] * jnp.mean(x, axis=1, keepdims=True) ** 2
    out += w[4] * x * jnp.sin(c)
    return (out, w[3] * jnp.cos(c_noise) + w[1]) if return_weight else out


def model(on):
    path, scalings, _ = ON[on]
    return Model(net, path, scalings)


def setting(count=8):
    x0 = exact.data(jax.random.key(1), count)
    return x0, jax.random.uniform(jax.random.key(2), (count,), jnp.float64, 0.2, 0.9)


def trajectory(path, x0, t, by_teacher, key=KEY):
    """x_t and the velocity, as the losses draw them."""
    noise = jax.random.normal(jax.random.split(key)[0], x0.shape, x0.dtype)
    x_t = path.add_noise(x0, noise, t)
    v = path.conditional_velocity(x0, noise, t)
    return x_t, path.velocity(x_t, exact.denoise(path, x_t, t), t) if by_teacher else v


def discrete_gradients(on, by_teacher, distance, weight):
    """gap -> the gradient of CD (Heun) or CT over that gap, its loss times weight(t, r)."""
    x0, t = setting()
    loss = partial(losses.cd, teacher=exact.teacher(ON[on][0]), ode_step=heun_step) if by_teacher else losses.ct

    @jax.jit
    def gradient(gap):
        def mean(w):
            return evaluate(
                loss, model(on), w, KEY, x0, Times(t, t - gap), target_params=W, distance=distance, weight=weight
            ).mean()

        return jax.grad(mean)(jnp.asarray(W))

    return gradient


def check_slope_one(gradient, limit):
    """The gradient over a gap nears `limit` in proportion to the gap."""
    far, near = (np.linalg.norm(gradient(gap) - limit) for gap in (2e-4, 1e-4))
    assert near < 0.01 * np.linalg.norm(limit)
    assert 1.8 < far / near < 2.2


def continuous(on, by_teacher, w, **knobs):
    """The continuous-time loss, by the exact teacher's velocity or that of the data."""
    loss = partial(losses.continuous_cd, teacher=exact.teacher(ON[on][0])) if by_teacher else losses.continuous_ct
    x0, t = setting()
    return evaluate(loss, model(on), w, KEY, x0, Times(t), **knobs)


@pytest.mark.slow
@pytest.mark.parametrize("by_teacher", [True, False], ids=["teacher", "data"])
@pytest.mark.parametrize("on", ON)
def test_discrete_gradients_tend_to_twice_the_continuous_one(on, by_teacher):
    def loss(w):
        return continuous(on, by_teacher, w, weight=weightings.snr)

    gradient = discrete_gradients(on, by_teacher, l2, lambda t, r: t**-2 / (t - r))
    check_slope_one(gradient, 2 * exact.loss_and_gradient(loss, W)[1])


def smooth(x, y):
    """A distance that is no power of a norm: its Hessian depends on the place."""
    return jnp.mean((jnp.sinh(x) - jnp.sinh(y)) ** 2, axis=1)


SPEEDS = {
    "l1": (l1, speed_by(l1), 1),
    "linf": (linf, speed_by(linf), 1),
    "smooth": (smooth, curvature_speed(smooth), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEEDS)
def test_the_gradient_is_half_the_discrete_ones_limit_with_every_distance(name):
    distance, speed, power = SPEEDS[name]

    def loss(w):
        return continuous("ve", True, w, weight=weightings.snr, speed=speed)

    gradient = discrete_gradients("ve", True, distance, lambda t, r: t**-2 / (t - r) ** (power - 1))
    limit = 2 * exact.loss_and_gradient(loss, W)[1]
    if name == "smooth":
        check_slope_one(gradient, limit)
    else:  # a sign, or one element's, which it has already over a small gap
        np.testing.assert_allclose(gradient(1e-7), limit, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l2", *SPEEDS])
def test_without_stop_gradient_the_loss_is_the_limit_of_distillations(name):
    """Value and gradient of λ·d(f_θ(x_t, t), f_θ(x_r, r))/(t − r)^p, whose target is differentiated too."""
    distance, speed, power = {**SPEEDS, "l2": (l2, speed_by(l2), 2)}[name]
    x0, t = setting()
    x, v = trajectory(ve, x0, t, True)
    gap, f = 1e-5, model("ve")

    def discrete(w):
        ahead, behind = f(w, x + gap / 2 * v, t + gap / 2), f(w, x - gap / 2 * v, t - gap / 2)
        return t**-2 * distance(ahead, behind) / gap**power

    def ours(w):
        return continuous("ve", True, w, weight=weightings.snr, speed=speed, stop_gradient=False)

    (value, gradient), (expected, slope) = (exact.loss_and_gradient(loss, W) for loss in (ours, discrete))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_the_curvature_of_the_squared_distance_is_its_speed():
    f, v = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float64)
    np.testing.assert_allclose(curvature_speed(l2)(f, v), speed_by(l2)(f, v), rtol=1e-12)


@pytest.mark.parametrize("huber", [False, True], ids=["l2", "pseudo-Huber"])
@pytest.mark.parametrize("on", ON)
def test_scm_is_the_limit_weighted_by_the_gain(on, huber):
    """c_out·∇F is the gradient of f; pseudo-Huber with c = 0 has the tangent of unit norm for its limit."""
    _, scalings, gain = ON[on]
    x0, t = setting()

    def loss(w):
        normalize = partial(unit_norm, c=0.0) if huber else unchanged
        return evaluate(losses.scm_ct, model(on), w, KEY, x0, Times(t), gain=gain, normalize=normalize)

    def weight(t, r):
        size = jnp.abs(scalings(t).c_out)
        return 1 / size if huber else gain(t) / size / (t - r)

    distance = partial(pseudo_huber, c=0.0) if huber else l2
    # of two elements the gradient of l2's mean square, 2/D·g, is g, as it is of pseudo-Huber's norm
    check_slope_one(discrete_gradients(on, False, distance, weight), exact.loss_and_gradient(loss, W)[1])


def own_tangent(w, x, t, v, warmup):
    """sCM's g as it is written, with dF/dt along the straight line of velocity v."""

    def on_line(shift):
        return net(w, (x + shift * v) / SIGMA, t + shift)

    out, slope = jax.jvp(on_line, (0.0,), (1.0,))
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    return out, -(cos**2) * (SIGMA * out - v) - warmup * cos * sin * (x + SIGMA * slope)


@pytest.mark.parametrize("by_teacher", [True, False], ids=["sCD", "sCT"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_the_tangent_is_scms_own(by_teacher, warmup):
    x0, t = setting()
    x, v = trajectory(TRIG, x0, t, by_teacher)
    ours = tangent(model("trig"), W, x, t, v, gain=jnp.cos, warmup=warmup, weighted=True, conditions={})
    out, g = own_tangent(W, x, t, v, warmup)
    np.testing.assert_allclose(ours.out, out, rtol=1e-12)
    np.testing.assert_allclose(ours.g, g, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.log_weight, net(W, x / SIGMA, t, return_weight=True)[1], rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_the_tangent_is_the_gain_times_the_models_derivative(on):
    """Of f itself along a straight line, by differences of fourth order."""
    path, _, gain = ON[on]
    x0, t = setting()
    x, v = trajectory(path, x0, t, False)
    f, h = model(on), 1e-3
    ahead = {n: f(W, x + n * h * v, t + n * h) for n in (-2, -1, 1, 2)}
    slope = (8 * (ahead[1] - ahead[-1]) - (ahead[2] - ahead[-2])) / (12 * h)
    g = tangent(f, W, x, t, v, gain=gain, conditions={}).g
    np.testing.assert_allclose(g, per_sample(gain(t), x) * slope, rtol=1e-7, atol=1e-8)


def check_equal(ours, own):
    """Each sample's loss, and the gradient."""
    (value, gradient), (own_value, own_gradient) = (exact.loss_and_gradient(loss, W) for loss in (ours, own))
    assert value.shape == (8,)
    np.testing.assert_allclose(value, own_value, rtol=1e-10)
    np.testing.assert_allclose(gradient, own_gradient, rtol=1e-9)
    assert np.all(gradient != 0)


@pytest.mark.parametrize("normalize", [unit_norm, unit_rms, clipped, unchanged])
def test_scm_and_its_gradient_are_the_papers(normalize):
    """e^w/D·‖F_θ − F_θ⁻ − g‖² − w, the frozen network apart from the trained one."""
    x0, t = setting()
    x, v = trajectory(TRIG, x0, t, False)

    def own(w):
        out, log_weight = net(w, x / SIGMA, t, return_weight=True)
        frozen, g = own_tangent(W, x, t, v, 0.7)
        norm = jnp.sqrt(jnp.sum(g**2, axis=1, keepdims=True))
        g = {
            unit_norm: g / (norm + 0.1),
            unit_rms: g / (norm / np.sqrt(2) + 0.1),
            clipped: jnp.minimum(jnp.maximum(g, -1), 1),
            unchanged: g,
        }[normalize]
        return jnp.exp(log_weight) / 2 * jnp.sum((out - frozen - g) ** 2, axis=1) - log_weight

    def ours(w):
        knobs = {"warmup": 0.7, "weighted": True, "normalize": normalize}
        return evaluate(losses.scm_ct, model("trig"), w, KEY, x0, Times(t), **knobs)

    check_equal(ours, own)


def test_continuous_loss_and_its_gradient_are_the_product_of_model_and_slope():
    x0, t = setting()
    x, v = trajectory(ve, x0, t, True)
    f = model("ve")
    slope = jax.jvp(lambda shift: f(W, x + shift * v, t + shift), (0.0,), (1.0,))[1]

    def ours(w):
        return continuous("ve", True, w, weight=weightings.snr)

    def own(w):
        return t**-2 * jnp.mean(f(w, x, t) * slope, axis=1)

    check_equal(ours, own)


EXACT = {
    "ve": (*ON["ve"], lambda c: jnp.exp(4 * c)),
    "trig": (*ON["trig"], lambda c: c),
    "linear": (*ON["linear"], lambda c: c),
}


def each(on, loss, count, normalize, params, variance):
    """The losses of a student that is exact for data of this variance, from data or from the exact teacher."""
    path, scalings, gain, time_of = EXACT[on]
    student, (x0, t) = Model(exact.network(path, scalings, time_of, variance), path, scalings), setting(count)
    knobs = {"gain": gain, "normalize": normalize} if loss in SCM else {"weight": weightings.uniform}
    if loss in (losses.scm_cd, losses.continuous_cd, WITHOUT_STOP_GRADIENT):
        knobs["teacher"] = exact.teacher(path)
    return evaluate(loss, student, params, KEY, x0, Times(t), **knobs)


SCM = (losses.scm_ct, losses.scm_cd)
WITHOUT_STOP_GRADIENT = partial(losses.continuous_cd, stop_gradient=False)


@pytest.mark.parametrize("loss", [losses.scm_cd, losses.continuous_cd, WITHOUT_STOP_GRADIENT])
@pytest.mark.parametrize("on", EXACT)
def test_the_exact_teacher_leaves_the_exact_student_alone(on, loss):
    """To rounding, in every sample."""
    alone = partial(each, on, loss, 64, unit_norm)
    assert np.abs(exact.gradients(alone, exact.VARIANCE)).max() < 1e-10
    assert np.abs(exact.gradients(alone, exact.OFF)).max() > 1e-2


@pytest.mark.parametrize(
    ("on", "loss", "normalize"),
    [
        *((on, losses.continuous_ct, None) for on in EXACT),
        *(("trig", losses.scm_ct, normalize) for normalize in (unchanged, unit_norm)),
        ("linear", losses.scm_ct, unchanged),
    ],
)
def test_data_leaves_the_exact_student_alone_in_the_mean(on, loss, normalize):
    right, wrong = exact.standard_errors(partial(each, on, loss, 80_000, normalize))
    assert right < 4
    assert wrong > 20


@pytest.mark.parametrize("loss", [losses.scm_cd, losses.continuous_cd, WITHOUT_STOP_GRADIENT])
def test_no_gradient_enters_the_teacher(loss):
    x0, t = setting()
    knobs = {} if loss is losses.scm_cd else {"weight": weightings.uniform}

    def mean(w, teacher):
        teacher = exact.teacher(TRIG, teacher)
        return evaluate(loss, model("trig"), w, KEY, x0, Times(t), teacher=teacher, **knobs).mean()

    w, teacher = jnp.asarray(W), jnp.asarray([0.1, 0.2, -0.1, 0.05])
    student, other = jax.grad(mean, argnums=(0, 1))(w, teacher)
    assert np.all(student != 0)
    assert not np.any(other)
    assert mean(w, teacher) != mean(w, 2 * teacher)


@pytest.mark.parametrize("normalize", [unit_norm, unit_rms, clipped])
def test_a_tangent_of_zero_is_no_nan(normalize):
    np.testing.assert_array_equal(normalize(jnp.zeros((3, 2), jnp.float32)), jnp.zeros((3, 2)))
    x0, t = jnp.zeros((3, 2), jnp.float32), jnp.array([0.1, 0.5, 1.5], jnp.float32)

    def still(w, x, c_noise, *, key=None):
        return w * x

    def loss(w):
        of_zero = Model(still, TRIG, ON["trig"][1])
        return evaluate(
            losses.scm_ct, of_zero, w, KEY, x0, Times(t), noise=0 * x0, normalize=normalize
        ).mean()  # fmt: skip

    value, slope = jax.value_and_grad(loss)(jnp.float32(0.0))
    assert np.isfinite(value)
    assert np.isfinite(slope)


def test_normalized_tangents_are_their_definitions():
    g = jnp.array([[3.0, 4.0], [0.3, -0.4]])
    np.testing.assert_allclose(unit_norm(g, c=0.5), [[3 / 5.5, 4 / 5.5], [0.3, -0.4]], rtol=1e-12)
    np.testing.assert_allclose(
        unit_rms(g, c=0.0), np.array([[3.0, 4.0]] * 2) * np.sqrt(2) / 5 * [[1, 1], [1, -1]], rtol=1e-12
    )
    np.testing.assert_array_equal(clipped(g, bound=3.5), [[3, 3.5], [0.3, -0.4]])


def test_dropout_is_shared_and_conditions_reach_the_network():
    """The primal network, its derivative and the target are of one call: one mask."""
    seen = []

    def recorder(w, x, c_noise, *, key=None, label):
        seen.append((key, label))
        return w * x * jax.random.bernoulli(key, 0.5, x.shape)

    x0, t = setting(3)
    label = jnp.arange(3)
    recorded = Model(recorder, TRIG, ON["trig"][1])
    evaluate(losses.scm_ct, recorded, 0.3, KEY, x0, Times(t), conditions={"label": label})
    assert len(seen) == 1
    assert seen[0][0] is not None
    assert seen[0][1] is label
