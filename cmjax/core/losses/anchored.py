"""Flow maps that are anchored by flow matching: FACM and decoupled MeanFlow, from data or from a teacher."""

import math

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative, within
from cmjax.core.distances import cosine_gap, l2
from cmjax.core.guidance import NO_LABEL
from cmjax.core.losses.flow_maps import (
    ALWAYS,
    Interval,
    fixed_output,
    guided_velocity,
    labels_of,
    mean_velocity,
    on_line,
    on_path,
    teacher_velocity,
    velocity_at,
)
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import BoundDenoiser, Params, PerSample, PRNGKey
from cmjax.ranges import Positive


def facm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser | None = None,
    guidance: Positive = 1.0,
    interval: Interval = ALWAYS,
    power: Positive = 0.5,
    clip: Positive = 1.0,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """FACM: a consistency model u_θ(x_t, t, 0), anchored by flow matching of u_θ(x_t, t, t).

    Consistency: u_θ is regressed on u⁻ − (1 − (1 − t)^p)·clip(u⁻ − (v − t·du⁻/dt)), with the weight
    sin(πt/2)/√(e + 0.001) of its mean squared error e. Anchor: the mean squared error of v plus 1 − the cosine between
    both at each pixel. v is the velocity of the `teacher`, else of the sample, guided by the scale `guidance` at times
    in the `interval`. Its times: `single`.   [Peng et al. 2025, FACM, eq. 8 to 11 and alg. 1]

    The network knows both uses by its second time, or by an expanded time (`preconditioning.linear_expanded`).
    """
    batch = Batch(batch.x0, batch.noise, batch.times._replace(s=jnp.zeros_like(batch.times.t)), batch.conditions)
    t, s, x_t, v = on_line(model, batch)
    if teacher is not None:
        v = teacher_velocity(teacher, model, batch, x_t, guidance=guidance, interval=interval)
    elif guidance != 1:
        label = labels_of(batch)
        # as the authors have it: outside of the interval the scale stays, and the other estimate has the label too
        other = jnp.where((interval[0] <= t) & (t <= interval[1]), NO_LABEL, label)
        # The released code guides by the consistency output here, not by the anchor's velocity.
        own = model.output(params, x_t, t, s, key=key, **{**batch.conditions, "label": other})
        v = jax.lax.stop_gradient(own + guidance * (v - own))

    matched = velocity_at(model, params, key, x_t, t, batch.conditions)
    anchor = l2(matched, v) + cosine_gap(matched, v)

    out, slope = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    gap = jnp.clip(out - (v - per_sample(t, v) * slope), -clip, clip)
    target = jax.lax.stop_gradient(out - per_sample(1 - (1 - t) ** power, gap) * gap)
    error = l2(out, target)
    weight = jnp.sin(math.pi / 2 * t) / jnp.sqrt(jax.lax.stop_gradient(error) + 1e-3)
    return weight * error + anchor


def dmf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser | None = None,
    guidance: Positive = 1.0,
    blend: Positive = 0.0,
    interval: Interval = ALWAYS,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """Decoupled MeanFlow: ln(e/exp(w) + 0.01) + w, e the mean squared error of MeanFlow and w(t, s) a learned weight.

    The targets are those of `meanflow`, with the velocity of the `teacher`, guided by the scale `guidance`, or of the
    sample, guided by `guidance` and `blend`. Half of the batch has s = t (`pairs`): flow matching.
    Raises: TypeError where the network has no weight head.   [Lee et al. 2025, decoupled MeanFlow, eq. 9 to 12]
    """
    t, s, x_t, v = on_path(model, batch)
    if teacher is None:
        v = guided_velocity(model, params, key, batch, x_t, v, guidance=guidance, blend=blend, interval=interval)
    else:
        v = teacher_velocity(teacher, model, batch, x_t, guidance=guidance, interval=interval)

    def u(x, t):
        return model.weighted_output(params, x, t, s, key=key, **batch.conditions)

    direction = (v.astype(x_t.dtype), jnp.ones_like(t))
    # differences evaluate the network at t ± h, and it knows no time beyond the path's end or below s
    last = jnp.full_like(s, model.path.signal_ends)
    out, slope, w = within(derivative, s, last)(u, (x_t, t), direction, has_aux=True)
    error = l2(out, jax.lax.stop_gradient(fixed_output(model, t, s, x_t, v, slope)))
    return jnp.log(jnp.exp(-w) * error + 0.01) + w
