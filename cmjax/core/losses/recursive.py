"""RCGM: a flow map by a short step along the velocity, and the rest by several steps of its own average."""

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.losses.flow_maps import ALWAYS, Interval, guided_velocity, on_line
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey, Weight
from cmjax.ranges import Count, Inside, NotNegative, Positive


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
