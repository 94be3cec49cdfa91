"""Oracles against numerical posteriors, brute force and a fine ODE solve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core import oracles
from cmjax.core.ode import heun_step, solve
from cmjax.core.paths import ve

MIXTURE = {
    "weights": np.array([0.2, 0.5, 0.3]),
    "means": np.array([-1.0, 0.1, 0.9]),
    "variances": np.array([0.04, 0.01, 0.09]),
}
pytestmark = pytest.mark.usefixtures("x64")


def mixture(dims=0):
    """MIXTURE on the line, or with its means on a diagonal of `dims` dimensions."""
    means = MIXTURE["means"][:, None] * np.linspace(1, -0.5, dims) if dims else MIXTURE["means"]
    return {name: jnp.asarray(value) for name, value in {**MIXTURE, "means": means}.items()}


def gaussian_pdf(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("t", [0.05, 0.5, 5.0])
def test_mixture_denoiser_is_the_posterior_mean(t):
    x0 = np.linspace(-4, 4, 20_001)  # a rectangle rule on a smooth density that vanishes at the ends
    prior = sum(w * gaussian_pdf(x0, m, v) for w, m, v in zip(*MIXTURE.values(), strict=True))
    for x in (-2.0, 0.3, 1.5):
        joint = prior * gaussian_pdf(x, x0, t**2)
        ours = oracles.mixture_denoiser(jnp.array([[x]]), t, **mixture(1))
        assert float(ours[0, 0]) == pytest.approx((x0 * joint).sum() / joint.sum(), rel=1e-9)


def test_mixture_score_is_the_gradient_of_the_log_density():
    x, t = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0.1, 0.3, 1.0, 3.0, 10.0])

    def log_density(x, t):
        total = MIXTURE["variances"] + t**2
        exponents = -jnp.sum((x[None] - mixture(3)["means"]) ** 2, axis=1) / (2 * total)
        return jnp.log(jnp.sum(MIXTURE["weights"] * jnp.exp(exponents) / total**1.5))

    expected = jax.vmap(jax.grad(log_density))(x, t)
    np.testing.assert_allclose(oracles.mixture_score(x, t, **mixture(3)), expected, rtol=1e-9)


def test_mixture_of_one_is_the_gaussian():
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.01, 0.1, 1.0, 10.0])
    one = {"weights": jnp.ones(1), "means": jnp.full((1, 2), 0.3), "variances": jnp.full(1, 0.25)}
    gaussian = {"mean": 0.3, "variance": 0.25}
    np.testing.assert_allclose(
        oracles.mixture_denoiser(x, t, **one), oracles.gaussian_denoiser(x, t, **gaussian), rtol=1e-12
    )
    line = {name: value.reshape(-1)[:1] for name, value in one.items()}
    for s in (0.002, 20.0):
        np.testing.assert_allclose(
            oracles.mixture_flow_map_1d(x[:, 0], t, s, **line),
            oracles.gaussian_flow_map(x[:, 0], t, s, **gaussian),
            rtol=1e-10,
        )


def test_flow_map_on_the_line_is_the_ode():
    x = jnp.array([-60.0, -3.0, 0.5, 7.0, 150.0])

    def velocity(x, t):
        return ve.velocity(x, oracles.mixture_denoiser(x, t, **mixture(1)), t)

    times = jnp.asarray(np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 4001) ** 7)
    solved = jax.jit(partial(solve, velocity, ode_step=heun_step))(x[:, None], times)[:, 0]
    ours = oracles.mixture_flow_map_1d(x, 80.0, times[-1], **mixture())
    np.testing.assert_allclose(ours, solved, atol=1e-6)


def test_flow_map_on_the_line_is_a_group():
    """Φ(·, s, u)∘Φ(·, t, s) = Φ(·, t, u), the identity at equal times, and the way back to the larger time."""
    x = jnp.linspace(-5.0, 5.0, 9)
    flow = partial(oracles.mixture_flow_map_1d, **mixture())
    middle = flow(x, 2.0, 0.5)
    np.testing.assert_allclose(flow(middle, 0.5, 0.1), flow(x, 2.0, 0.1), rtol=1e-9)
    np.testing.assert_allclose(flow(x, 2.0, 2.0), x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flow(middle, 0.5, 2.0), x, rtol=1e-8, atol=1e-10)
    assert np.all(np.diff(middle) > 0)


def test_gaussian_flow_map_solves_the_ode_of_its_denoiser():
    data = {"mean": jnp.array([0.3, -1.0]), "variance": jnp.array([0.25, 4.0])}
    data = {name: value[None] for name, value in data.items()}
    x, t = jnp.array([[1.0, 2.0], [-3.0, 0.5]]), jnp.array([2.0, 0.7])
    for s in (jnp.array([1.5, 0.1]), jnp.array([2.0, 0.7])):
        state, slope = jax.jvp(lambda s: oracles.gaussian_flow_map(x, t, s, **data), (s,), (jnp.ones(2),))
        np.testing.assert_allclose(
            slope, ve.velocity(state, oracles.gaussian_denoiser(state, s, **data), s), rtol=1e-12
        )
    np.testing.assert_allclose(oracles.gaussian_flow_map(x, t, t, **data), x, rtol=1e-14)


def test_dataset_denoiser_is_the_weighted_mean_of_the_data():
    data, x = (np.random.default_rng(seed).normal(size=(n, 2, 3)) for seed, n in ((0, 7), (1, 4)))
    t = np.array([0.3, 0.7, 2.0, 30.0])
    ours = oracles.dataset_denoiser(jnp.asarray(x), jnp.asarray(t), data=jnp.asarray(data))
    for row, noisy, time in zip(ours, x, t, strict=True):
        weights = np.exp(-np.sum((noisy - data) ** 2, axis=(1, 2)) / (2 * time**2))
        expected = (weights[:, None, None] * data).sum(0) / weights.sum()
        np.testing.assert_allclose(row, expected, rtol=1e-10)


def test_dataset_denoiser_goes_from_the_nearest_point_to_the_mean():
    data = jax.random.normal(jax.random.key(0), (7, 2, 3))
    noisy = data[::-1] + 0.01
    np.testing.assert_allclose(oracles.dataset_denoiser(noisy, 0.002, data=data), data[::-1], rtol=1e-12)
    mean = jnp.broadcast_to(data.mean(0), data.shape)
    np.testing.assert_allclose(oracles.dataset_denoiser(noisy, 1e6, data=data), mean, atol=1e-10)


def test_dataset_denoiser_is_a_mixture_of_points():
    data, x = jax.random.normal(jax.random.key(0), (5, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    points = {"weights": jnp.full(5, 0.2), "means": data, "variances": jnp.zeros(5)}
    for t in (0.1, 1.0):
        ours = oracles.dataset_denoiser(x, t, data=data)
        np.testing.assert_allclose(ours, oracles.mixture_denoiser(x, t, **points), rtol=1e-10)
