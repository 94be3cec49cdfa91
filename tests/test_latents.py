"""Latent consistency models: LCM's own formulas, and teachers and students of the recipes."""

from dataclasses import replace
from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import Model, Times
from cmjax.config.run import read_run
from cmjax.core.guidance import NO_LABEL
from cmjax.core.pairs import skipping_pairs
from cmjax.core.paths import ddpm, ve, vp
from cmjax.core.preconditioning import epsilon, lcm, v_prediction
from cmjax.training.method import TEACHER
from configs import mnist_latents_ddpm, mnist_latents_lcm

STABLE = ddpm(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SIGNAL = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
"""ᾱ of Stable Diffusion's thousand steps."""


def recipe(module, **model):
    """A recipe of the latents as a dictionary, with a small network."""
    config = module.get_config()
    config.data.data_dir, config.net.width, config.net.depth = "latents", 16, 1
    config.model.update(model)
    return config.to_dict()


def column(values):
    return np.asarray(values)[:, None]


def loud(params, x, c_noise, *, key=None):
    """A network that has nothing to do with its input's scale."""
    return params * jnp.cos(7 * x) + 1e6


@pytest.mark.parametrize("path", [STABLE, vp()], ids=["ddpm", "vp"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_boundary_condition_holds_exactly_for_any_network(path, prediction):
    f = jax.jit(partial(Model(loud, ve, partial(lcm, path=path, prediction=prediction)), jnp.float32(1e4)))
    x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
    np.testing.assert_array_equal(f(x, jnp.zeros(4)), x)
    assert np.all(f(x, jnp.full(4, 1e-3)) != x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("prediction", "scalings"), [("epsilon", epsilon), ("v", v_prediction)])
def test_the_student_is_the_papers_formula_of_the_teachers_estimate(prediction, scalings):
    steps = np.array([1, 20, 259, 999])
    x = jax.random.normal(jax.random.key(0), (4, 3), jnp.float64)

    def net(params, x, c_noise, *, key=None):
        return jnp.sin(x) + c_noise[:, None]

    f = Model(net, ve, partial(lcm, path=STABLE, prediction=prediction))({}, x, jnp.asarray(steps / 1000))
    teacher = Model(net, ve, partial(scalings, path=STABLE))({}, x, jnp.asarray(steps / 1000))
    tau = 10.0 * column(steps)
    expected = 0.25 / (tau**2 + 0.25) * x + tau / np.sqrt(tau**2 + 0.25) * teacher
    np.testing.assert_allclose(f, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_noise_and_v_tell_the_data():
    """Of the networks that answer rightly, the denoisers are x0 itself."""
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 3), jnp.float64)
    steps = np.array([0, 20, 500, 999])
    t, a, b = jnp.asarray(steps / 1000), column(SIGNAL[steps] ** 0.5), column((1 - SIGNAL[steps]) ** 0.5)
    x_t = a * x0 + b * noise
    for scalings, answer in ((epsilon, noise), (v_prediction, a * noise - b * x0)):
        denoiser = Model(lambda *_, answer=answer, **__: answer, ve, partial(scalings, path=STABLE))
        np.testing.assert_allclose(denoiser({}, x_t, t), x0, rtol=1e-8, atol=1e-9)


def test_every_pair_of_steps_has_its_trajectory_when_compiled():
    """`(i + skip)/1000` may round above the table's last time, where its ends must not be flat."""
    denoised = 0.7 * jnp.ones((980, 2))

    @jax.jit
    def at(i):
        t, r = (i + 20) / 1000, i / 1000
        back = STABLE.denoised(2 * denoised, STABLE.velocity(2 * denoised, denoised, t), t)
        return back, STABLE.ddim(2 * denoised, back, t, r)

    back, x_r = at(jnp.arange(980))
    np.testing.assert_allclose(back, denoised, rtol=1e-4)
    assert np.all(np.isfinite(x_r))


def test_pairs_are_whole_steps_apart_and_reach_both_ends():
    pair = skipping_pairs(steps=1000, skip=20)(jax.random.key(0), 40_000, 0)
    steps = np.rint(1000 * np.asarray(pair.t, np.float64))
    np.testing.assert_allclose(pair.t, steps / 1000, rtol=1e-6)
    np.testing.assert_allclose(pair.r, (steps - 20) / 1000, rtol=1e-6, atol=1e-9)
    assert (steps.min(), steps.max()) == (20, 999)
    with pytest.raises(ValueError, match="skip"):
        skipping_pairs(steps=1000, skip=1000)


def evaluate(method, student, teacher, x0, times, *, params=None, label=None):
    """The losses of the recipe's method at these times."""
    method = replace(method, times=lambda *_: times, teacher_function=teacher)
    conditions = {"label": jnp.zeros(len(x0), int) if label is None else label}
    known = exact.known(student, STABLE)
    return exact.evaluate_method(
        method, known, params, params, {TEACHER: None}, jax.random.key(5), x0, 0, conditions
    )  # fmt: skip


@pytest.mark.usefixtures("x64")
def test_the_guided_step_is_the_papers_in_terms_of_the_noise():
    """ε̂ = ε_∅ + w(ε_c − ε_∅), x̂_r = √ᾱ_r·(x_t − √(1−ᾱ_t)·ε̂)/√ᾱ_t + √(1−ᾱ_r)·ε̂; the student is told w."""
    steps = np.array([20, 21, 333, 740, 998, 999])
    x0, label = jax.random.normal(jax.random.key(1), (6, 3), jnp.float64), jnp.array([0, 1, 2, 0, 1, 2])

    def noise_of(x, t, label):
        return jnp.sin(x * (2.0 + label[:, None])) + t[:, None]

    def net(params, x, c_noise, *, key=None, label):
        return noise_of(x, c_noise, label)

    seen = []

    def student(params, x, t, *, key=None, label, guidance):
        seen.append((x, t, label, guidance))
        return x

    method = read_run(recipe(mnist_latents_lcm), data_there=False).method
    times = Times(jnp.asarray(steps / 1000), jnp.asarray((steps - 20) / 1000))
    evaluate(method, student, Model(net, STABLE, partial(epsilon, path=STABLE)), x0, times, label=label)
    (x_t, _, _, scale), (x_r, r, told, scale_too) = seen
    of_class, of_none = (noise_of(x_t, times.t, y) for y in (label, jnp.full(6, NO_LABEL)))
    noise = of_none + column(scale) * (of_class - of_none)
    clean = (x_t - column((1 - SIGNAL[steps]) ** 0.5) * noise) / column(SIGNAL[steps] ** 0.5)
    ends = SIGNAL[steps - 20]
    np.testing.assert_allclose(x_r, column(ends**0.5) * clean + column((1 - ends) ** 0.5) * noise, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(r, times.r)
    np.testing.assert_array_equal(told, label)
    np.testing.assert_array_equal(scale, scale_too)
    assert 1 <= scale.min() < scale.max() <= 4
    assert len(np.unique(scale)) == 6


@pytest.mark.usefixtures("x64")
def test_no_gradient_at_the_exact_map_as_the_skip_goes_to_zero():
    """On Gaussian data DDIM's step errs as its square, and with it the gradient of the exact student."""
    config = recipe(mnist_latents_lcm)
    config["objective"]["distance"] = "l2"
    method, t = read_run(config, data_there=False).method, jnp.linspace(0.15, 0.95, 16)
    x0, f = exact.data(jax.random.key(2), 16), exact.consistency_model(STABLE)

    def student(params, x, t, *, key=None, label, guidance):
        return f(params, x, t)

    def teacher(params, x, t, *, key=None, label):
        return exact.denoise(STABLE, x, t)

    def gradients(skip, student=student):
        times = Times(t, t - skip / 1000)
        return exact.gradients(lambda params: evaluate(method, student, teacher, x0, times, params=params))

    coarse, fine = np.abs(gradients(8)).max(axis=0), np.abs(gradients(2)).max(axis=0)
    np.testing.assert_allclose(coarse / fine, 16, rtol=0.1)
    wrong = exact.consistency_model(STABLE, variance=exact.OFF)
    off = gradients(2, lambda params, x, t, *, key=None, label, guidance: wrong(params, x, t))
    assert np.all(np.abs(off).max(axis=0) > 20 * fine)


@pytest.mark.parametrize("path", ["vp", "ddpm"])
def test_a_teacher_that_predicts_v_learns_and_teaches(path):
    """Its loss falls, on classes that are points; its student's has a gradient, finite at 4096 pairs."""
    teacher_run = read_run(recipe(mnist_latents_ddpm, path=path, preconditioning="v"), data_there=False)
    student_run = read_run(
        recipe(mnist_latents_lcm, path=path, preconditioning='lcm(prediction="v")'), data_there=False
    )
    label = jnp.arange(256) % 3
    x0 = jnp.broadcast_to(label[:, None, None, None] - 1.0, (256, 2, 2, 4))
    teacher, student = teacher_run.make_model(3), student_run.make_model(3)

    def differentiated(method, model, frozen):
        def mean(params, key):
            losses = exact.evaluate_method(method, model, params, params, frozen, key, x0, 0, {"label": label})
            return losses.mean()

        return jax.jit(jax.value_and_grad(mean))

    step, losses = differentiated(teacher_run.method, teacher.function, {}), []
    params = teacher.init(jax.random.key(0), (2, 2, 4))
    for _ in range(40):
        loss, gradient = step(params, jax.random.key(1))
        losses.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    assert losses[-1] < 0.7 * losses[0]

    taught = student_run.method.with_teacher(teacher.bind(params, (2, 2, 4)), student.path)
    step = differentiated(taught, student.function, {TEACHER: params})
    fresh = student.init(jax.random.key(0), (2, 2, 4))
    for seed in range(16):
        loss, gradient = step(fresh, jax.random.key(seed))
        norms = jax.tree.map(jnp.linalg.norm, gradient)
        assert np.isfinite(float(loss))
        assert 0 < sum(jax.tree.leaves(norms)) < np.inf
