"""Paths: the velocity is the derivative of the trajectory, and what one path knows another does."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.ode import heun_step, ode_velocity, solve
from cmjax.core.paths import Path, carry, ddpm, linear, per_sample, table, trig, ve, vp

PATHS = {"ve": ve, "trig": trig(sigma_data=0.5), "linear": linear, "vp": vp(), "ddpm": ddpm()}
on_every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
INSIDE = np.array([0.0123, 0.1105, 0.3456, 0.7003, 0.9502])
"""Times of every path, between the entries of ddpm's table."""


def batch(seed=0, shape=(5, 3, 2)):
    x0, noise = jax.random.normal(jax.random.key(seed), (2, *shape))
    return x0, noise, jnp.linspace(0.1, 0.9, shape[0])


@pytest.mark.usefixtures("x64")
@on_every_path
def test_velocity_is_the_time_derivative_of_the_trajectory(path):
    x0, noise, t = batch()
    x_t, derivative = jax.jvp(lambda t: path.add_noise(x0, noise, t), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(path.velocity(x_t, x0, t), derivative, rtol=1e-12, atol=1e-13)


def test_ve_is_the_papers_formula():
    x0, noise, t = batch()
    column = np.asarray(t)[:, None, None]
    np.testing.assert_allclose(ve.add_noise(x0, noise, t), x0 + column * noise, rtol=1e-6)
    np.testing.assert_allclose(ve.velocity(x0, noise, t), (x0 - noise) / column, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 5, 5, 3), (4, 4)])
def test_a_time_for_each_sample_and_one_for_all(shape):
    x0, noise, t = batch(shape=shape)
    rows = [ve.add_noise(x0[i : i + 1], noise[i : i + 1], float(t[i])) for i in range(len(t))]
    np.testing.assert_allclose(ve.add_noise(x0, noise, t), jnp.concatenate(rows), rtol=1e-6)
    assert per_sample(t, x0).shape == (4,) + (1,) * (len(shape) - 1)
    assert per_sample(0.5, x0).shape == (1,) * len(shape)


