"""Flow maps that equal several steps of themselves, without a derivative: shortcut models, RCGM and SoFlow."""

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.guidance import NO_LABEL, mix
from cmjax.core.losses.flow_maps import (
    ALWAYS,
    Interval,
    guided_velocity,
    is_number,
    labels_of,
    on_line,
    on_path,
    velocity_of,
)
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.preconditioning import combine
from cmjax.core.times import part_of
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey, Samples, Weight
from cmjax.ranges import Count, Fraction, Inside, NotNegative, Positive
from cmjax.system.mesh import split_as, whole


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

    # only these samples learn from half steps, so only they are evaluated twice more
    x, start, middle, end = map(first, (x_t, t, batch.times.target, s))
    inputs = jax.tree.map(first, batch.conditions)
    target_params = params if target_params is None else target_params
    finest = start - end < 3 * whole(t - s)[-1]  # twice the finest step, which is that of the last sample

    def half_step(x: Samples, t: PerSample, s: PerSample) -> Samples:
        u = model.output(target_params, x, t, s, **inputs)
        if is_number(guidance, 1):
            return u
        nothing = jnp.full_like(first(labels_of(batch)), NO_LABEL)
        without = model.output(target_params, x, t, s, **{**inputs, "label": nothing})
        return mix(u, without, jnp.where(finest, guidance, 1.0))

    one = half_step(x, start, middle)
    x = jnp.clip(x - per_sample(start - middle, x) * one, -clip, clip)
    two = half_step(x, middle, end)
    # equal half steps: the velocity of both together is their mean
    both = jnp.clip((one + two) / 2, -clip, clip)
    target = split_as(jnp.concatenate([whole(both), whole(v)[halved:]]), x_t)
    u = model.output(params, x_t, t, s, key=key, **batch.conditions)
    return distance(u, jax.lax.stop_gradient(target))


def rcgm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
    order: Count = 2,
    step: Inside = 0.01,
    clip: Positive = 1.0,
    blend: NotNegative = 0.0,
    interval: Interval = ALWAYS,
) -> PerSample:
    """RCGM: x_t − (t − s)·u_θ is where a step along v, and then `order` equal steps of the map Φ_θ⁻, end at s.

    u_θ is regressed on u⁻ − clip(R), where R = ((t − s)·u⁻ − S)/h − v is the rate at which both ends part: S is the way
    of the `order` steps, and h = `step` the length of the first one; within h of s, R = u⁻ − S/(t − s) − v.
    No derivative is taken. With `blend` κ, v + κ·(v⁻ − v⁻(no label)) replaces v.   [Sun et al. 2025, RCGM; TwinFlow]
    """
    t, s, x_t, v = on_line(model, batch)
    held = params if target_params is None else target_params
    v = guided_velocity(model, held, key, batch, x_t, v, guidance=1.0, blend=blend, interval=interval)
    u = model.output(params, x_t, t, s, key=key, **batch.conditions)

    # within h of s the steps after the first have no length, and the way is 0
    start = jnp.maximum(t - step, s)
    x, way = x_t - step * v, jnp.zeros_like(x_t)
    for i in range(order):
        now, after = (start + (s - start) * place / order for place in (i, i + 1))
        moved = per_sample(now - after, x) * model.output(held, x, now, after, key=key, **batch.conditions)
        x, way = x - moved, way + moved
    far = per_sample(t >= s + step, u)
    rate = (
        jnp.where(far, (per_sample(t - s, u) * u - way) / step, u - way / per_sample(jnp.where(s < t, t - s, 1), u)) - v
    )
    target = jax.lax.stop_gradient(u - jnp.clip(rate, -clip, clip))
    return weight(t, s) * distance(u, target)


def soflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    guidance: Positive = 1.0,
    blend: Fraction = 0.0,
    fades_after: Fraction = 1.0,
) -> PerSample:
    """SoFlow: Φ_θ(x_t, t, s) = Φ_θ⁻(x_r, r, s), where x_r = x_t − (t − r)·v is a short step away.

    The network's output F is regressed on F⁻ ∓ (Φ_θ(x_t, t, s) − Φ_θ⁻(x_r, r, s))/(t − r), by half of the distance.
    Where s = t it is flow matching. Its times: `between` with a fraction that falls.
    [Luo et al. 2025, SoFlow, eq. 8, 10 and alg. 1]

    With `guidance` w and `blend` κ the velocity is (1 − κ)·(v + k(t)·(w − 1)·(v − v⁻(no label))) + κ·v⁻, which teaches
    the velocity of scale w. k is 1 until the time `fades_after`, and falls to 0 at t = 1.   [the released code]
    """
    t, s, x_t, v = on_path(model, batch)
    r = batch.times.target
    if guidance != 1 or blend != 0:
        scale = (1 - blend) * (1 + fading(t, fades_after) * (guidance - 1))
        v = guided_velocity(
            model, params, key, batch, x_t, v, guidance=scale, blend=blend, interval=(0.0, model.path.signal_ends)
        )
    out = model.output(params, x_t, t, s, key=key, **batch.conditions)
    c = model.scalings(t, s)
    x_r = x_t - per_sample(t - r, x_t) * v
    later = model(params, x_r, r, s, key=key, **batch.conditions)
    # 1 where r = t: those samples take `matched`, and a nan here would reach their gradient
    slope = (combine(c, x_t, out) - later) / per_sample(jnp.where(r < t, t - r, 1), x_t)
    target = jax.lax.stop_gradient(out - per_sample(jnp.sign(c.c_out), slope) * slope)
    # ∂_s c_out at s = t, by which the authors divide the loss of the velocity
    rate = jax.jvp(lambda s: model.scalings(t, s).c_out, (t,), (jnp.ones_like(t),))[1]
    matched = distance(velocity_of(model, t, x_t, out), v) / jnp.abs(rate)
    return jnp.where(s < t, distance(out, target) / 2, matched)


def fading(t: PerSample, after: float) -> PerSample:
    """1 until the time `after`, then 1 − exp(−q/(40·(1 − q))), q = (1 − t)/(1 − after), which falls to 0 at t = 1."""
    # q = 1 is the time `after`, where q/(1 − q) is infinite; the guard is for after = 1, which fades nowhere
    q = jnp.clip((1 - t) / max(1 - after, 1e-12), 0, 1 - 1e-6)
    return jnp.where(t <= after, 1.0, -jnp.expm1(-0.025 * q / (1 - q)))
