"""Flow maps between any two times, learned from data alone: MeanFlow, iMF and shortcut models.

The network F(x, t, s) gives the mean velocity u from t to the destination s: Φ(x, t, s) = x − (t − s)·u. The path is
linear, so the velocity v of one sample is noise − x0.
"""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative, within
from cmjax.core.guidance import NO_LABEL, guided, mix
from cmjax.core.model import Model, check_path
from cmjax.core.paths import per_sample
from cmjax.core.times import part_of
from cmjax.core.typing import BoundDenoiser, Conditions, Distance, Params, PerSample, PRNGKey, Samples, Time
from cmjax.ranges import Positive
from cmjax.system.mesh import split_as, whole

Interval = tuple[float, float]
"""The first and the last time at which a target is guided."""

ALWAYS: Interval = (0.0, 1.0)


def meanflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    guidance: Time = 1.0,
    blend: float = 0.0,
    interval: Interval = ALWAYS,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """MeanFlow: d(u_θ(x_t, t, s), v − (t − s)·du_θ⁻/dt), v = noise − x0.   [Geng et al. 2025, MeanFlow, eq. 9 to 11]

    With `guidance` w or `blend` κ, v' = w·v + (1 − w − κ)·u⁻(x_t, t, t, no label) + κ·u⁻(x_t, t, t) replaces v at
    times t in the `interval`, where there is a label: u learns guidance of scale w/(1 − κ), and sampling needs one
    evaluation.   [eq. 19 to 21]
    `derivative` says how du/dt is taken, by forward mode or by differences. All evaluations have the student's dropout
    masks, as in the released code.

    Raises: ValueError where the path is not linear, or guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = on_line(model, batch)
    v = guided_velocity(model, params, key, batch, x_t, v, guidance=guidance, blend=blend, interval=interval)
    u, du_dt = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    u_tgt = v - per_sample(t - s, v) * du_dt
    return distance(u, jax.lax.stop_gradient(u_tgt))


def imf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    guidance: Time = 1.0,
    interval: Interval = ALWAYS,
    velocity_head: bool = False,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """iMF: d(u_θ + (t − s)·du_θ⁻/dt, v), with the derivative along the network's own velocity v⁻ = u⁻(x_t, t, t).

    The regression's target is then v alone, which does not depend on the network.   [Geng et al. 2025, iMF, eq. 12]

    With `guidance` w, at times t in the `interval`, the target is v + (1 − 1/w)·(v⁻ − v⁻(no label)): the network
    learns the velocity w·v + (1 − w)·u(no label), and the targets are only as noisy as v. Outside the interval w = 1.
    With `velocity_head` v⁻ is the network's second output, and d(v_θ, target) is added to the loss. All evaluations
    have the student's dropout masks.   [the released code]

    Conditions of the batch that the network takes as inputs: `guidance` (b,) and `interval` (b, 2) replace the
    arguments; v⁻ takes the scale 1 where it is not guided, and the interval from 0 to 1. `kept_label` (b,), which the
    network does not take, holds the labels before any was dropped: with it the derivative is along v⁻ of that label.

    Raises: ValueError where the path is not linear, or guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = on_line(model, batch)
    inputs = dict(batch.conditions)
    label = inputs.get("label")
    kept, scale = inputs.pop("kept_label", label), inputs.get("guidance", guidance)
    first, last = inputs["interval"].T if "interval" in inputs else interval
    w = jnp.where((first <= t) & (t <= last), scale, 1.0)

    def outputs(x: Samples, t: PerSample, s: PerSample, **inputs: Any) -> Any:
        output = model.velocity_output if velocity_head else model.output
        return output(params, x, t, s, key=key, **inputs)

    def velocity(**changes: Any) -> Samples:
        always = jnp.broadcast_to(jnp.asarray(ALWAYS, t.dtype), (t.shape[0], 2))
        changes = {"guidance": w, "interval": always, **changes}
        out = outputs(x_t, t, t, **inputs | {name: changes[name] for name in changes if name in inputs})
        return jax.lax.stop_gradient(out[1] if velocity_head else out)

    along = velocity(label=kept)
    if not _is(scale, 1):
        label = labels_of(batch)
        apart = along - velocity(label=jnp.full_like(label, NO_LABEL), guidance=jnp.ones_like(t))
        v = v + per_sample(jnp.where(label == NO_LABEL, 0, 1 - 1 / w), v) * apart
    u, du_dt, *head = within(derivative, s, jnp.ones_like(s))(
        lambda x, t: outputs(x, t, s, **inputs),
        (x_t, t),
        (along.astype(x_t.dtype), jnp.ones_like(t)),
        has_aux=velocity_head,
    )
    loss = distance(u + per_sample(t - s, u) * jax.lax.stop_gradient(du_dt), v)
    return loss + distance(head[0], v) if velocity_head else loss


