"""Distances by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.distances import adaptive, cosine_gap, directional, huber, l1, l2, pseudo_huber

X, Y = np.random.default_rng(0).standard_normal((2, 5, 4, 4, 3)).astype(np.float32)


def test_adaptive_has_a_finite_gradient_where_nothing_differs():
    gradient = jax.grad(lambda x: jnp.sum(adaptive(x, jnp.ones((2, 3)), p=1.0, c=0.0)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dims", [(4, 4, 3), (48,)])
def test_distances_are_their_definitions(dims):
    x, y = jnp.asarray(X).reshape(5, *dims), jnp.asarray(Y).reshape(5, *dims)
    gap = (X - Y).reshape(5, -1).astype(np.float64)
    np.testing.assert_allclose(l1(x, y), np.abs(gap).mean(1), rtol=1e-6)
    np.testing.assert_allclose(l2(x, y), (gap**2).mean(1), rtol=1e-6)
    for c in (0.0, 0.03, 5.0):
        expected = np.sqrt((gap**2).sum(1) + c**2) - c
        np.testing.assert_allclose(pseudo_huber(x, y, c=c), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "distance",
    [
        l1,
        l2,
        lambda x, y: pseudo_huber(x, y, c=0.1),
        lambda x, y: pseudo_huber(x, y, c=0.0),
        lambda x, y: adaptive(x, y, p=1.0, c=1e-3),
    ],
)
def test_zero_for_equals_with_a_finite_gradient(distance):
    x = jnp.asarray(X)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-8)
    assert np.all(np.isfinite(jax.grad(lambda x, y: distance(x, y).sum())(x, x)))


def test_pseudo_huber_gradient_has_the_norm_of_a_saturating_residual():
    x, y, c = jnp.asarray(X), jnp.asarray(Y), 2.0
    gradient = jax.grad(lambda x: pseudo_huber(x, y, c=c).sum())(x).reshape(5, -1)
    squared = ((X - Y).reshape(5, -1) ** 2).sum(1)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), np.sqrt(squared / (squared + c**2)), rtol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_adaptive_weighs_the_square_by_a_power_of_itself_held_fixed(p):
    x, y = jnp.asarray(X), jnp.asarray(Y)
    gap = (X - Y).reshape(5, -1).astype(np.float64)
    weight = 1 / ((gap**2).sum(1) + 0.1) ** p
    np.testing.assert_allclose(adaptive(x, y, p=p, c=0.1), weight * (gap**2).sum(1), rtol=1e-5)
    gradient = jax.grad(lambda x: adaptive(x, y, p=p, c=0.1).sum())(x).reshape(5, -1)
    np.testing.assert_allclose(gradient, 2 * weight[:, None] * gap, rtol=1e-4, atol=1e-6)


def test_huber_is_the_mean_over_elements():
    """The loss of LCM's released code; its pseudo-Huber relative is of the whole norm."""
    x, y = np.random.default_rng(0).normal(0, 0.01, (2, 4, 5, 5, 2))
    expected = np.mean(np.sqrt((x - y) ** 2 + 0.001**2) - 0.001, axis=(1, 2, 3))
    np.testing.assert_allclose(huber(jnp.asarray(x), jnp.asarray(y), c=0.001), expected, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: huber(x, x + 0.0, c=0.001).sum())(jnp.ones((2, 3))), 0)


def test_the_direction_of_zeros_has_a_finite_gradient():
    y = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    zeros = jnp.zeros_like(y)
    np.testing.assert_array_equal(cosine_gap(zeros, y), 1)
    slope = jax.grad(lambda x: directional(x, y, c=1e-3).sum())(zeros)
    # a step against it turns the zeros towards y
    assert np.isfinite(slope).all()
    assert (cosine_gap(-slope, y) < 0.01).all()
    x = jax.random.normal(jax.random.key(1), y.shape)
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(cosine_gap(x, y), 1 - cosine.mean((1, 2)), rtol=1e-5)
