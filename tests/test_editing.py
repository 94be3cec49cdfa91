"""Editing: the operators' algebra, the released code's numbers, and the exact conditional of a Gaussian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core import editing
from cmjax.core.editing import (
    colorization,
    edit,
    inpainting,
    invert,
    nothing_known,
    orthogonal,
    slerp,
    super_resolution,
    typical,
)
from cmjax.core.grids import karras_grid
from cmjax.core.oracles import gaussian_flow_map

RANDOM = np.random.default_rng(0)
TIMES = karras_grid(40, t_min=0.002, t_max=80.0, rho=7.0)[::-1].copy()
OPERATORS = {
    "inpainting": inpainting(jnp.asarray(RANDOM.integers(0, 2, (1, 8, 8, 1)), jnp.float32)),
    "colorization": colorization(),
    "super_resolution": super_resolution(4),
    "nothing_known": nothing_known(),
}


@pytest.fixture
def images():
    return jnp.asarray(RANDOM.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_operators_are_orthogonal(name, images):
    operator, other = OPERATORS[name], images[::-1] + 0.5
    np.testing.assert_allclose(operator.inverse(operator.forward(images)), images, atol=1e-6)
    product = jnp.vdot(operator.forward(images), operator.forward(other))
    np.testing.assert_allclose(product, jnp.vdot(images, other), rtol=1e-6)
    combined = operator.combine(images, other)
    np.testing.assert_allclose(operator.degrade(combined), operator.degrade(images), atol=1e-6)
    np.testing.assert_allclose(operator.degrade(operator.degrade(images)), operator.degrade(images), atol=1e-6)


def test_what_is_known_is_what_it_is_called(images):
    grey = colorization().degrade(images)
    weights = np.array(editing.LUMA)
    np.testing.assert_allclose(grey @ weights, images @ weights, atol=1e-6)
    np.testing.assert_allclose(np.cross(grey, weights), 0, atol=1e-6)
    coarse = np.asarray(super_resolution(4).degrade(images)).reshape(2, 2, 4, 2, 4, 3)
    means = np.asarray(images).reshape(2, 2, 4, 2, 4, 3).mean((2, 4), keepdims=True)
    np.testing.assert_allclose(coarse, np.broadcast_to(means, coarse.shape), atol=1e-6)


@pytest.mark.parametrize("first", [np.ones(9), np.array(editing.LUMA), np.eye(3)[0]])
def test_an_orthogonal_matrix_with_a_given_first_column(first):
    q = orthogonal(first)
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-14)
    np.testing.assert_allclose(q[:, 0], first / np.linalg.norm(first), atol=1e-14)


def test_known_pixels_are_the_inputs_to_the_last_bit(images):
    known = OPERATORS["inpainting"].known
    flow_map = lambda x, t: 0.3 * jnp.tanh(x / (1 + t))  # noqa: E731
    out = jax.jit(partial(edit, flow_map, times=TIMES[:3], t_min=0.002, operator=OPERATORS["inpainting"]))(
        jax.random.key(0), images
    )
    np.testing.assert_array_equal(out * known, images * known)
    assert jnp.abs((out - images) * (1 - known)).max() > 0.1


def test_the_released_code(openai, monkeypatch):
    """Its loop starts from noise alone and clips; of inpainting it gives −1 as the reference's missing pixels."""

    def denoiser(x, s):
        return x * 0.25 / (0.25 + s**2) + 0.1 * jnp.tanh(x) * s / (1 + s)

    def nhwc(name):
        return jnp.asarray(np.moveaxis(openai[f"edit_{name}_f32"], 1, -1))

    indices = {"colorization": [0, 10, 20, 30], "superres": [0, 10, 20, 30], "inpaint": [0, 20]}
    operators = {
        "colorization": colorization(),
        "superres": super_resolution(8),
        "inpaint": inpainting(nhwc("inpaint_mask")),
    }
    for name, operator in operators.items():
        prefix = "inpaint_" if name == "inpaint" else ""
        images, noises = nhwc(f"{prefix}images"), np.moveaxis(openai[f"edit_{prefix}noises_f32"], 2, -1)
        monkeypatch.setattr(editing, "gaussian", lambda key, shape, index, n=noises: jnp.asarray(n)[index])
        out = edit(
            denoiser, jax.random.key(0), images, operator,
            times=TIMES[indices[name]], start=jnp.zeros_like(images), t_min=0.002, clip=True,
        )  # fmt: skip
        np.testing.assert_allclose(out, nhwc(f"{name}_out"), atol=2e-6, err_msg=name)
        missing = 1 - operator.known if name == "inpaint" else 0
        np.testing.assert_allclose(operator.degrade(images) - missing, nhwc(f"{name}_ref"), atol=1e-6, err_msg=name)


