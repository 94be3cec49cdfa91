"""Flow maps between any two times, learned from data alone: MeanFlow, its improvement, shortcut models and α-Flow.

Their networks F(x, t, s) are mean velocities, Φ(x, t, s) = x − (t − s)·F, on the linear path, where velocity is
noise − x0; `pair.s` is the destination.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.guidance import NO_LABEL
from cmjax.core.losses import NO_CONDITIONS
from cmjax.core.pairs import part_of
from cmjax.core.paths import Path, per_sample
from cmjax.core.preconditioning import apply_net, linear_flow
from cmjax.core.tangents import tangent
from cmjax.core.typing import Conditions, Distance, Net, Pair, Params, PerSample, PRNGKey, Samples


def mean_flow_loss(
    net: Net,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    distance: Distance,
    guidance: float = 1.0,
    blend: float = 0.0,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """d(F_θ(x_t, t, s), v − (t − s)·dF_θ⁻/dt), v = noise − x0.   [Geng et al. 2025, MeanFlow, eq. 9 to 11]

    With `guidance` w or `blend` κ the velocity is v' = w·v + (1 − w − κ)·F⁻(x_t, t, t, no label) + κ·F⁻(x_t, t, t),
    where there is a label: guidance of scale w/(1 − κ) is learned, and sampling takes one evaluation.   [eq. 19 to 21]
    """
    x_t, velocity, dropout_key = _on_line(key, x0, pair, path)
    if guidance != 1 or blend:
        velocity = _guided(net, params, x_t, pair.t, velocity, guidance, blend, dropout_key, conditions)
    out, g, _ = tangent(
        net, params, _to(pair.destination), x_t, pair.t, velocity, key=dropout_key, conditions=conditions
    )
    return distance(out, jax.lax.stop_gradient(out) + g)


def improved_mean_flow_loss(
    net: Net,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    distance: Distance,
    guidance: float = 1.0,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """iMF: d(F_θ + (t − s)·dF_θ⁻/dt, v), the derivative along the network's own velocity F⁻(x_t, t, t).

    The regression's target is then v alone, which does not depend on the network.   [Geng et al. 2025, iMF, eq. 12]
    """
    x_t, velocity, dropout_key = _on_line(key, x0, pair, path)
    own = jax.lax.stop_gradient(_velocity(net, params, x_t, pair.t, dropout_key, conditions))
    if guidance != 1:
        velocity = _guided(net, params, x_t, pair.t, velocity, guidance, 0.0, dropout_key, conditions)
    out, g, _ = tangent(
        net, params, _to(pair.destination), x_t, pair.t, velocity, along=own, key=dropout_key, conditions=conditions
    )
    return distance(out, jax.lax.stop_gradient(out) + g)


def shortcut_loss(
    net: Net,
    params: Params,
    target_params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    share: float,
    distance: Distance,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """F_θ(x_t, t, s) learns the mean of two half steps of F_θ⁻, t → r → s, on the first `share` of the batch, and the
    velocity on the rest, which is flow matching.   [Frans et al. 2025, eq. 4 and 5, alg. 1]

    Its pairs: `dyadic_pairs` of the same `share`. The rest's steps t → s are theirs, the finest, where one of Euler's
    is good enough.
    """
    x_t, velocity, dropout_key = _on_line(key, x0, pair, path)
    count = part_of(share, len(x0))  # of samples that learn from their own half steps
    x, first, middle, last = (value[:count] for value in (x_t, pair.t, pair.r, pair.destination))
    inputs = jax.tree.map(lambda condition: condition[:count], conditions)
    one = _mean_velocity(net, target_params, x, first, middle, dropout_key, inputs)
    two = _mean_velocity(net, target_params, x - per_sample(first - middle, x) * one, middle, last, dropout_key, inputs)
    target = jnp.concatenate([(one + two) / 2, velocity[count:]])
    out = _mean_velocity(net, params, x_t, pair.t, pair.destination, dropout_key, conditions)
    return distance(out, jax.lax.stop_gradient(target))


def alpha_flow_loss(
    net: Net,
    params: Params,
    target_params: Params,
    key: PRNGKey,
    x0: Samples,
    pair: Pair,
    *,
    path: Path,
    alpha: Array | float,
    distance: Distance,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """α·v + (1 − α)·F_θ⁻(x_r, r, s) is F_θ(x_t, t, s)'s target, x_r = x_t − (t − r)·v and r = α·s + (1 − α)·t.

    The regression is onto F_θ⁻ + (target − F_θ⁻)/α, whose gradient is that of the paper's weight 1/α. α = 1 is flow
    matching, α → 0 MeanFlow, and between them it is discrete consistency training on the linear path. Its pairs:
    `between`.   [Zhang et al. 2025, α-Flow]
    """
    x_t, velocity, dropout_key = _on_line(key, x0, pair, path)
    x_r = x_t - per_sample(pair.t - pair.r, x_t) * velocity
    later = _mean_velocity(net, target_params, x_r, pair.r, pair.destination, dropout_key, conditions)
    target = alpha * velocity + (1 - alpha) * later
    out = _mean_velocity(net, params, x_t, pair.t, pair.destination, dropout_key, conditions)
    fixed = jax.lax.stop_gradient(out)
    return distance(out, fixed + (jax.lax.stop_gradient(target) - fixed) / alpha)


def _on_line(key: PRNGKey, x0: Samples, pair: Pair, path: Path) -> tuple[Samples, Samples, PRNGKey]:
    """x_t, the velocity of its data and noise, and the key for dropout."""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    return path.add_noise(x0, noise, pair.t), path.conditional_velocity(x0, noise, pair.t), dropout_key


def _to(s: PerSample):
    """`linear_flow` with the destination s: t -> Scalings."""
    return lambda t: linear_flow(t, s)


def _mean_velocity(net, params, x, t, s, key, conditions) -> Samples:
    return apply_net(net, params, x, linear_flow(t, s), key=key, **conditions)


def _velocity(net, params, x, t, key, conditions) -> Samples:
    return _mean_velocity(net, params, x, t, t, key, conditions)


def _guided(net, params, x, t, velocity, guidance, blend, key, conditions) -> Samples:
    """The velocity to learn where guidance is in the target; as it was for samples without a label."""
    label = conditions["label"]
    nothing = {**conditions, "label": jnp.full_like(label, NO_LABEL)}
    mixed = guidance * velocity + (1 - guidance - blend) * _velocity(net, params, x, t, key, nothing)
    if blend:
        mixed += blend * _velocity(net, params, x, t, key, conditions)
    return jax.lax.stop_gradient(jnp.where(per_sample(label == NO_LABEL, x), velocity, mixed))
