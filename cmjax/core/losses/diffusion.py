"""The losses of diffusion models, with which teachers are trained."""

import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.distances import l2
from cmjax.core.model import Model
from cmjax.core.preconditioning import combine
from cmjax.core.typing import Params, PerSample, PRNGKey, Weight


def denoising(model: Model, params: Params, key: PRNGKey | None, batch: Batch, *, weight: Weight) -> PerSample:
    """λ(t)·‖D_θ(x_t, t) − x0‖²/D, the loss of a diffusion model.   [Karras et al. 2022, eq. 8]

    weight: λ(t, r); r is 0, the time of the clean data.
    """
    t = batch.times.t
    estimate = model(params, batch.noised(model.path, t), t, key=key, **batch.conditions)
    return weight(t, jnp.zeros_like(t)) * l2(estimate, batch.x0)


def edm2(model: Model, params: Params, key: PRNGKey | None, batch: Batch, *, weight: Weight) -> PerSample:
    """λ(t)/e^u(t)·‖D_θ(x_t, t) − x0‖²/D + u(t), with the network's weight head u.   [Karras et al. 2024, EDM2, eq. 16]

    u learns the logarithm of the weighted error at t. Raises: TypeError where the network has no weight head.
    """
    t, c = batch.times.t, model.scalings(batch.times.t)
    x_t = batch.noised(model.path, t)
    out, u = model.weighted_output(params, x_t, t, key=key, **batch.conditions)
    return weight(t, jnp.zeros_like(t)) / jnp.exp(u) * l2(combine(c, x_t, out), batch.x0) + u
