"""Losses: where they vanish, what they differentiate, and the peers' recorded values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate, known
from peers import DENOISER, student

from cmjax import Times
from cmjax.core import distances, losses, weightings
from cmjax.core.grids import karras_grid
from cmjax.core.ode import euler_step, heun_step
from cmjax.core.oracles import gaussian_denoiser, gaussian_flow_map
from cmjax.core.paths import ve

KEY = jax.random.key(0)
X0 = jax.random.normal(jax.random.key(1), (6, 4, 4, 2))
TIMES = Times(t=jnp.array([0.01, 0.1, 0.5, 2.0, 10.0, 80.0]), r=jnp.array([0.002, 0.07, 0.4, 1.0, 8.0, 60.0]))
T_MIN = 0.002
LABEL = jnp.arange(6)
PLAIN = {"distance": distances.l2, "weight": weightings.uniform}


STUDENT = student(T_MIN)
W = jnp.array([0.7, 0.9, 0.3, 0.2, 0.15, 0.05])
W_TARGET = 1.1 * W
TEACHER = {"teacher": partial(DENOISER, 0.9 * W), "ode_step": heun_step}


@pytest.mark.parametrize("method", ["ct", "cd"])
def test_no_gradient_enters_the_target(method):
    def loss(w, w_target):
        if method == "ct":
            return evaluate(losses.ct, STUDENT, w, KEY, X0, TIMES, target_params=w_target, **PLAIN).mean()
        return evaluate(losses.cd, STUDENT, w, KEY, X0, TIMES, target_params=w_target, **PLAIN, **TEACHER).mean()

    student, target = jax.grad(loss, argnums=(0, 1))(W, W_TARGET)
    assert not np.any(target)
    assert np.all(student != 0)
    # the student's own parameters as target: the same gradient as from a copy of them
    shared = jax.grad(lambda w: loss(w, w))(W)
    np.testing.assert_array_equal(shared, jax.grad(loss)(W, jnp.array(W)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("ode_step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_distillation_loss_of_the_exact_flow_map_is_the_solvers_local_error(ode_step, order):
    data = {"mean": 0.3, "variance": 0.25}
    gaps = np.array([0.04, 0.02, 0.01])
    x0 = X0.astype(jnp.float64)

    def f(params, x, t, *, key=None):
        return gaussian_flow_map(x, t, T_MIN, **data)

    errors = []
    for gap in gaps:
        t = jnp.full(6, 1.0)
        loss = evaluate(
            losses.cd, known(f, ve), {}, KEY, x0, Times(t, t - gap), distance=distances.l1,
            weight=weightings.uniform, teacher=lambda x, t: gaussian_denoiser(x, t, **data), ode_step=ode_step,
        )  # fmt: skip
        errors.append(float(loss.mean()))
    assert np.polyfit(np.log(gaps), np.log(errors), 1)[0] == pytest.approx(order + 1, abs=0.06)


@pytest.mark.usefixtures("x64")
def test_training_loss_vanishes_where_the_data_is_a_point():
    """x0 + t·noise is then the trajectory itself, and f(x, t) = x0 + t_min/t·(x − x0)."""
    x0 = jnp.full((6, 3), 0.7)

    def f(scale, x, t, *, key=None):
        return scale * gaussian_flow_map(x, t, T_MIN, mean=0.7, variance=0.0)

    times = Times(*(time.astype(jnp.float64) for time in TIMES[:2]))
    loss = partial(evaluate, losses.ct, known(f, ve), key=KEY, x0=x0, times=times, target_params=1.0, **PLAIN)
    np.testing.assert_allclose(loss(params=1.0), 0, atol=1e-25)
    assert np.all(loss(params=1.1) > 1e-3)


def test_denoising_loss_is_least_at_the_exact_denoiser():
    x0 = 0.3 + 0.5 * jax.random.normal(jax.random.key(2), (20_000, 1))
    times = Times(jnp.exp(jax.random.normal(jax.random.key(3), (20_000,))))

    def slopes(scale):
        """d loss/d scale of each sample; D = mean + scale·shrinkage·(x − mean) is exact at scale 1."""

        def denoiser(scale, x, t, *, key=None):
            return 0.3 + scale * (gaussian_denoiser(x, t, mean=0.3, variance=0.25) - 0.3)

        weight = partial(weightings.karras, sigma_data=0.5)
        return jax.jvp(
            lambda scale: evaluate(losses.denoising, known(denoiser, ve), scale, KEY, x0, times, weight=weight),
            (scale,),
            (jnp.ones(()),),
        )[1]

    for scale, sign in ((0.9, -1), (1.0, 0), (1.1, 1)):
        slope = slopes(jnp.float32(scale))
        z = slope.mean() / (slope.std() / np.sqrt(len(slope)))
        assert (abs(z) < 4) if sign == 0 else (sign * z > 6)


def test_loss_is_weight_times_distance_for_each_sample():
    def weight(t, r):
        return 3 * t + r

    plain = evaluate(losses.ct, STUDENT, W, KEY, X0, TIMES, target_params=W_TARGET, **PLAIN)
    weighted = evaluate(losses.ct, STUDENT, W, KEY, X0, TIMES, target_params=W_TARGET, **{**PLAIN, "weight": weight})
    assert plain.shape == (6,)
    np.testing.assert_allclose(weighted, (3 * TIMES.t + TIMES.r) * plain, rtol=1e-6)


@pytest.mark.parametrize("method", ["ct", "cd"])
def test_student_and_target_drop_the_same_units_and_the_teacher_none(method):
    keys = {"student": [], "teacher": []}

    def recorder(name):
        def f(params, x, t, *, key=None, label):
            assert label is LABEL
            keys[name].append(key)
            return jnp.zeros_like(x) if key is None else jax.random.normal(key, x.shape)

        return f

    conditions = {"label": LABEL}
    f = known(recorder("student"), ve)
    if method == "ct":
        loss = evaluate(losses.ct, f, {}, KEY, X0, TIMES, target_params={}, **PLAIN, conditions=conditions)
    else:
        teacher = {**TEACHER, "teacher": partial(recorder("teacher"), {})}
        loss = evaluate(losses.cd, f, {}, KEY, X0, TIMES, target_params={}, **PLAIN, **teacher, conditions=conditions)
        assert keys["teacher"] == [None, None]
    assert not np.any(loss)  # the network's output is its dropout noise alone
    first, second = keys["student"]
    assert jnp.array_equal(jax.random.key_data(first), jax.random.key_data(second))


WEIGHTS = {
    "uniform": weightings.uniform,
    "snr": weightings.snr,
    "snr+1": weightings.snr_plus_one,
    "karras": partial(weightings.karras, sigma_data=0.5),
    "truncated-snr": weightings.truncated_snr,
}
RECORDED = [(40, "l1", "uniform"), *((40, "l2", weight) for weight in WEIGHTS)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "n", "norm", "weight"),
    [
        *(("ct", *case) for case in [*RECORDED, (11, "l1", "uniform"), (11, "l2", "uniform")]),
        *(("cd_heun", *case) for case in RECORDED),
        *(("cd_euler", *case) for case in RECORDED),
    ],
)
def test_consistency_losses_and_gradients_are_the_peers(openai, method, n, norm, weight):
    """Theirs reaches x_r of CT by an Euler step with D = x0, ours adds the noise directly: equal but for rounding."""
    descending, i = karras_grid(n, t_min=T_MIN, t_max=80.0, rho=7.0)[::-1], openai[f"indices_{n}"]
    times = Times(jnp.asarray(descending[i]), jnp.asarray(descending[i + 1]))
    x0, w_target, w_teacher = (jnp.asarray(openai[name]) for name in ("x_start", "w_target", "w_teacher"))
    knobs = {
        "target_params": w_target,
        "noise": jnp.asarray(openai["noise"]),
        "distance": {"l1": distances.l1, "l2": distances.l2}[norm],
        "weight": WEIGHTS[weight],
    }
    loss = losses.ct
    if method != "ct":
        ode_step = {"cd_heun": heun_step, "cd_euler": euler_step}[method]
        loss = partial(losses.cd, teacher=partial(DENOISER, w_teacher), ode_step=ode_step)

    def each(w):
        return evaluate(loss, STUDENT, w, KEY, x0, times, **knobs)

    name, w = f"loss_{method}_N{n}_{norm}_{weight}", jnp.asarray(openai["w_online"])
    np.testing.assert_allclose(each(w), openai[name], rtol=1e-9)
    gradient = openai[f"grad_{name}"]
    np.testing.assert_allclose(jax.grad(lambda w: each(w).mean())(w), gradient, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_denoising_loss_and_gradient_are_openais(openai):
    sigma = jnp.asarray(openai["edm_sigmas"])

    def each(w):
        return evaluate(
            losses.denoising, DENOISER, w, KEY, jnp.asarray(openai["x_start"]), Times(sigma),
            noise=jnp.asarray(openai["noise"]), weight=WEIGHTS["karras"],
        )  # fmt: skip

    w = jnp.asarray(openai["w_online"])
    np.testing.assert_allclose(each(w), openai["loss_edm_karras"], rtol=1e-9)
    np.testing.assert_allclose(jax.grad(lambda w: each(w).mean())(w), openai["grad_loss_edm_karras"], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_denoising_loss_and_gradient_are_edms(openai, edm):
    """Theirs sums over a sample's elements; ours is the mean."""
    sigma = jnp.exp(1.2 * jnp.asarray(edm["loss_rnd_normal"]).reshape(5) - 1.2)
    size = edm["loss_images"][0].size

    def each(w):
        return evaluate(
            losses.denoising, DENOISER, w, KEY, jnp.asarray(edm["loss_images"]), Times(sigma),
            noise=jnp.asarray(edm["loss_eps"]), weight=WEIGHTS["karras"],
        )  # fmt: skip

    w = jnp.asarray(openai["w_online"])
    np.testing.assert_allclose(each(w), edm["loss_edm"].mean((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(size * jax.grad(lambda w: each(w).mean())(w), edm["grad_loss_edm"], rtol=1e-9)
