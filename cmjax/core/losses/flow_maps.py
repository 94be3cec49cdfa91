"""Flow maps between any two times, learned from data alone: MeanFlow and iMF; and what the losses of flow maps share.

On the linear path the network F(x, t, s) gives the mean velocity u from t to the destination s: Φ(x, t, s) = x −
(t − s)·u, and the velocity v of one sample is noise − x0. On any path the end of the map stays where it is while x
moves by v, and this gives F:

    dΦ/dt = c_skip·v + c_skip'·x + c_out'·F + c_out·dF/dt = 0
"""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative, within
from cmjax.core.guidance import NO_LABEL, guided
from cmjax.core.model import Model, check_path
from cmjax.core.paths import per_sample
from cmjax.core.preconditioning import Scalings
from cmjax.core.typing import BoundDenoiser, Conditions, Distance, Params, PerSample, PRNGKey, Samples, Time, Weight
from cmjax.core.weightings import uniform
from cmjax.ranges import Fraction

Interval = tuple[float, float]
"""The first and the last time at which a target is guided."""

ALWAYS: Interval = (0.0, math.inf)


def meanflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    weight: Weight = uniform,
    teacher: BoundDenoiser | None = None,
    guidance: Time = 1.0,
    blend: float = 0.0,
    interval: Interval = ALWAYS,
    tangent_blend: Fraction = 0.0,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """MeanFlow: λ·d(u_θ(x_t, t, s), v − (t − s)·du_θ⁻/dt), v = noise − x0.   [Geng et al. 2025, MeanFlow, eq. 9 to 11]

    With `guidance` w or `blend` κ, v' = w·v + (1 − w − κ)·u⁻(x_t, t, t, no label) + κ·u⁻(x_t, t, t) replaces v at
    times t in the `interval`, where there is a label: u learns guidance of scale w/(1 − κ), and sampling needs one
    evaluation.   [eq. 19 to 21]

    With `tangent_blend` β the derivative is along (1 − β)·v + β·u⁻(x_t, t, t), and the target's v stays: its mean is
    the same, and it varies less. β = 1 is `imf`, without its guidance.   [Lu & Wang 2026, variance reduction]

    With a `teacher` v is the velocity of its ODE, guided by the scale w.   [MF-RAE, the released code]
    `weight`: λ of t and s. `derivative` says how du/dt is taken, by forward mode or by differences. All evaluations
    have the student's dropout masks, as in the released code. On other paths F stands for u, see above.

    Raises: ValueError where guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = on_path(model, batch)
    if teacher is None:
        v = guided_velocity(model, params, key, batch, x_t, v, guidance=guidance, blend=blend, interval=interval)
    else:
        v = teacher_velocity(teacher, model, batch, x_t, guidance=guidance, interval=interval)
    along = v
    if not is_number(tangent_blend, 0):
        velocity = jax.lax.stop_gradient(velocity_at(model, params, key, x_t, t, batch.conditions))
        along = (1 - tangent_blend) * v + tangent_blend * velocity
    out, slope = mean_velocity(model, params, key, batch, x_t, along=along, derivative=derivative)
    target = fixed_output(model, t, s, x_t, v, slope)
    return weight(t, s) * distance(out, jax.lax.stop_gradient(target))


def imf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    weight: Weight = uniform,
    guidance: Time = 1.0,
    interval: Interval = ALWAYS,
    velocity_head: bool = False,
    tangent_blend: Fraction = 1.0,
    t_least: Fraction = 0.0,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """iMF: λ·d(u_θ + (t − s)·du_θ⁻/dt, v), with the derivative along the network's own velocity v⁻ = u⁻(x_t, t, t).

    The regression's target is then v alone, which does not depend on the network.   [Geng et al. 2025, iMF, eq. 12]

    With `guidance` w, at times t in the `interval`, the target is v + (1 − 1/w)·(v⁻ − v⁻(no label)): the network
    learns the velocity w·v + (1 − w)·u(no label), and the targets are only as noisy as v. Outside the interval w = 1.
    With `velocity_head` v⁻ is the network's second output, and d(v_θ, target) is added to the loss. All evaluations
    have the student's dropout masks.   [the released code]
    With `tangent_blend` β the derivative is along β·v⁻ + (1 − β)·the target; β = 0 is `meanflow`. At times below
    `t_least` v is (x_t − x0)/t_least, as `pmf` has it.

    Conditions of the batch that the network takes as inputs: `guidance` (b,) and `interval` (b, 2) replace the
    arguments; v⁻ takes the scale 1 where it is not guided, and the interval from 0 to 1. `kept_label` (b,), which the
    network does not take, holds the labels before any was dropped: with it the derivative is along v⁻ of that label.

    On other paths −(c_skip'·x + c_out'·F + c_out·dF⁻/dt) is held to c_skip·v, which are bounded where `meanflow`'s
    target is not.   Raises: ValueError where guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = on_path(model, batch, t_least)
    inputs = dict(batch.conditions)
    kept, scale = inputs.pop("kept_label", inputs.get("label")), inputs.get("guidance", guidance)
    first, last = inputs["interval"].T if "interval" in inputs else interval
    w = jnp.where((first <= t) & (t <= last), scale, 1.0)

    def outputs(x: Samples, t: PerSample, s: PerSample, **inputs: Any) -> Any:
        output = model.velocity_output if velocity_head else model.output
        return output(params, x, t, s, key=key, **inputs)

    def velocity(**changes: Any) -> Samples:
        changes = {"guidance": w, "interval": jnp.tile(jnp.array([[0, 1]], t.dtype), (t.shape[0], 1)), **changes}
        out = outputs(x_t, t, t, **inputs | {name: changes[name] for name in changes if name in inputs})
        return jax.lax.stop_gradient(velocity_of(model, t, x_t, out[1] if velocity_head else out))

    along = velocity(label=kept)
    if not is_number(scale, 1):
        label = labels_of(batch)
        apart = along - velocity(label=jnp.full_like(label, NO_LABEL), guidance=jnp.ones_like(t))
        v = v + per_sample(jnp.where(label == NO_LABEL, 0, 1 - 1 / w), v) * apart
    if not is_number(tangent_blend, 1):
        along = (1 - tangent_blend) * v + tangent_blend * along
    ends, direction = jnp.full_like(s, model.path.signal_ends), (along.astype(x_t.dtype), jnp.ones_like(t))
    out, slope, *head = within(derivative, s, ends)(
        lambda x, t: outputs(x, t, s, **inputs), (x_t, t), direction, has_aux=velocity_head
    )
    c, by_t = scalings_by_time(model, t, s, x_t)
    moved = -(by_t.c_skip * x_t + by_t.c_out * out + c.c_out * jax.lax.stop_gradient(slope))
    loss = distance(moved, c.c_skip * v)
    return weight(t, s) * (loss + distance(velocity_of(model, t, x_t, head[0]), v) if velocity_head else loss)


