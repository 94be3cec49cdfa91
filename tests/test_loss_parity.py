"""Losses against the peers' recorded values and gradients, beyond those of test_losses.py, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import DENOISER, student, with_noise

from cmjax.core import distances, weightings
from cmjax.core.grids import karras_grid
from cmjax.core.losses import (
    consistency_distillation_loss,
    consistency_training_loss,
    denoising_loss,
    progressive_distillation_loss,
)
from cmjax.core.solvers import euler_step, heun_step
from cmjax.core.typing import Pair

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
    return Pair(jnp.asarray(descending[i]), jnp.asarray(descending[i + 1]))


@pytest.mark.parametrize(
    ("name", "n", "size"),
    [("ct", 40, ""), ("ct", 11, ""), ("cd_heun", 40, ""), ("cd_euler", 40, ""), ("ct", 40, "_48")],
)
def test_l2_at_32_pixels_is_openais(openai, name, n, size):
    """They record 16-pixel images, enlarged, and 48-pixel ones, reduced without smoothing."""
    x0, w_target = nhwc(openai[f"x_start{size}"]), jnp.asarray(openai["w_target"])
    knobs = {
        "path": with_noise(nhwc(openai[f"noise{size}"])),
        "distance": L2_32,
        "weight": weightings.uniform,
    }
    loss = consistency_training_loss
    if name != "ct":
        ode_step = {"cd_heun": heun_step, "cd_euler": euler_step}[name]
        teacher = {"teacher": DENOISER, "teacher_params": jnp.asarray(openai["w_teacher"]), "ode_step": ode_step}
        loss = partial(consistency_distillation_loss, **teacher)

    def each(w):
        return loss(student(), w, w_target, KEY, x0, neighbours(openai, n), **knobs)

    recorded = f"loss_{name}_N{n}_l2-32_" + ("48px" if size else "uniform")
    check(each, openai, recorded, None if size else f"grad_{recorded}")


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_progressive_distillation_is_openais(openai, norm):
    """8 steps of the student, each two of the teacher, on the grid of 9 points."""
    descending, i = karras_grid(9, t_min=0.002, t_max=80.0, rho=7.0)[::-1], openai["indices_progdist_8"]
    pair = Pair(jnp.asarray(descending[i]), jnp.asarray(descending[i + 1]))

    def each(w):
        return progressive_distillation_loss(
            DENOISER, w, KEY, jnp.asarray(openai["x_start"]), pair,
            path=with_noise(openai["noise"]), teacher=DENOISER, teacher_params=jnp.asarray(openai["w_teacher"]),
            rho=7.0, distance=getattr(distances, norm), weight=weightings.truncated_snr,
        )  # fmt: skip

    check(each, openai, f"loss_progdist_N8_{norm}_truncated-snr", f"grad_loss_progdist_N8_{norm}")


def test_unweighted_denoising_loss_is_openais(openai):
    sigma = jnp.asarray(openai["edm_sigmas"])

    def each(w):
        return denoising_loss(
            DENOISER, w, KEY, jnp.asarray(openai["x_start"]), Pair(sigma, 0 * sigma),
            path=with_noise(openai["noise"]), weight=weightings.uniform,
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
        return denoising_loss(
            DENOISER, w, KEY, jnp.asarray(edm["loss_images"]), Pair(sigma, 0 * sigma),
            path=with_noise(edm["loss_eps"]), weight=weightings.snr,
        )  # fmt: skip

    w, size = jnp.asarray(openai["w_online"]), edm["loss_images"][0].size
    np.testing.assert_allclose(each(w), edm[f"loss_{name}"].mean((1, 2, 3)), rtol=1e-9)
    gradient = size * jax.grad(lambda w: each(w).mean())(w)
    np.testing.assert_allclose(gradient, edm[f"grad_loss_{name}"], rtol=1e-9)
