"""Losses against the peers' recorded values and gradients, beyond those of test_losses.py, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate
from peers import DENOISER, student

from cmjax import Times
from cmjax.core import distances, losses, weightings
from cmjax.core.grids import karras_grid
from cmjax.core.ode import euler_step, heun_step

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
L2_32 = partial(distances.l2, resize=32)


def nhwc(images):
    return jnp.asarray(images).transpose(0, 2, 3, 1)


def check(each, openai, name, gradient=None):
    w = jnp.asarray(openai["w_online"])
    np.testing.assert_allclose(each(w), openai[name], rtol=1e-9)
    if gradient:
        np.testing.assert_allclose(jax.grad(lambda w: each(w).mean())(w), openai[gradient], rtol=1e-9)


def neighbours(openai, n):
    descending, i = karras_grid(n, t_min=0.002, t_max=80.0, rho=7.0)[::-1], openai[f"indices_{n}"]
    return Times(jnp.asarray(descending[i]), jnp.asarray(descending[i + 1]))


@pytest.mark.parametrize(
    ("name", "n", "size"),
    [("ct", 40, ""), ("ct", 11, ""), ("cd_heun", 40, ""), ("cd_euler", 40, ""), ("ct", 40, "_48")],
)
def test_l2_at_32_pixels_is_openais(openai, name, n, size):
    """They record 16-pixel images, enlarged, and 48-pixel ones, reduced without smoothing."""
    x0, w_target = nhwc(openai[f"x_start{size}"]), jnp.asarray(openai["w_target"])
    knobs = {
        "target_params": w_target,
        "noise": nhwc(openai[f"noise{size}"]),
        "distance": L2_32,
        "weight": weightings.uniform,
    }
    loss = losses.ct
    if name != "ct":
        ode_step = {"cd_heun": heun_step, "cd_euler": euler_step}[name]
        loss = partial(losses.cd, teacher=partial(DENOISER, jnp.asarray(openai["w_teacher"])), ode_step=ode_step)

    def each(w):
        return evaluate(loss, student(), w, KEY, x0, neighbours(openai, n), **knobs)

    recorded = f"loss_{name}_N{n}_l2-32_" + ("48px" if size else "uniform")
    check(each, openai, recorded, None if size else f"grad_{recorded}")


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_progressive_distillation_is_openais(openai, norm):
    """8 steps of the student, each two of the teacher, on the grid of 9 points."""
    descending, i = karras_grid(9, t_min=0.002, t_max=80.0, rho=7.0)[::-1], openai["indices_progdist_8"]
    times = Times(jnp.asarray(descending[i]), jnp.asarray(descending[i + 1]))

    def each(w):
        return evaluate(
            losses.pd, DENOISER, w, KEY, jnp.asarray(openai["x_start"]), times, noise=jnp.asarray(openai["noise"]),
            target_params=jnp.asarray(openai["w_teacher"]), rho=7.0, distance=getattr(distances, norm),
            weight=weightings.truncated_snr,
        )  # fmt: skip

    check(each, openai, f"loss_progdist_N8_{norm}_truncated-snr", f"grad_loss_progdist_N8_{norm}")


def test_unweighted_denoising_loss_is_openais(openai):
    sigma = jnp.asarray(openai["edm_sigmas"])

    def each(w):
        return evaluate(
            losses.denoising, DENOISER, w, KEY, jnp.asarray(openai["x_start"]), Times(sigma),
            noise=jnp.asarray(openai["noise"]), weight=weightings.uniform,
        )  # fmt: skip

    check(each, openai, "loss_edm_xs_mse")


def vp_times(u, beta_d=19.9, beta_min=0.1, smallest=1e-5):
    t = 1 + u * (smallest - 1)
    return np.sqrt(np.expm1(beta_d / 2 * t**2 + beta_min * t))


def ve_times(u, smallest=0.02, largest=100.0):
    return smallest * (largest / smallest) ** u


@pytest.mark.parametrize(("name", "times"), [("vp", vp_times), ("ve", ve_times)])
def test_vp_and_ve_losses_are_a_distribution_of_times_and_the_weight_snr(openai, edm, name, times):
    """Theirs sums over a sample's elements, ours is the mean. The times are drawn here: they are the peer's own."""
    sigma = jnp.asarray(times(edm["loss_rnd_uniform"].reshape(5)))

    def each(w):
        return evaluate(
            losses.denoising, DENOISER, w, KEY, jnp.asarray(edm["loss_images"]), Times(sigma),
            noise=jnp.asarray(edm["loss_eps"]), weight=weightings.snr,
        )  # fmt: skip

    w, size = jnp.asarray(openai["w_online"]), edm["loss_images"][0].size
    np.testing.assert_allclose(each(w), edm[f"loss_{name}"].mean((1, 2, 3)), rtol=1e-9)
    gradient = size * jax.grad(lambda w: each(w).mean())(w)
    np.testing.assert_allclose(gradient, edm[f"grad_loss_{name}"], rtol=1e-9)