def on_line(model: Model, batch: Batch) -> tuple[PerSample, PerSample, Samples, Samples]:
    """t, s, x_t, and the velocity noise − x0 of each sample. Raises: ValueError where the path is not linear."""
    if not model.path.straight:
        raise ValueError("this loss is of the path paths.linear, where a flow map is x − (t − s)·u")
    return on_path(model, batch)


def on_path(model: Model, batch: Batch, t_least: float = 0.0) -> tuple[PerSample, PerSample, Samples, Samples]:
    """t, s, x_t, and the velocity a'·x0 + b'·noise of each sample, which is right on average; times t/t_least below
    that time."""
    t, s = batch.times.t, batch.times.destination
    v = model.path.conditional_velocity(batch.x0, batch.noise, t)
    return t, s, batch.noised(model.path, t), v if not t_least else per_sample(t / jnp.maximum(t, t_least), v) * v


def velocity_at(model: Model, params: Params, key: Any, x: Samples, t: PerSample, conditions: Conditions) -> Samples:
    """The velocity v(x, t) = ∂_s Φ(x, t, s) at s = t of a flow map."""
    return velocity_of(model, t, x, model.output(params, x, t, t, key=key, **conditions))


def velocity_of(model: Model, t: PerSample, x: Samples, out: Samples) -> Samples:
    """The velocity c_skip'·x + c_out'·F of the output F(x, t, t), with derivatives by s, since c_out is 0 there."""
    slope = jax.jvp(lambda s: model.scalings(t, s), (t,), (jnp.ones_like(t),))[1]
    return per_sample(slope.c_skip, x) * x + per_sample(slope.c_out, x) * out


