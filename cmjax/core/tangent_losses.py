"""Continuous-time consistency models: the limit of CD and CT in which both points meet (`tangents`).

Where the velocity is a teacher's this distils, where it is the conditional one of data and noise it trains from data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.distances import l2
from cmjax.core.losses import NO_CONDITIONS
from cmjax.core.paths import Path, per_sample
from cmjax.core.preconditioning import Preconditioning, combine
from cmjax.core.tangents import Gain, Normalize, tangent, unit_norm
from cmjax.core.typing import Conditions, Denoiser, Net, Params, PerSample, PRNGKey, Samples, Weight

GiveVelocity = Callable[..., Samples]
"""(path, x_t, t, x0, noise, conditions) -> dx/dt of the trajectory through x_t."""


def velocity_of_data(
    path: Path, x_t: Samples, t: PerSample, x0: Samples, noise: Samples, conditions: Conditions
) -> Samples:
    """a'·x0 + b'·noise, the velocity for one sample of data and noise, right in the mean."""
    return path.conditional_velocity(x0, noise, t)


def velocity_of(teacher: Denoiser, teacher_params: Params) -> GiveVelocity:
    """That of a diffusion teacher's probability-flow ODE."""

    def velocity(path, x_t, t, x0, noise, conditions):
        return path.velocity(x_t, teacher(teacher_params, x_t, t, **conditions), t)

    return velocity


def scm_loss(
    net: Net,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    t: PerSample,
    *,
    path: Path,
    scalings: Preconditioning,
    give_velocity: GiveVelocity,
    warmup: Array | float = 1.0,
    normalize: Normalize = unit_norm,
    gain: Gain = jnp.cos,
    weighted: bool = True,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """e^w(t)·‖F_θ − F_θ⁻ + sign(c_out)·g‖²/D − w(t), g = cos t·df/dt, normalised.   [Lu & Song 2025, eq. 8, alg. 1]

    Consistency training (sCT) with `velocity_of_data`, distillation (sCD) with `velocity_of(teacher, its parameters)`.

    Args: net: F; with `weighted` its network has a weight head, whose w comes beside F. t: (b,) times of the path.
          scalings: such as `trig`. warmup: from 0 to 1, of the unstable terms of g. gain: cos t on the TrigFlow path.
    """
    x_t, velocity, dropout_key = _on_trajectory(key, x0, t, path, give_velocity, conditions)
    out, g, log_weight = tangent(
        net, params, scalings, x_t, t, velocity,
        gain=gain, warmup=warmup, key=dropout_key, weighted=weighted, conditions=conditions,
    )  # fmt: skip
    sign = per_sample(jnp.sign(scalings(t).c_out), out)
    target = jax.lax.stop_gradient(out) - sign * normalize(g)
    squared = l2(out, target)
    return squared if log_weight is None else jnp.exp(log_weight) * squared - log_weight


def continuous_consistency_loss(
    net: Net,
    params: Params,
    key: PRNGKey,
    x0: Samples,
    t: PerSample,
    *,
    path: Path,
    scalings: Preconditioning,
    give_velocity: GiveVelocity,
    weight: Weight,
    conditions: Conditions = NO_CONDITIONS,
) -> PerSample:
    """λ(t)·f_θ·df_θ⁻/dt/D, whose *gradient* is half the limit of CD's or CT's over t − r with the squared l2 distance.

    Its value says nothing and may be negative.   [Song et al. 2023, theorems 5 and 6, app. B]
    """
    x_t, velocity, dropout_key = _on_trajectory(key, x0, t, path, give_velocity, conditions)
    out, slope, _ = tangent(net, params, scalings, x_t, t, velocity, key=dropout_key, conditions=conditions)
    products = combine(scalings(t), x_t, out) * slope
    return weight(t, t) * jnp.mean(products.reshape(len(x0), -1), axis=1)


def _on_trajectory(
    key: PRNGKey, x0: Samples, t: PerSample, path: Path, give_velocity: GiveVelocity, conditions: Conditions
) -> tuple[Samples, Samples, PRNGKey]:
    """x_t, its velocity, which carries no gradient, and the key for dropout."""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = path.add_noise(x0, noise, t)
    return x_t, jax.lax.stop_gradient(give_velocity(path, x_t, t, x0, noise, conditions)), dropout_key
