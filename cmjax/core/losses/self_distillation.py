"""Self-distilled flow maps: the three identities that a flow map has, each as a loss.

All three are flow matching where s = t. Elsewhere the flow map Φ(x, t, s) is held to its own velocity v(x, t), which is
the network's output at s = t, along the path that it makes itself.   [Boffi et al. 2025, flow map matching]
"""

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.guidance import NO_LABEL
from cmjax.core.losses.flow_maps import fixed_output, learned_weight, on_path, velocity_at
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey


def lsd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weighted: bool = False,
) -> PerSample:
    """LSD, Lagrangian: d(∂_s Φ_θ(x_t, t, s), v_θ⁻(Φ_θ⁻(x_t, t, s), s)): the end of the map moves by the velocity.

    The gradient runs through the derivative ∂_s Φ. Where s = t that is v_θ(x_t, t), and the target is the velocity of
    the sample: flow matching. Its times: `sorted_pairs`.   [Boffi et al. 2025, self-distillation, eq. 16 and alg. 1]
    `weighted`: e^−w·d + w with the network's weight head w(t, s), which learns the logarithm of d.
    """
    slope, target = _slope_and_target(model, params, target_params, key, batch)
    return learned_weight(model, params, key, batch, distance(slope, target), weighted)


def tvm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
) -> PerSample:
    """TVM: `lsd`, with an average of the parameters in the target, and guidance as an input of the network.

    With the condition `guidance` w the velocity of the sample becomes w·v + (1 − w)·v_θ⁻(x_t, t, no label), and the
    loss is divided by w². Samples without a label have w = 1.   [Zhou et al. 2025, terminal velocity matching]
    """
    t, _, x_t, v = on_path(model, batch)
    conditions = dict(batch.conditions)
    if "guidance" not in conditions:
        slope, target = _slope_and_target(model, params, target_params, key, batch)
        return distance(slope, target)
    label, w = conditions["label"], conditions["guidance"]
    # the network is asked for the scale that its target has, not for the one that was sampled
    w = conditions["guidance"] = jnp.where(label == NO_LABEL, 1.0, w)
    alone = {**conditions, "label": jnp.full_like(label, NO_LABEL), "guidance": jnp.ones_like(w)}
    held = params if target_params is None else target_params
    v = per_sample(w, v) * v + per_sample(1 - w, v) * velocity_at(model, held, key, x_t, t, alone)
    batch = Batch(batch.x0, batch.noise, batch.times, conditions)
    slope, target = _slope_and_target(model, params, target_params, key, batch, v=v)
    return distance(slope, target) / w**2


def psd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weighted: bool = False,
) -> PerSample:
    """PSD, progressive: d(u_θ(x_t, t, s), u⁻), where u⁻ is the mean of u_θ⁻ over the two steps t → r → s.

    On other paths u is the network's output, and u⁻ the one that leads where the two steps lead.
    Where s = t the target is the velocity of the sample. Its times: `between` with any fraction, such as ½ or one that
    is sampled.   [Boffi et al. 2025, self-distillation, eq. 18]   `weighted`: as in `lsd`.
    """
    t, s, x_t, v = on_path(model, batch)
    r, held = batch.times.target, params if target_params is None else target_params
    first = model.output(held, x_t, t, r, key=key, **batch.conditions)
    to_r, to_s, whole = (
        jax.tree.map(lambda value: per_sample(value, v), model.scalings(*ends)) for ends in ((t, r), (r, s), (t, s))
    )
    second = model.output(held, to_r.c_skip * x_t + to_r.c_out * first, r, s, key=key, **batch.conditions)
    # Φ(Φ(x, t, r), r, s) = c_skip·x + c_out·u⁻, solved for c_out·u⁻; on the linear path nothing of x is left
    of_x = to_s.c_skip * to_r.c_skip - whole.c_skip
    moved = of_x * x_t + to_s.c_skip * to_r.c_out * first + to_s.c_out * second
    apart = per_sample(s < t, v)
    # at s = t this is the output whose velocity is v
    still = fixed_output(model, t, t, x_t, v, jnp.zeros_like(v))
    target = jnp.where(apart, moved / jnp.where(apart, whole.c_out, 1), still)
    u = model.output(params, x_t, t, s, key=key, **batch.conditions)
    return learned_weight(model, params, key, batch, distance(u, jax.lax.stop_gradient(target)), weighted)


def esd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weighted: bool = False,
) -> PerSample:
    """ESD, Eulerian: d(∂_t Φ_θ, −∇Φ_θ⁻·v_θ⁻(x_t, t)): along the flow the end of the map does not move.

    The gradient runs through ∂_t Φ_θ alone. Where s = t, v is the velocity of the sample.   [Boffi et al. 2025, eq. 17]
    `weighted`: as in `lsd`.
    """
    t, s, x_t, v = on_path(model, batch)
    held = params if target_params is None else target_params
    v = jnp.where(per_sample(s < t, v), velocity_at(model, held, key, x_t, t, batch.conditions), v)

    def by_time(t):
        return model(params, x_t, t, s, key=key, **batch.conditions)

    def by_place(x):
        return model(held, x, t, s, key=key, **batch.conditions)

    # two derivatives, as only the one by t carries the gradient
    _, moved_by_time = jax.jvp(by_time, (t,), (jnp.ones_like(t),))
    _, moved_by_place = jax.jvp(by_place, (x_t,), (v.astype(x_t.dtype),))
    error = distance(moved_by_time, -jax.lax.stop_gradient(moved_by_place))
    return learned_weight(model, params, key, batch, error, weighted)


def _slope_and_target(model, params, target_params, key, batch, v=None):
    """∂_s Φ_θ(x_t, t, s) with its gradient, and v_θ⁻ at its end; where s = t, the velocity v of the sample."""
    t, s, x_t, of_sample = on_path(model, batch)

    def end(s):
        return model(params, x_t, t, s, key=key, **batch.conditions)

    x_s, slope = jax.jvp(end, (s,), (jnp.ones_like(s),))
    held = params if target_params is None else target_params
    target = velocity_at(model, held, key, x_s, s, batch.conditions)
    v = of_sample if v is None else v
    return slope, jax.lax.stop_gradient(jnp.where(per_sample(s < t, target), target, v))