@pytest.mark.usefixtures("x64")
@on_every_path
def test_derivatives_of_the_scales(path):
    """By differences of fourth order within an interval of the table, and by jvp."""
    t, h = jnp.asarray(INSIDE), 1e-5
    for scale, slope in ((path.a, path.da), (path.b, path.db)):
        differences = (8 * (scale(t + h) - scale(t - h)) - (scale(t + 2 * h) - scale(t - 2 * h))) / (12 * h)
        np.testing.assert_allclose(slope(t), differences, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(slope(t), jax.jvp(scale, (t,), (jnp.ones_like(t),))[1], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
@on_every_path
def test_a_time_and_its_noise_level_are_one(path):
    np.testing.assert_allclose(path.time_at(path.noise_level(jnp.asarray(INSIDE))), INSIDE, rtol=1e-11)
    levels = jnp.array([0.02, 0.5, 3.0, 40.0])
    np.testing.assert_allclose(path.noise_level(path.time_at(levels)), levels, rtol=1e-11)


def test_a_path_without_its_times_says_so():
    with pytest.raises(ValueError, match="time_of"):
        Path(ve.a, ve.b, ve.da, ve.db).time_at(0.5)


@pytest.mark.usefixtures("x64")
@on_every_path
def test_velocity_and_denoised_are_inverse(path):
    x, denoised = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float64)
    t = jnp.asarray(INSIDE)
    np.testing.assert_allclose(path.denoised(x, path.velocity(x, denoised, t), t), denoised, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("path", [ve, linear, PATHS["trig"]], ids=["ve", "linear", "trig"])
def test_without_noise_the_denoised_is_x_over_a(path):
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(path.denoised(x, 0.7 * x, jnp.zeros(2)), x, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@on_every_path
def test_ddim_keeps_the_noise(path):
    x0, noise, t = batch()
    r = 0.6 * t
    np.testing.assert_allclose(
        path.ddim(path.add_noise(x0, noise, t), x0, t, r), path.add_noise(x0, noise, r), rtol=1e-11, atol=1e-13
    )
    if path in (ve, linear):
        x, denoised = path.add_noise(x0, noise, t), 0.3 * noise
        euler = x + per_sample(r - t, x) * path.velocity(x, denoised, t)
        np.testing.assert_allclose(path.ddim(x, denoised, t, r), euler, rtol=1e-10, atol=1e-12)


def test_scales_are_the_papers():
    t = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(trig(sigma_data=0.4).b(t), 0.4 * np.sin(t), rtol=1e-6)
    np.testing.assert_allclose(trig(sigma_data=0.4).noise_level(t), 0.4 * np.tan(t), rtol=1e-6)
    mean = np.exp(-(t**2) * (15.0 - 0.2) / 4 - t * 0.2 / 2)
    np.testing.assert_allclose(vp(beta_min=0.2, beta_max=15.0).a(t), mean, rtol=1e-6)
    np.testing.assert_allclose(vp(beta_min=0.2, beta_max=15.0).b(t), np.sqrt(1 - mean**2), rtol=1e-6)
    assert trig(sigma_data=0.4) is trig(sigma_data=0.4)  # equal under jit's cache


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("schedule", "start", "end"), [("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012)])
def test_ddpms_table_is_the_product_of_one_minus_beta(schedule, start, end):
    product, signals = 1.0, []
    for i in range(1000):
        fraction = i / 999
        beta = start + fraction * (end - start)
        if schedule == "scaled_linear":
            beta = (start**0.5 + fraction * (end**0.5 - start**0.5)) ** 2
        product *= 1 - beta
        signals.append(product)
    path, t = ddpm(schedule=schedule, beta_start=start, beta_end=end), jnp.arange(1000) / 1000
    np.testing.assert_allclose(path.a(t) ** 2, signals, rtol=1e-11)
    np.testing.assert_allclose(path.a(t) ** 2 + path.b(t) ** 2, 1, rtol=1e-13)
    np.testing.assert_allclose(path.b(t), np.sqrt(1 - np.array(signals)), rtol=1e-10)
    np.testing.assert_allclose(path.a((3 + 0.5) / 1000) ** 4, signals[3] * signals[4], rtol=1e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(ddpm, schedule="cosine"), "schedule"),
        (partial(ddpm, beta_start=0.5, beta_end=0.1), "beta_start"),
        (partial(ddpm, steps=1), "steps"),
        (partial(table, (-0.1,)), "table"),
        (partial(table, (0.0, -0.1)), "table"),
        (partial(table, (-0.2, -0.1)), "table"),
    ],
)
def test_what_is_no_schedule_is_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("source", PATHS.values(), ids=PATHS)
@on_every_path
def test_a_denoiser_is_carried_exactly(source, path):
    """The closed form of Gaussian data on each path: D = μ + a·λ/V·(x − a·μ), V = a²·λ + b²."""
    x, t = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64), jnp.asarray(INSIDE)
    if "ddpm" in (name for name, value in PATHS.items() if value in (source, path)):
        t = path.time_at(jnp.array([0.02, 0.1, 1.0, 10.0, 50.0]))  # levels within the table
    seen = []

    def closed_form(params, x, t, *, key=None, label):
        seen.append((params, key, label))
        return exact.denoise(source, x, t)

    ours = carry(closed_form, source, path)("w", x, t, key=3, label=7)
    np.testing.assert_allclose(ours, exact.denoise(path, x, t), rtol=1e-10)
    assert seen == [("w", 3, 7)]


@pytest.mark.usefixtures("x64")
def test_the_ode_of_every_path_ends_at_one_x0():
    """From the state of one noise level, by Heun to another, both divided by a: the flow map of `ve`."""
    x, levels = jnp.array([[20.0, -35.0], [3.0, 50.0], [0.1, -8.0]]), jnp.geomspace(20.0, 0.05, 1501)
    expected = exact.flow(ve, x, levels[0], levels[-1])
    for path in PATHS.values():
        times = path.time_at(levels)
        velocity = ode_velocity(partial(exact.denoise, path), path)
        ends = jax.jit(partial(solve, velocity, ode_step=heun_step))(path.a(times[0]) * x, times)
        np.testing.assert_allclose(ends / path.a(times[-1]), expected, rtol=1e-4)
        np.testing.assert_allclose(
            exact.flow(path, path.a(times[0]) * x, times[0], times[-1]) / path.a(times[-1]), expected, rtol=1e-11
        )


def test_precision_of_a_table_is_that_of_its_use():
    """JAX keeps what it made of a numpy array: a table first read in float32 must not stay so."""
    path = ddpm(steps=50)
    times = np.array([0.0, 0.5, 0.98])
    jax.jit(path.a)(jnp.asarray(times))
    betas = np.linspace(1e-4, 0.02, 50)
    with jax.enable_x64(True):
        expected = np.sqrt(np.cumprod(1 - betas))[[0, 25, 49]]
        np.testing.assert_allclose(path.a(jnp.asarray(times)), expected, rtol=1e-13)
