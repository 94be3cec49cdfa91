"""The skeleton that consistency objectives share: two points on one trajectory, a distance and a weight."""

import jax

from cmjax.core.typing import Conditions, Denoiser, Distance, Pair, Params, PerSample, PRNGKey, Samples, Weight


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
