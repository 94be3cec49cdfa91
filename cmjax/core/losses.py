"""The methods, each a few lines over the skeleton of `objectives`. All return one loss for each sample, (b,).

They take the network as a function of parameters (`precondition` makes one from any callable), the clean batch `x0`
(b, ...) in [-1, 1] units and the times that a sampler of `pairs` drew. Keyword `conditions` go to the network. What
differentiates by time is in `tangent_losses`, what learns a flow map between any two times in `flow_losses`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from cmjax.core.distances import l2, pseudo_huber
from cmjax.core.objectives import batch_denoiser, consistency_loss, moved_to, with_boundary
from cmjax.core.pairs import part_of
from cmjax.core.paths import Path, per_sample
from cmjax.core.preconditioning import Preconditioning, apply_net, combine
from cmjax.core.solvers import halfway
from cmjax.core.typing import (
    Conditions,
    Denoiser,
    Distance,
    Net,
    OdeStep,
    Pair,
    Params,
    PerSample,
    PRNGKey,
    Samples,
    Weight,
)
from cmjax.core.weightings import inverse_gap

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


def uncertain_denoising_loss(
    net: Net,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    scalings: Preconditioning,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """λ(t)/e^u(t)·‖D_θ(x_t, t) − x0‖²/D + u(t), with the network's weight head u.   [Karras et al. 2024, eq. 16]"""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t, c = path.add_noise(x0, noise, pair.t), scalings(pair.t)
    out, log_variance = apply_net(net, params, x_t, c, key=dropout_key, return_weight=True, **conditions)
    return weight(pair.t, pair.r) / jnp.exp(log_variance) * l2(combine(c, x_t, out), x0) + log_variance


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
    x_t, x_r = path.add_noise(x0, noise, pair.t), path.add_noise(x0, noise, pair.r)
    return consistency_loss(
        f, params, target_params, x_t, x_r, pair,
        distance=distance, weight=weight, dropout_key=dropout_key, conditions=conditions,
    )  # fmt: skip


def improved_consistency_training_loss(
    f: Denoiser,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """iCT: CT with the student as its own target, pseudo-Huber with c = 0.00054·√D, and weight 1/(t − r).

    Its pairs: `grid_pairs` of the curriculum `doubling` with `lognormal_intervals`.   [Song & Dhariwal 2024]
    """
    distance = partial(pseudo_huber, c=0.00054 * x0[0].size ** 0.5)
    return consistency_training_loss(
        f, params, params, key, x0, pair, path=path, distance=distance, weight=inverse_gap, conditions=conditions
    )


def easy_consistency_tuning_loss(
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
    """ECT: CT down to r = 0, where the target is x0 itself.   [Geng et al. 2024, alg. 1]

    f is a diffusion model's denoiser, which training starts from. Its pairs: `ratio_pairs`.
    """
    return consistency_training_loss(
        with_boundary(f), params, target_params, key, x0, pair,
        path=path, distance=distance, weight=weight, conditions=conditions,
    )  # fmt: skip


def stable_consistency_tuning_loss(
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
    """SCT: ECT whose x_r is a DDIM step from x_t with D estimated from the batch, which varies less than x0.

    Of samples with a `label` those of one class count.   [Wang et al. 2024, SCT]
    """
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = path.add_noise(x0, noise, pair.t)
    denoised = batch_denoiser(x_t, pair.t, x0, path=path, label=conditions.get("label"))
    return consistency_loss(
        with_boundary(f), params, target_params, x_t, path.ddim(x_t, denoised, pair.t, pair.r), pair,
        distance=distance, weight=weight, dropout_key=dropout_key, conditions=conditions,
    )  # fmt: skip


def multistep_consistency_training_loss(
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
    """Multistep CT: both estimates are moved by DDIM to pair.s, their segment's edge.   [Heek et al. 2024, alg. 1]

    Its pairs: `segmented`. Sampled by DDIM along the edges.
    """
    return consistency_training_loss(
        moved_to(f, path, pair.destination), params, target_params, key, x0, pair,
        path=path, distance=distance, weight=weight, conditions=conditions,
    )  # fmt: skip


def truncated_consistency_training_loss(
    f: Denoiser,
    params: Params,
    target_params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    first_stage: Denoiser,
    first_params: Params,
    boundary: float,
    share: float,
    boundary_weight: float,
    distance: Distance,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """TCM's second stage: ECT for t >= t' alone; where r < t', the frozen model of a first stage is the target.

    A `share` of the batch is held to the first stage at t' itself, and its mean counts `boundary_weight` in the mean of
    what is returned.   [Lee et al. 2025, TCM, alg. 1]   boundary: t'; pairs: `ratio_pairs` of times above it.
    """
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_r = path.add_noise(x0, noise, pair.r)
    first = with_boundary(first_stage)(first_params, x_r, pair.r, **conditions)
    own = with_boundary(f)(target_params, x_r, pair.r, key=dropout_key, **conditions)
    target = jnp.where(per_sample(pair.r < boundary, x0), first, own)
    estimate = f(params, path.add_noise(x0, noise, pair.t), pair.t, key=dropout_key, **conditions)
    losses = weight(pair.t, pair.r) * distance(estimate, jax.lax.stop_gradient(target))

    held = part_of(share, len(x0))
    inputs = jax.tree.map(lambda condition: condition[:held], conditions)
    x_b = path.add_noise(x0[:held], noise[:held], boundary)
    anchor = jax.lax.stop_gradient(first_stage(first_params, x_b, boundary, **inputs))
    at_boundary = distance(f(params, x_b, boundary, key=dropout_key, **inputs), anchor)
    return losses.at[:held].add(boundary_weight * len(x0) / held * at_boundary)


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
    """CD: x_r is one `ode_step` of the teacher's PF-ODE from x_t.   [Song et al. 2023, eq. 7, alg. 2]

    With `guidance.guided(teacher)` and a condition `guidance` (b,) that the student's network takes too, it learns the
    guided teacher for every scale that it is given.   [Luo et al. 2023, LCM, sec. 4.2]
    """
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
    t, r = pair.t, pair.r
    x_t = x = path.add_noise(x0, noise, t)
    middle = halfway(t, r, rho)
    for start, end in ((t, middle), (middle, r)):
        x = path.ddim(x, teacher(teacher_params, x, start, **conditions), start, end)
    ratio = path.b(r) / path.b(t)
    target = (x - per_sample(ratio, x) * x_t) / per_sample(path.a(r) - ratio * path.a(t), x)
    estimate = denoiser(params, x_t, t, key=dropout_key, **conditions)
    return weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))