def shortcut(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    fraction: float,
    distance: Distance,
    guidance: float = 1.0,
    clip: Positive = jnp.inf,
) -> PerSample:
    """Shortcut models: d(u_θ(x_t, t, s), target), where u_θ learns that one step equals two half steps of u_θ⁻.

    For the first `fraction` of the batch the target is the mean of u_θ⁻ over the half steps t → r and r → s. For the
    rest it is v at the finest step t → s: flow matching.   [Frans et al. 2025, eq. 4 and 5, alg. 1]
    Its times: `dyadic_pairs` of the same `fraction`, sampled for the whole batch: which samples are the first follows
    from their positions.

    As in the released code the half steps are evaluated without dropout; where they are of the finest length they are
    guided, by the scale `guidance`; the state between them and the target are clipped to [−clip, clip], there 4.

    Raises: ValueError where the path is not linear, guidance is asked for without a condition `label`, or the batch
            size is symbolic: a fraction of it is a number.
    """
    t, s, x_t, v = on_line(model, batch)
    halved = part_of(fraction, x_t.shape[0])

    def first(value: jax.Array) -> jax.Array:
        return split_as(whole(value)[:halved], x_t)

    x, start, middle, end = map(first, (x_t, t, batch.times.target, s))
    inputs = jax.tree.map(first, batch.conditions)
    target_params = params if target_params is None else target_params
    finest = start - end < 3 * whole(t - s)[-1]  # twice the finest step, which is that of the last sample

    def half_step(x: Samples, t: PerSample, s: PerSample) -> Samples:
        u = model.output(target_params, x, t, s, **inputs)
        if _is(guidance, 1):
            return u
        nothing = jnp.full_like(first(labels_of(batch)), NO_LABEL)
        without = model.output(target_params, x, t, s, **{**inputs, "label": nothing})
        return mix(u, without, jnp.where(finest, guidance, 1.0))

    one = half_step(x, start, middle)
    x = jnp.clip(x - per_sample(start - middle, x) * one, -clip, clip)
    two = half_step(x, middle, end)
    both = jnp.clip((one + two) / 2, -clip, clip)
    target = split_as(jnp.concatenate([whole(both), whole(v)[halved:]]), x_t)
    u = model.output(params, x_t, t, s, key=key, **batch.conditions)
    return distance(u, jax.lax.stop_gradient(target))


def on_line(model: Model, batch: Batch) -> tuple[PerSample, PerSample, Samples, Samples]:
    """t, s, x_t, and the velocity noise − x0 of each sample. Raises: ValueError where the path is not linear."""
    if not model.path.straight:
        raise ValueError("this loss is of the path paths.linear, where a flow map is x − (t − s)·u")
    return on_path(model, batch)


def on_path(model: Model, batch: Batch) -> tuple[PerSample, PerSample, Samples, Samples]:
    """t, s, x_t, and the velocity a'·x0 + b'·noise of each sample, which is right on average."""
    t, s = batch.times.t, batch.times.destination
    return t, s, batch.noised(model.path, t), model.path.conditional_velocity(batch.x0, batch.noise, t)


