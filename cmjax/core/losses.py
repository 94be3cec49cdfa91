"""The methods, each a few lines over the skeleton of `objectives`. All return one loss for each sample, (b,).

They take the network as a function of parameters (`precondition` makes one from any callable), the clean batch `x0`
(b, ...) in [-1, 1] units and the times that a sampler of `pairs` drew. Keyword `conditions` go to the network.
"""

import jax

from cmjax.core.distances import l2
from cmjax.core.objectives import consistency_loss
from cmjax.core.paths import Path, per_sample
from cmjax.core.solvers import halfway
from cmjax.core.typing import (
    Conditions,
    Denoiser,
    Distance,
    OdeStep,
    Pair,
    Params,
    PerSample,
    PRNGKey,
    Samples,
    Weight,
)

NO_CONDITIONS: Conditions = {}


def denoising_loss(
    denoiser: Denoiser,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """λ(t)·‖D_θ(x_t, t) − x0‖²/D: what trains a diffusion teacher.   [Karras et al. 2022, eq. 8]"""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    estimate = denoiser(params, path.add_noise(x0, noise, pair.t), pair.t, key=dropout_key, **conditions)
    return weight(pair.t, pair.r) * l2(estimate, x0)


def consistency_training_loss(
    f: Denoiser,
    params: Params,
    target_params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    distance: Distance,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """CT: both points share x0 and the noise, x_r = a(r)·x0 + b(r)·noise.   [Song et al. 2023, eq. 10, alg. 3]"""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t, x_r = (path.add_noise(x0, noise, time) for time in pair)
    return consistency_loss(
        f, params, target_params, x_t, x_r, pair,
        distance=distance, weight=weight, dropout_key=dropout_key, conditions=conditions,
    )  # fmt: skip


def consistency_distillation_loss(
    f: Denoiser,
    params: Params,
    target_params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    teacher: Denoiser,
    teacher_params: Params,
    ode_step: OdeStep,
    distance: Distance,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """CD: x_r is one `ode_step` of the teacher's PF-ODE from x_t.   [Song et al. 2023, eq. 7, alg. 2]"""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = path.add_noise(x0, noise, pair.t)

    def velocity(x, t):
        return path.velocity(x, teacher(teacher_params, x, t, **conditions), t)

    x_r = ode_step(velocity, x_t, pair.t, pair.r)
    return consistency_loss(
        f, params, target_params, x_t, x_r, pair,
        distance=distance, weight=weight, dropout_key=dropout_key, conditions=conditions,
    )  # fmt: skip


def progressive_distillation_loss(
    denoiser: Denoiser,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    teacher: Denoiser,
    teacher_params: Params,
    rho: float,
    distance: Distance,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """λ(t, r)·d(D_θ(x_t, t), D*), (b,): one step of the student does what two of the teacher's do.

    The teacher goes by DDIM from t to m, halfway to r in t^(1/rho), and on to x_r; D* is the estimate of which one
    step from x_t makes that x_r: (x_r − β·x_t)/(a_r − β·a_t) with β = b_r/b_t.   [Salimans & Ho 2022, alg. 2, app. G]
    """
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    t, r = pair
    x_t = x = path.add_noise(x0, noise, t)
    middle = halfway(t, r, rho)
    for start, end in ((t, middle), (middle, r)):
        x = path.ddim(x, teacher(teacher_params, x, start, **conditions), start, end)
    ratio = path.b(r) / path.b(t)
    target = (x - per_sample(ratio, x) * x_t) / per_sample(path.a(r) - ratio * path.a(t), x)
    estimate = denoiser(params, x_t, t, key=dropout_key, **conditions)
    return weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))
