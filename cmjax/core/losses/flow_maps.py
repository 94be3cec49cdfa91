"""Flow maps between any two times, learned from data alone: MeanFlow, iMF, shortcut models and α-Flow.

The network F(x, t, s) gives the mean velocity u from t to the destination s: Φ(x, t, s) = x − (t − s)·u. The path is
linear, so the velocity v of one sample is noise − x0.
"""

from collections.abc import Callable
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative
from cmjax.core.distances import l2
from cmjax.core.guidance import NO_LABEL
from cmjax.core.model import Model
from cmjax.core.paths import linear, per_sample
from cmjax.core.times import part_of
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey, Samples, Time
from cmjax.ranges import Inside, Positive, Share

AlphaWeight = Callable[[PerSample, PerSample], PerSample]
"""(the mean squared residual, α), both (b,) -> the residual's weight (b,)."""


def meanflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    guidance: Time = 1.0,
    blend: float = 0.0,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """MeanFlow: d(u_θ(x_t, t, s), v − (t − s)·du_θ⁻/dt), v = noise − x0.   [Geng et al. 2025, MeanFlow, eq. 9 to 11]

    With `guidance` w or `blend` κ, v' = w·v + (1 − w − κ)·u⁻(x_t, t, t, no label) + κ·u⁻(x_t, t, t) replaces v where
    there is a label: u learns guidance of scale w/(1 − κ), and sampling needs one evaluation.   [eq. 19 to 21]
    `derivative` says how du/dt is taken, by forward mode or by differences.

    Raises: ValueError where the path is not linear, or guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = _on_line(model, batch)
    if not (_is(guidance, 1) and _is(blend, 0)):
        v = _guided(model, params, key, batch, x_t, v, guidance, blend)
    u, du_dt = _mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    u_tgt = v - per_sample(t - s, v) * du_dt
    return distance(u, jax.lax.stop_gradient(u_tgt))


def imf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    guidance: Time = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """iMF: d(u_θ + (t − s)·du_θ⁻/dt, v), with the derivative along the network's own velocity u⁻(x_t, t, t).

    The regression's target is then v alone, which does not depend on the network.   [Geng et al. 2025, iMF, eq. 12]

    With `guidance` w, at times t in the `interval`, the target is v + (1 − 1/w)·(u⁻ − u⁻(no label)), with both u⁻ at
    (x_t, t, t), as in the released code: the network learns the velocity w·v + (1 − w)·u(no label), and the targets
    are only as noisy as v. A condition `guidance` (b,) replaces the argument, and the network takes it as an input.
    The released network also takes the interval as an input; here the interval is fixed.

    Raises: ValueError where the path is not linear, or guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = _on_line(model, batch)
    own = jax.lax.stop_gradient(model.output(params, x_t, t, t, key=key, **batch.conditions))
    guidance = batch.conditions.get("guidance", guidance)
    if not _is(guidance, 1):
        within = (interval[0] <= t) & (t <= interval[1])
        v = _guided(model, params, key, batch, x_t, v, 1.0, jnp.where(within, 1 - 1 / jnp.asarray(guidance), 0.0))
    u, du_dt = _mean_velocity(model, params, key, batch, x_t, along=own, derivative=derivative)
    return distance(u + per_sample(t - s, u) * jax.lax.stop_gradient(du_dt), v)


def shortcut(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    share: float,
    distance: Distance,
) -> PerSample:
    """Shortcut models: d(u_θ(x_t, t, s), target), where u_θ learns that one step equals two half steps of u_θ⁻.

    For the first `share` of the batch the target is the mean of u_θ⁻ over the half steps t → r and r → s. For the rest
    it is v at the finest step t → s: flow matching.   [Frans et al. 2025, eq. 4 and 5, alg. 1]
    Its times: `dyadic_pairs` of the same `share`, drawn for this batch as a whole: the first samples are told by their
    places.
    """
    t, s, x_t, v = _on_line(model, batch)
    halved = part_of(share, len(x_t))
    x, start, middle, end = (value[:halved] for value in (x_t, t, batch.times.target, s))
    inputs = jax.tree.map(lambda condition: condition[:halved], batch.conditions)
    target_params = params if target_params is None else target_params
    one = model.output(target_params, x, start, middle, key=key, **inputs)
    x = x - per_sample(start - middle, x) * one
    two = model.output(target_params, x, middle, end, key=key, **inputs)
    target = jnp.concatenate([(one + two) / 2, v[halved:]])
    u = model.output(params, x_t, t, s, key=key, **batch.conditions)
    return distance(u, jax.lax.stop_gradient(target))


def alphaflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    alpha: Array | float,
    weight: AlphaWeight,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """α-Flow: w·‖u_θ(x_t, t, s) − (α·v + (1 − α)·u_θ⁻(x_r, r, s))‖²/D, x_r = x_t − (t − r)·v, r = α·s + (1 − α)·t.

    α = 1 or s = t gives flow matching; 0 < α < 1 gives discrete consistency training on the linear path; α = 0 gives
    MeanFlow's loss, which uses the derivative of u.   [Zhang et al. 2025, α-Flow]

    Args: alpha: α, such as `alpha_schedule` at this step. weight: w, `inverse_alpha` (the paper) or `adaptive_alpha`.
          Its times: `between` with the same α.
    """
    t, s, x_t, v = _on_line(model, batch)
    r, alpha = batch.times.target, jnp.asarray(alpha, x_t.dtype)

    def regress(u, target, alpha):
        gap = l2(u, jax.lax.stop_gradient(target))
        return jax.lax.stop_gradient(weight(gap, alpha)) * gap

    def discrete():
        share = jnp.where((s < t) & (alpha > 0), alpha, 1)
        x_r = x_t - per_sample(t - r, x_t) * v
        held = params if target_params is None else target_params
        later = model.output(held, x_r, r, s, key=key, **batch.conditions)
        u = model.output(params, x_t, t, s, key=key, **batch.conditions)
        return regress(u, per_sample(share, v) * v + per_sample(1 - share, v) * later, share)

    def limit():
        u, du_dt = _mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
        return regress(u, v - per_sample(t - s, v) * du_dt, jnp.ones_like(t))

    return jax.lax.cond(alpha > 0, discrete, limit)


def inverse_alpha(gap: PerSample, alpha: PerSample) -> PerSample:
    """The weight 1/α, with which the gradient has a finite limit as α goes to 0.   [Zhang et al. 2025, α-Flow]"""
    return 1 / alpha


def adaptive_alpha(gap: PerSample, alpha: PerSample, *, c: Positive) -> PerSample:
    """The weight α/(‖Δ‖²/D + c), Δ the residual, with which all samples count about equally.

    [Zhang et al. 2025, α-Flow, the released code]
    """
    return alpha / (gap + c)


def alpha_schedule(
    *, total_steps: int, start: Share = 0.0, end: Share = 1.0, clamp: Inside = 0.005, steepness: Positive = 25.0
) -> Callable[[Array | int], Array]:
    """step -> α, which falls from 1 to 0 by a sigmoid, centred between the shares `start` and `end` of the run.

    α below `clamp` becomes 0, where the loss is MeanFlow's; α above 1 − clamp becomes 1.   [Zhang et al. 2025, α-Flow]
    Raises: ValueError naming the argument that is out of range.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got {start} and {end}")
    if not 0 < clamp < 0.5:
        raise ValueError(f"clamp must lie in (0, 0.5), got {clamp}")

    def alpha(step):
        place = (jnp.asarray(step, jnp.float32) / total_steps - start) / (end - start)
        value = jax.nn.sigmoid(steepness * (0.5 - place))
        return jnp.where(value < clamp, 0.0, jnp.where(value > 1 - clamp, 1.0, value))

    return alpha


def _on_line(model: Model, batch: Batch) -> tuple[PerSample, PerSample, Samples, Samples]:
    """t, s, x_t, and the velocity noise − x0 of each sample."""
    if model.path != linear:
        raise ValueError("this loss is of the path paths.linear, where a flow map is x − (t − s)·u")
    t, s = batch.times.t, batch.times.destination
    return t, s, batch.noised(linear, t), linear.conditional_velocity(batch.x0, batch.noise, t)


def _mean_velocity(
    model, params, key, batch: Batch, x_t: Samples, *, along: Samples, derivative: Derivative
) -> tuple[Samples, ...]:
    """u(x_t, t, s) and its derivative with respect to t, where x moves along dx/dt = `along` and s is fixed."""
    t, s = batch.times.t, batch.times.destination

    def u(x, t):
        return model.output(params, x, t, s, key=key, **batch.conditions)

    return derivative(u, (x_t, t), (along.astype(x_t.dtype), jnp.ones_like(t)))


def _is(value: Time, number: float) -> bool:
    """Whether it is this number for all samples; an array may hold others."""
    return isinstance(value, Real) and bool(value == number)


def _guided(model, params, key, batch: Batch, x_t: Samples, v: Samples, guidance: Time, blend: Time) -> Samples:
    """The velocity w·v + (1 − w − κ)·u⁻(x_t, t, t, no label) + κ·u⁻(x_t, t, t), or v for samples without a label."""
    if "label" not in batch.conditions:
        raise ValueError("guidance is by labels: the batch's conditions have no 'label'")
    t, label = batch.times.t, batch.conditions["label"]

    def velocity(label):
        return model.output(params, x_t, t, t, key=key, **{**batch.conditions, "label": label})

    w, kappa = per_sample(guidance, v), per_sample(blend, v)
    mixed = w * v + (1 - w - kappa) * velocity(jnp.full_like(label, NO_LABEL))
    if not _is(blend, 0):
        mixed += kappa * velocity(label)
    return jax.lax.stop_gradient(jnp.where(per_sample(label == NO_LABEL, v), v, mixed))