def scalings_by_time(model: Model, t: PerSample, s: PerSample, x: Samples) -> tuple[Scalings, Scalings]:
    """The scalings at t and s, and their derivatives by t, which multiply x (b, ...) sample by sample."""
    both = jax.jvp(lambda t: model.scalings(t, s), (t,), (jnp.ones_like(t),))
    first, second = jax.tree.map(lambda value: per_sample(value, x), both)
    return first, second


def fixed_output(model: Model, t: PerSample, s: PerSample, x: Samples, v: Samples, slope: Samples) -> Samples:
    """The output F with which the end of the map stays where it is, −(c_skip·v + c_skip'·x + c_out·dF/dt)/c_out'.

    Args: v: dx/dt. slope: dF/dt. With `linear_flow` it is v − (t − s)·dF/dt, with `trig_flow` the velocity σ_d·F is
          v − tan(t − s)·(x + σ_d·dF/dt).   [Geng et al. 2025, MeanFlow, eq. 9; Wang et al. 2025, TiM]
    """
    c, by_t = scalings_by_time(model, t, s, x)
    return -(c.c_skip * v + by_t.c_skip * x + c.c_out * slope) / by_t.c_out


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

    Differences stay at times from s to the path's end. Near s they are of first order in their step h, but the target
    has them times t − s < h, so its error is of second order there too.
    """
    t, s = batch.times.t, batch.times.destination

    def u(x, t):
        return model.output(params, x, t, s, key=key, **batch.conditions)

    last = jnp.full_like(s, model.path.signal_ends)
    # `jax.jvp` takes directions of the primals' own dtypes alone
    return within(derivative, s, last)(u, (x_t, t), (along.astype(x_t.dtype), jnp.ones_like(t)))


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
    if is_number(guidance, 1) and is_number(blend, 0):
        return v
    t, label = batch.times.t, labels_of(batch)

    def velocity(label):
        return velocity_at(model, params, key, x_t, t, {**batch.conditions, "label": label})

    w, kappa = per_sample(guidance, v), per_sample(blend, v)
    mixed = w * v + (1 - w - kappa) * velocity(jnp.full_like(label, NO_LABEL))
    # most recipes have κ = 0, and save this evaluation
    if not is_number(blend, 0):
        mixed += kappa * velocity(label)
    changes = (label != NO_LABEL) & (interval[0] <= t) & (t <= interval[1])
    return jax.lax.stop_gradient(jnp.where(per_sample(changes, v), mixed, v))


def teacher_velocity(
    teacher: BoundDenoiser,
    model: Model,
    batch: Batch,
    x_t: Samples,
    *,
    guidance: Time = 1.0,
    interval: Interval = ALWAYS,
) -> Samples:
    """The velocity of the teacher's ODE at x_t, guided by the scale `guidance` at times t in the interval.

    Raises: ValueError where the teacher is of another path than the model, or guidance is asked for without labels.
    """
    check_path(model, teacher)
    t = batch.times.t
    if is_number(guidance, 1):
        denoised = teacher(x_t, t, **batch.conditions)
    else:
        scale = jnp.where((interval[0] <= t) & (t <= interval[1]), guidance, 1.0)
        denoised = guided(teacher)(x_t, t, guidance=scale, **{**batch.conditions, "label": labels_of(batch)})
    return jax.lax.stop_gradient(model.path.velocity(x_t, denoised, t))


def labels_of(batch: Batch) -> jax.Array:
    if "label" not in batch.conditions:
        raise ValueError("guidance is by labels: the batch's conditions have no 'label'")
    return batch.conditions["label"]


def is_number(value: Time, number: float) -> bool:
    """True where it is this number for all samples; an array may hold others."""
    return isinstance(value, Real) and bool(value == number)
