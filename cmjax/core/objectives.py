"""The skeleton that consistency objectives share: two points on one trajectory, a distance and a weight."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cmjax.core.paths import Path, per_sample
from cmjax.core.typing import (
    Conditions,
    Denoiser,
    Distance,
    Pair,
    Params,
    PerSample,
    PRNGKey,
    Samples,
    Time,
    Weight,
)


def consistency_loss(
    f: Denoiser,
    params: Params,
    target_params: Params,
    x_t: Samples,
    x_r: Samples,
    pair: Pair,
    *,
    distance: Distance,
    weight: Weight,
    dropout_key: PRNGKey | None,
    conditions: Conditions,
) -> PerSample:
    """λ(t, r)·d(f_θ(x_t, t), f_θ⁻(x_r, r)), (b,); no gradient enters the second term.   [Song et al. 2023, eq. 7]

    Student and target drop out the same units: they share `dropout_key`.
    """
    estimate = f(params, x_t, pair.t, key=dropout_key, **conditions)
    target = f(target_params, x_r, pair.r, key=dropout_key, **conditions)
    return weight(pair.t, pair.r) * distance(estimate, jax.lax.stop_gradient(target))


def with_boundary(f: Denoiser) -> Denoiser:
    """f with f(x, 0) = x, also where its network is undefined at time 0, as with c_noise = ln t."""

    def bounded(params: Params, x: Samples, t: Time, *, key: Any = None, **conditions: Any) -> Samples:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        estimate = f(params, x, jnp.where(t > 0, t, 1), key=key, **conditions)
        return jnp.where(per_sample(t > 0, x), estimate, x)

    return bounded


def moved_to(f: Denoiser, path: Path, s: Time) -> Denoiser:
    """f's estimate of the clean data moved by DDIM to time s <= t: x_t itself at t = s, also at s = 0 where neither f
    nor DDIM is defined.   [Heek et al. 2024, eq. 7]
    """

    def moved(params: Params, x: Samples, t: Time, *, key: Any = None, **conditions: Any) -> Samples:
        t, end = (jnp.broadcast_to(jnp.asarray(time, x.dtype), x.shape[:1]) for time in (t, s))
        start = jnp.where(t > end, t, 1)
        away = path.ddim(x, f(params, x, start, key=key, **conditions), start, end)
        return jnp.where(per_sample(t > end, x), away, x)

    return moved


def batch_denoiser(
    x_t: Samples, t: Time, batch: Samples, *, path: Path, label: Int[Array, " b"] | None = None
) -> Samples:
    """D(x_t, t) for data uniform on `batch`, of which x_t[i] came from batch[i]; each sample's own class alone where
    there are labels.   [Wang et al. 2024, SCT, eq. 9]
    """
    own, flat = batch.reshape(len(batch), -1), x_t.reshape(len(x_t), -1)
    a, b = (jnp.broadcast_to(scale(jnp.asarray(t, x_t.dtype)), x_t.shape[:1])[:, None] for scale in (path.a, path.b))
    # ‖x − a·y‖² less what does not depend on y
    products = jnp.matmul(flat, own.T, precision="highest")
    logits = (a * products - a**2 * jnp.sum(own**2, axis=1)[None] / 2) / b**2
    if label is not None:
        logits = jnp.where(label[:, None] == label[None], logits, -jnp.inf)
    return jnp.matmul(jax.nn.softmax(logits, axis=1), own, precision="highest").reshape(x_t.shape)
