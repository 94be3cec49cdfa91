"""SoFlow: the solution of the ODE, learned by two evaluations a short step apart, without a derivative."""

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.losses.flow_maps import guided_velocity, on_path
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.preconditioning import combine
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey
from cmjax.ranges import Fraction, Positive


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
    slope = (combine(c, x_t, out) - later) / per_sample(jnp.where(r < t, t - r, 1), x_t)
    target = jax.lax.stop_gradient(out - per_sample(jnp.sign(c.c_out), slope) * slope)
    rate = jax.jvp(lambda s: model.scalings(t, s).c_out, (t,), (jnp.ones_like(t),))[1]
    matched = distance(per_sample(rate, out) * out, v) / jnp.abs(rate)
    return jnp.where(s < t, distance(out, target) / 2, matched)


def fading(t: PerSample, after: float) -> PerSample:
    """1 until the time `after`, then 1 − exp(−q/(40·(1 − q))), q = (1 − t)/(1 − after), which falls to 0 at t = 1."""
    q = jnp.clip((1 - t) / max(1 - after, 1e-12), 0, 1 - 1e-6)
    return jnp.where(t <= after, 1.0, -jnp.expm1(-0.025 * q / (1 - q)))
