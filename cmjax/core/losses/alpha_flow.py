"""α-Flow: from flow matching to MeanFlow, by steps that become ever shorter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative
from cmjax.core.distances import l2
from cmjax.core.losses.flow_maps import ALWAYS, Interval, guided_velocity, mean_velocity, on_line
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Params, PerSample, PRNGKey, Time
from cmjax.ranges import Fraction, Inside, Positive

AlphaWeight = Callable[[PerSample, PerSample], PerSample]
"""(the mean squared residual, α), both (b,) -> the residual's weight (b,)."""


def alphaflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    alpha: Array | float,
    weight: AlphaWeight,
    guidance: Time = 1.0,
    blend: float = 0.0,
    interval: Interval = ALWAYS,
    clip: Positive = jnp.inf,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """α-Flow: w·‖u_θ(x_t, t, s) − (α·v + (1 − α)·u_θ⁻(x_r, r, s))‖²/D, x_r = x_t − (t − r)·v, r = α·s + (1 − α)·t.

    α = 1 or s = t gives flow matching; 0 < α < 1 gives discrete consistency training on the linear path; α = 0 gives
    MeanFlow's loss, which uses the derivative of u.   [Zhang et al. 2025, α-Flow]

    `guidance`, `blend` and `interval` change v as in `meanflow`. All evaluations have the student's dropout masks.

    Args: alpha: α, such as `alpha_schedule` at this step. weight: w, `inverse_alpha` (the paper) or `adaptive_alpha`.
          Its times: `between` with the same α.
          clip: the target at 0 < α < 1 is clipped to [−clip, clip]; 4 in the released code.
    """
    t, s, x_t, v = on_line(model, batch)
    v = guided_velocity(model, params, key, batch, x_t, v, guidance=guidance, blend=blend, interval=interval)
    r, alpha = batch.times.target, jnp.asarray(alpha, x_t.dtype)

    def regress(u, target, alpha):
        gap = l2(u, jax.lax.stop_gradient(target))
        return jax.lax.stop_gradient(weight(gap, alpha)) * gap

    def discrete():
        # where s = t the target is v alone; 1 also keeps 1/α finite where α = 0 and this branch is not taken
        fraction = jnp.where((s < t) & (alpha > 0), alpha, 1)
        x_r = x_t - per_sample(t - r, x_t) * v
        held = params if target_params is None else target_params
        later = model.output(held, x_r, r, s, key=key, **batch.conditions)
        u = model.output(params, x_t, t, s, key=key, **batch.conditions)
        target = per_sample(fraction, v) * v + per_sample(1 - fraction, v) * later
        # flow matching, where s = t, is not clipped: its target is the sample's own velocity
        return regress(u, jnp.where(per_sample(s < t, v), jnp.clip(target, -clip, clip), target), fraction)

    def limit():
        u, du_dt = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
        # α = 1 in the weight: the limit's residual is not divided by α
        return regress(u, v - per_sample(t - s, v) * du_dt, jnp.ones_like(t))

    # Both are traced and one runs: the derivative is not paid for while α is above 0.
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
    *, total_steps: int, start: Fraction = 0.0, end: Fraction = 1.0, clamp: Inside = 0.005, steepness: Positive = 25.0
) -> Callable[[Array | int], Array]:
    """step -> α, which falls from 1 to 0 by a sigmoid, centred between the fractions `start` and `end` of the run.

    α below `clamp` becomes 0, where the loss is MeanFlow's; α above 1 − clamp becomes 1.   [Zhang et al. 2025, α-Flow]
    Raises: ValueError naming the argument that is out of range.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got {start} and {end}")
    if not 0 < clamp < 0.5:
        raise ValueError(f"clamp must lie in (0, 0.5), got {clamp}")

    def alpha(step):
        # where the step lies between the fractions `start`, 0, and `end`, 1
        place = (jnp.asarray(step, jnp.float32) / total_steps - start) / (end - start)
        value = jax.nn.sigmoid(steepness * (0.5 - place))
        return jnp.where(value < clamp, 0.0, jnp.where(value > 1 - clamp, 1.0, value))

    return alpha
