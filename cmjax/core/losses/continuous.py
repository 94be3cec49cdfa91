"""Continuous-time consistency models: the limit of CT and CD as r approaches t.

With a teacher's velocity these losses distil. With the velocity of one sample of data and noise they train from data.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative
from cmjax.core.distances import Speed, l2, speed_by
from cmjax.core.losses.flow_maps import teacher_velocity
from cmjax.core.losses.tangents import Gain, Normalize, tangent, unit_norm
from cmjax.core.model import Model
from cmjax.core.paths import flat, per_sample
from cmjax.core.typing import BoundDenoiser, Params, PerSample, PRNGKey, Samples, Weight

L2_SPEED = speed_by(l2)


def continuous_ct(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    weight: Weight,
    speed: Speed = L2_SPEED,
) -> PerSample:
    """λ(t)·f_θᵀ·g/2, g the gradient of `speed` by df_θ⁻/dt; with l2, λ(t)·f_θᵀ·(df_θ⁻/dt)/D.

    [Song et al. 2023, theorem 6, app. B]

    Its *gradient* is half the limit of CT's gradient divided by (t − r)^(p − 1), with p the power of the distance: 2 of
    l2 and LPIPS, 1 of l1, linf and the norm. Its value has no meaning and may be negative.
    There is no form without stop-gradient: the velocity of one sample of data and noise is right on average, but its
    square is not.
    """
    velocity = _velocity_of_data(model, batch)
    return _stopped(model, params, key, batch, velocity, weight=weight, speed=speed)


def continuous_cd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    weight: Weight,
    speed: Speed = L2_SPEED,
    stop_gradient: bool = True,
) -> PerSample:
    """The limit of CD as r approaches t, along the teacher's PF-ODE.   [Song et al. 2023, theorems 3 to 5]

    With `stop_gradient` it is the loss of `continuous_ct`, whose value has no meaning. Without it, the loss is
    λ(t)·‖df_θ/dt‖²/D, or λ(t) times another `speed` of f_θ; it is 0 where f_θ is constant along every trajectory.
    """
    velocity = teacher_velocity(teacher, model, batch, batch.noised(model.path, batch.times.t))
    if stop_gradient:
        return _stopped(model, params, key, batch, velocity, weight=weight, speed=speed)
    f, df_dt = _derivative(model, params, key, batch, velocity)
    return weight(batch.times.t, batch.times.t) * speed(f, df_dt)


def scm_ct(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    derivative: Derivative = jax.jvp,
    warmup: Array | float = 1.0,
    normalize: Normalize = unit_norm,
    gain: Gain = jnp.cos,
    weighted: bool = False,
) -> PerSample:
    """sCT: e^w(t)·‖F_θ − F_θ⁻ + sign(c_out)·g‖²/D − w(t), g = cos t·df/dt, normalised.   [Lu & Song 2025, sCM, eq. 8]

    The velocity is that of the batch's data and noise.

    Args: model: with scalings such as `trig`. warmup: from 0 to 1, a factor of the unstable terms of g.
          gain: the factor of df/dt, cos t on the TrigFlow path. weighted: True takes w from the network's weight
          head; otherwise w = 0. derivative: how dF/dt is taken, by forward mode or by differences.
    """
    velocity = _velocity_of_data(model, batch)
    return _scm(model, params, key, batch, velocity, warmup, normalize, gain, weighted, derivative)


def scm_cd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    derivative: Derivative = jax.jvp,
    warmup: Array | float = 1.0,
    normalize: Normalize = unit_norm,
    gain: Gain = jnp.cos,
    weighted: bool = False,
) -> PerSample:
    """sCD: the loss of `scm_ct` along the teacher's PF-ODE, with the same arguments.   [Lu & Song 2025, sCM, alg. 1]"""
    velocity = teacher_velocity(teacher, model, batch, batch.noised(model.path, batch.times.t))
    return _scm(model, params, key, batch, velocity, warmup, normalize, gain, weighted, derivative)


def _scm(model, params, key, batch, velocity, warmup, normalize, gain, weighted, derivative) -> PerSample:
    t = batch.times.t
    out, g, log_weight = tangent(
        model, params, batch.noised(model.path, t), t, velocity,
        gain=gain, warmup=warmup, key=key, weighted=weighted, derivative=derivative, conditions=batch.conditions,
    )  # fmt: skip
    # F moves by −sign(c_out)·g, so that f moves against its derivative whatever the sign of c_out
    sign = per_sample(jnp.sign(model.scalings(t).c_out), out)
    squared = l2(out, jax.lax.stop_gradient(out) - sign * normalize(g))
    # e^w·error − w is least at w = −ln error
    return squared if log_weight is None else jnp.exp(log_weight) * squared - log_weight


def _stopped(model, params, key, batch, velocity, *, weight: Weight, speed: Speed) -> PerSample:
    f, df_dt = _derivative(model, params, key, batch, velocity)
    fixed, df_dt = jax.lax.stop_gradient((f, df_dt))
    gradient = jax.grad(lambda slope: jnp.sum(speed(fixed, slope)))(df_dt)
    # only the gradient of this product is meant
    return weight(batch.times.t, batch.times.t) * jnp.sum(flat(f * gradient), axis=1) / 2


def _derivative(model, params, key, batch: Batch, velocity: Samples) -> tuple[Samples, Samples]:
    """f(x_t, t) and its derivative with respect to t along dx/dt = velocity."""
    t = batch.times.t

    def f(x, t):
        return model(params, x, t, key=key, **batch.conditions)

    return jax.jvp(f, (batch.noised(model.path, t), t), (velocity, jnp.ones_like(t)))


def _velocity_of_data(model: Model, batch: Batch) -> Samples:
    """The velocity a'·x0 + b'·noise of one sample of data and noise, which is right on average."""
    return model.path.conditional_velocity(batch.x0, batch.noise, batch.times.t)
