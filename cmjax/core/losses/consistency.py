"""Consistency training: the student at (x_t, t) learns the target's estimate at the less noisy (x_r, r)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cmjax import checks
from cmjax.core.batch import Batch
from cmjax.core.distances import pseudo_huber
from cmjax.core.model import Model, check_path
from cmjax.core.paths import Path, as_time, flat, per_sample, widened
from cmjax.core.times import part_of
from cmjax.core.typing import Denoiser, Distance, Params, PerSample, PRNGKey, Samples, Time, Weight
from cmjax.core.weightings import inverse_gap
from cmjax.ranges import Positive
from cmjax.system.mesh import with_auto_axes


def consistency_loss(
    f: Denoiser,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    x_t: Samples,
    x_r: Samples,
    *,
    target_params: Params | None,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """The loss λ(t, r)·d(f_θ(x_t, t), f_θ⁻(x_r, r)), (b,), which this family has in common.   [Song et al. 2023, eq. 7]

    No gradient flows through f_θ⁻. Student and target share `key`, so they drop out the same units.
    """
    t, r = batch.times.t, batch.times.target
    checks.ordered(r, t, "r t", apart=True)
    estimate = f(params, x_t, t, key=key, **batch.conditions)
    target = f(params if target_params is None else target_params, x_r, r, key=key, **batch.conditions)
    return weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))


def ct(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """CT: both points fraction x0 and the noise, x_r = a(r)·x0 + b(r)·noise.   [Song et al. 2023, eq. 10, alg. 3]"""
    x_t, x_r = batch.noised(model.path, batch.times.t), batch.noised(model.path, batch.times.target)
    return consistency_loss(
        model, params, key, batch, x_t, x_r, target_params=target_params, distance=distance, weight=weight
    )


def ict(model: Model, params: Params, key: PRNGKey | None, batch: Batch) -> PerSample:
    """iCT: CT with the student as its own target, pseudo-Huber with c = 0.00054·√D, and weight 1/(t − r).

    Its times: `grid_pairs` of the curriculum `doubling` with `lognormal_intervals`.   [Song & Dhariwal 2024]
    """
    distance = partial(pseudo_huber, c=0.00054 * math.prod(batch.x0.shape[1:]) ** 0.5)
    return ct(model, params, key, batch, distance=distance, weight=inverse_gap)


def ect(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """ECT: CT down to r = 0, where the target is x0 itself.   [Geng et al. 2024, ECT, alg. 1]

    Training starts from a diffusion model's denoiser. Its times: `ratio_pairs`.
    """
    x_t, x_r = batch.noised(model.path, batch.times.t), batch.noised(model.path, batch.times.target)
    return consistency_loss(
        with_boundary(model), params, key, batch, x_t, x_r,
        target_params=target_params, distance=distance, weight=weight,
    )  # fmt: skip


def sct(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """SCT: ECT where x_r is a DDIM step from x_t with a D estimated from the batch. This D varies less than x0.

    Where samples have a `label`, D is estimated from the samples of the same class.   [Wang et al. 2024, SCT]
    """
    path, t, r = model.path, batch.times.t, batch.times.target
    x_t = batch.noised(path, t)
    denoised = batch_denoiser(x_t, t, batch.x0, path=path, label=batch.conditions.get("label"))
    return consistency_loss(
        with_boundary(model), params, key, batch, x_t, path.ddim(x_t, denoised, t, r),
        target_params=target_params, distance=distance, weight=weight,
    )  # fmt: skip


def tcm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    first_stage: Callable[..., Samples],
    boundary: Positive,
    fraction: float,
    boundary_weight: Positive,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """TCM's second stage: ECT for t >= t' only; where r < t', the target is the frozen model of the first stage.

    A `fraction` of the batch has t = t', where the target is always the first stage's. The mean of the returned losses
    is the mean loss above t' plus `boundary_weight` times the mean loss at t'.   [Lee et al. 2025, TCM, alg. 1]
    The first stage drops out the same units as the student, as in the released code. Without, the loss at t' would be
    the noise of the student's dropout, divided by the gap.

    Args: first_stage: (x, t, *, key, **conditions) -> its estimate of the clean data. boundary: t'.
          Its times: `ratio_pairs` of `times.held_at(..., at=boundary, fraction=fraction)`.
    Raises: ValueError where the fraction is no part of the batch, or the batch size is symbolic.
    """
    check_path(model, first_stage)
    path, t, r = model.path, batch.times.t, batch.times.target
    checks.ordered(r, t, "r t", apart=True)
    x_r, conditions = batch.noised(path, r), batch.conditions
    # at r = 0 the target is x_r itself; a model may be undefined there, so it is evaluated at 1
    first = first_stage(x_r, jnp.where(r > 0, r, 1), key=key, **conditions)
    first = jnp.where(per_sample(r > 0, x_r), first, x_r)
    estimated = with_boundary(model)(params if target_params is None else target_params, x_r, r, key=key, **conditions)
    target = jnp.where(per_sample(r < boundary, x_r), first, estimated)
    # no `with_boundary`: t is at least t', which is above 0
    estimate = model(params, batch.noised(path, t), t, key=key, **conditions)
    losses = weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))
    size, count = t.shape[0], part_of(fraction, t.shape[0])
    if not 0 < count < size:
        raise ValueError(
            f"fraction={fraction} of a batch of {size} must leave samples both at the boundary and above it"
        )
    held = count / size
    # over its share of the batch, each part counts by its own mean
    return losses * jnp.where(t <= boundary, boundary_weight / held, 1 / (1 - held))


def multistep_ct(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """Multistep CT: λ(t, r)·d(D_θ(x_t, t), D*), where D* moves x_t to the point to which the target moves x_r.

    DDIM with the target's estimate moves x_r to x_s, at the lower edge s of the segment; D* is the estimate with which
    DDIM moves x_t to the same x_s. Its times: `segmented`. Samples are drawn by DDIM along the edges.
    [Heek et al. 2024, multistep consistency models, alg. 1]
    """
    path, times = model.path, batch.times
    t, r, s = times.t, times.target, times.destination
    checks.ordered(r, t, "r t", apart=True)
    x_t, x_r = batch.noised(path, t), batch.noised(path, r)
    x_s = moved_to(model, path, s)(params if target_params is None else target_params, x_r, r, key=key,
                                   **batch.conditions)  # fmt: skip
    target = path.ddim_inverse(x_s, x_t, t, s)
    estimate = model(params, x_t, t, key=key, **batch.conditions)
    return weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))


def with_boundary(f: Denoiser) -> Denoiser:
    """f with f(x, 0) = x, even if its network is undefined at time 0, as with c_noise = ln t."""

    def bounded(params: Params, x: Samples, t: Time, *, key: Any = None, **conditions: Any) -> Samples:
        t = jnp.broadcast_to(as_time(t, x), x.shape[:1])
        # evaluated at 1 where t = 0: a nan there would reach the gradient though it is not chosen
        estimate = f(params, x, jnp.where(t > 0, t, 1), key=key, **conditions)
        return jnp.where(per_sample(t > 0, x), estimate, x)

    return bounded


def moved_to(f: Denoiser, path: Path, s: Time) -> Denoiser:
    """A function like f that gives the state at time s <= t to which DDIM moves x_t with f's estimate; x_t if t = s.

    It is also defined at s = t = 0, where f and DDIM are not.   [Heek et al. 2024, multistep CM, eq. 7]
    """

    def moved(params: Params, x: Samples, t: Time, *, key: Any = None, **conditions: Any) -> Samples:
        t, end = (jnp.broadcast_to(as_time(time, x), x.shape[:1]) for time in (t, s))
        # DDIM divides by b(t), so another time stands in where nothing moves
        start = jnp.where(t > end, t, 1)
        away = path.ddim(x, f(params, x, start, key=key, **conditions), start, end)
        return jnp.where(per_sample(t > end, x), away.astype(x.dtype), x)

    return moved


@with_auto_axes  # each sample is compared with all others
def batch_denoiser(
    x_t: Samples, t: Time, batch: Samples, *, path: Path, label: Int[Array, " b"] | None = None
) -> Samples:
    """D(x_t, t) for data uniform on `batch`, where x_t[i] is noised batch[i].   [Wang et al. 2024, SCT, eq. 9]

    With labels, the data of a sample are only the samples of its own class.
    """
    data, rows = flat(widened(batch)), flat(widened(x_t))
    a, b = (jnp.broadcast_to(scale(as_time(t, x_t)), x_t.shape[:1])[:, None] for scale in (path.a, path.b))
    # −‖x − a·y‖²/(2b²) without the term in ‖x‖², which does not depend on y
    products = jnp.matmul(rows, data.T, precision="highest")
    logits = (a * products - a**2 * jnp.sum(data**2, axis=1)[None] / 2) / b**2
    if label is not None:
        logits = jnp.where(label[:, None] == label[None], logits, -jnp.inf)
    denoised = jnp.matmul(jax.nn.softmax(logits, axis=1), data, precision="highest")
    return denoised.reshape(x_t.shape).astype(x_t.dtype)