def velocity_at(model: Model, params: Params, key: Any, x: Samples, t: PerSample, conditions: Conditions) -> Samples:
    """The velocity v(x, t) = ∂_s Φ(x, t, s) at s = t of a flow map: c_skip'·x + c_out'·F, since c_out is 0 there."""
    slope = jax.jvp(lambda s: model.scalings(t, s), (t,), (jnp.ones_like(t),))[1]
    out = model.output(params, x, t, t, key=key, **conditions)
    return per_sample(slope.c_skip, x) * x + per_sample(slope.c_out, x) * out


def learned_weight(model: Model, params: Params, key: Any, batch: Batch, error: PerSample, weighted: bool) -> PerSample:
    """e^−w·error + w with the network's weight head w(t, s), or the error itself where it is not `weighted`."""
    if not weighted:
        return error
    t, s = batch.times.t, batch.times.destination
    w = model.weighted_output(params, batch.noised(model.path, t), t, s, key=key, **batch.conditions)[1]
    return jnp.exp(-w) * error + w


def mean_velocity(
    model: Model, params: Params, key: Any, batch: Batch, x_t: Samples, *, along: Samples, derivative: Derivative
) -> tuple[Samples, ...]:
    """u(x_t, t, s) and its derivative with respect to t, where x moves along dx/dt = `along` and s is fixed.

    Differences stay at times from s to 1. Near s they are of first order in their step h, but the target has them times
    t − s < h, so its error is of second order there too.
    """
    t, s = batch.times.t, batch.times.destination

    def u(x, t):
        return model.output(params, x, t, s, key=key, **batch.conditions)

    return within(derivative, s, jnp.ones_like(s))(u, (x_t, t), (along.astype(x_t.dtype), jnp.ones_like(t)))


def guided_velocity(
    model: Model,
    params: Params,
    key: Any,
    batch: Batch,
    x_t: Samples,
    v: Samples,
    *,
    guidance: Time,
    blend: Time,
    interval: Interval,
) -> Samples:
    """The velocity w·v + (1 − w − κ)·v⁻(x_t, t, no label) + κ·v⁻(x_t, t), w being `guidance` and κ `blend`.

    It is v for samples without a label, and at times t outside the interval.   [Geng et al. 2025, MeanFlow, eq. 21]
    """
    if _is(guidance, 1) and _is(blend, 0):
        return v
    t, label = batch.times.t, labels_of(batch)

    def velocity(label):
        return velocity_at(model, params, key, x_t, t, {**batch.conditions, "label": label})

    w, kappa = per_sample(guidance, v), per_sample(blend, v)
    mixed = w * v + (1 - w - kappa) * velocity(jnp.full_like(label, NO_LABEL))
    if not _is(blend, 0):
        mixed += kappa * velocity(label)
    changes = (label != NO_LABEL) & (interval[0] <= t) & (t <= interval[1])
    return jax.lax.stop_gradient(jnp.where(per_sample(changes, v), mixed, v))


def teacher_velocity(
    teacher: BoundDenoiser, model: Model, batch: Batch, x_t: Samples, *, guidance: Time, interval: Interval
) -> Samples:
    """The velocity of the teacher's ODE at x_t, guided by the scale `guidance` at times t in the interval.

    Raises: ValueError where the teacher is of another path than the model, or guidance is asked for without labels.
    """
    check_path(model, teacher)
    t = batch.times.t
    if _is(guidance, 1):
        denoised = teacher(x_t, t, **batch.conditions)
    else:
        scale = jnp.where((interval[0] <= t) & (t <= interval[1]), guidance, 1.0)
        denoised = guided(teacher)(x_t, t, guidance=scale, **{**batch.conditions, "label": labels_of(batch)})
    return jax.lax.stop_gradient(model.path.velocity(x_t, denoised, t))


def labels_of(batch: Batch) -> jax.Array:
    if "label" not in batch.conditions:
        raise ValueError("guidance is by labels: the batch's conditions have no 'label'")
    return batch.conditions["label"]


def _is(value: Time, number: float) -> bool:
    """True where it is this number for all samples; an array may hold others."""
    return isinstance(value, Real) and bool(value == number)