def test_inpainting_draws_from_the_conditional_of_a_gaussian():
    """Small noise levels make the loop Langevin dynamics of the conditional, up to their square."""
    covariance = np.array([[0.3, 0.2], [0.2, 0.25]])
    mean, known_value, t_min, count = np.array([0.1, -0.2]), 0.9, 1e-4, 4000
    values, vectors = np.linalg.eigh(covariance)

    def flow_map(x, t):
        ratio = jnp.sqrt((values + t_min**2) / (values + t**2))
        return jnp.asarray(mean)[None] + ((x - mean[None]) @ vectors * ratio[None]) @ vectors.T

    images = jnp.full((count, 1, 1, 2), known_value)
    operator = inpainting(jnp.array([1.0, 0.0])[None, None, None])
    times = np.concatenate([TIMES[TIMES > 0.1], np.full(200, 0.1)])
    flat = lambda x, t: flow_map(x.reshape(count, 2), t).reshape(x.shape)  # noqa: E731
    out = np.asarray(
        jax.jit(partial(edit, flat, times=times, t_min=t_min, operator=operator))(jax.random.key(0), images)
    )
    unknown = out[:, 0, 0, 1]
    expected_mean = mean[1] + covariance[1, 0] / covariance[0, 0] * (known_value - mean[0])
    expected_variance = covariance[1, 1] - covariance[1, 0] ** 2 / covariance[0, 0]
    assert abs(unknown.mean() - expected_mean) < 4 * (expected_variance / count) ** 0.5 + 0.01
    assert abs(unknown.var() / expected_variance - 1) < 4 * (2 / count) ** 0.5 + 0.03


def test_slerp_keeps_unit_variance_and_meets_its_ends():
    a, b = (jnp.asarray(RANDOM.standard_normal((3, 64, 64, 3)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, jnp.ones(3)), b, atol=1e-6)
    assert abs(float(slerp(a, b, 0.3).var()) - 1) < 0.02
    np.testing.assert_allclose(slerp(a, a, 0.5), a, atol=1e-6)


def gaussian_data(x, t):
    return gaussian_flow_map(x, t, 0.002, mean=0.3, variance=0.25)


def found(images, rates):
    latents = jnp.asarray(RANDOM.standard_normal(images.shape), jnp.float32)
    for rate in rates:
        latents, errors = jax.jit(partial(invert, gaussian_data, time=80.0, steps=60))(
            images, latents, learning_rate=rate
        )
    return latents, errors


def test_inversion_finds_the_noise_of_gaussian_data():
    """Of data N(μ, λ) a latent is ((x − μ)·√((λ + T²)/(λ + ε²)) + μ)/T."""
    exact = jnp.asarray(RANDOM.standard_normal((3, 8, 8, 1)), jnp.float32)
    latents, errors = found(gaussian_data(80.0 * exact, 80.0), (0.1, 1e-2, 1e-3, 1e-4))
    np.testing.assert_allclose(latents, exact, atol=1e-3)
    np.testing.assert_allclose(errors, 0, atol=1e-3 * 0.5)


def test_inversion_keeps_to_the_norms_of_noise():
    """Of an image three times as far as data lie, the nearest that a typical latent can make has its direction."""
    exact = typical(jnp.asarray(RANDOM.standard_normal((3, 8, 8, 1)), jnp.float32))
    towards = exact - 0.3 / 80.0  # what the map stretches is z − μ/T
    images = 0.3 + 3 * (gaussian_data(80.0 * exact, 80.0) - 0.3)
    latents, errors = found(images, (0.1, 1e-2, 1e-3, 1e-4))
    d = 64
    np.testing.assert_allclose(jnp.sum(latents**2, (1, 2, 3)), d + 3 * (2 * d) ** 0.5, rtol=1e-5)
    cosine = jnp.sum(latents * towards, (1, 2, 3)) / jnp.sqrt(
        jnp.sum(latents**2, (1, 2, 3)) * jnp.sum(towards**2, (1, 2, 3))
    )
    np.testing.assert_allclose(cosine, 1, atol=1e-4)
    np.testing.assert_allclose(
        errors, jnp.sqrt(jnp.mean((gaussian_data(80 * latents, 80.0) - images) ** 2, (1, 2, 3))), rtol=1e-6
    )
    assert errors.min() > 0.1


def test_typical_latents_are_left_alone():
    z = jnp.asarray(RANDOM.standard_normal((4, 16, 16, 3)), jnp.float32)
    np.testing.assert_array_equal(typical(z), z)
    d = 16 * 16 * 3
    for factor, norm in ((3.0, d + 3 * (2 * d) ** 0.5), (0.1, d - 3 * (2 * d) ** 0.5)):
        np.testing.assert_allclose(jnp.sum(typical(factor * z) ** 2, (1, 2, 3)), norm, rtol=1e-5)


def test_wrong_arguments_are_named(images):
    with pytest.raises(ValueError, match="patch=3 does not divide the image's 8x8"):
        super_resolution(3).degrade(images)
    with pytest.raises(ValueError, match="patch=0"):
        super_resolution(0)
    with pytest.raises(ValueError, match="times"):
        edit(lambda x, t: x, jax.random.key(0), images, colorization(), times=(), t_min=0.002)
    with pytest.raises(ValueError, match="t_min"):
        edit(lambda x, t: x, jax.random.key(0), images, colorization(), times=(80.0,))
