"""The derivative of a model along its trajectory, in the bounded form of sCM, and ways to normalise it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.derivatives import Derivative
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Conditions, Params, PerSample, PRNGKey, Samples, Schedule
from cmjax.ranges import Positive, Steps

Gain = Callable[[PerSample], PerSample]
"""t -> a bounded factor that keeps the derivative finite: cos t on the TrigFlow path, 1 on the linear one."""

Normalize = Callable[[Samples], Samples]


class Tangent(NamedTuple):
    """`out`: F (b, ...), with its gradient. `g`: gain·df/dt (b, ...) of the model f, with the gradient stopped.

    `log_weight`: (b,), the output of the network's weight head; None where it was not asked for.
    """

    out: Samples
    g: Samples
    log_weight: PerSample | None


def tangent(
    model: Model,
    params: Params,
    x: Samples,
    t: PerSample,
    velocity: Samples,
    *,
    gain: Gain = jnp.ones_like,
    warmup: Array | float = 1.0,
    key: PRNGKey | None = None,
    weighted: bool = False,
    derivative: Derivative = jax.jvp,
    conditions: Conditions,
) -> Tangent:
    """gain·df/dt for f = c_skip·x + c_out·F along dx/dt = v:

        g = gain·(c_skip·v + c_out'·F) + warmup·(gain·c_skip'·x + gain·c_out·dF/dt)

    The last term is the derivative of F in the direction gain·c_out·(v, 1), which is bounded where dF/dt is not.
    [Lu & Song 2025, sCM, eq. 6 and 8]

    Args: velocity: v (b, ...). warmup: from 0 to 1; 0 leaves out the terms that are unstable early in training.
          weighted: True also gives the output of the network's weight head. derivative: how dF/dt is taken.
    """
    # the scalings and their derivatives by t
    c, c_slope = jax.jvp(model.scalings, (t,), (jnp.ones_like(t),))
    gain_of_f, gain_of_out = per_sample(gain(t), x), per_sample(gain(t) * c.c_out, x)
    c_skip, c_skip_slope, c_out_slope = (per_sample(value, x) for value in (c.c_skip, c_slope.c_skip, c_slope.c_out))

    def network(x, t):
        if weighted:
            return model.weighted_output(params, x, t, key=key, **conditions)
        return model.output(params, x, t, key=key, **conditions), None

    # the direction holds the factor, so that no unbounded dF/dt is computed first and multiplied later
    direction = (gain_of_out * velocity, gain_of_out.reshape(t.shape))
    out, out_slope, log_weight = derivative(network, (x, t), direction, has_aux=True)
    # stable from the start; what `warmup` scales holds the derivative of the network
    bounded = gain_of_f * (c_skip * velocity + c_out_slope * out)
    g = bounded + warmup * (gain_of_f * c_skip_slope * x + out_slope)
    return Tangent(out, jax.lax.stop_gradient(g), log_weight)


def ramp(*, length: Steps) -> Schedule:
    """The tangent's warm-up: step -> a factor that rises from 0 to 1 over the first `length` steps; 1 if `length` is 0.

    [Lu & Song 2025, sCM, sec. 4.2]   Raises: ValueError where length is negative.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    return lambda step: jnp.minimum(jnp.asarray(step, jnp.float32) / length, 1.0) if length else jnp.ones(())


def unit_norm(g: Samples, *, c: Positive = 0.1) -> Samples:
    """g/(‖g‖₂ + c), the norm over a sample's elements.   [Lu & Song 2025, sCM, sec. 4.2]"""
    return g / (_norm(g) + c)


def unit_rms(g: Samples, *, c: Positive = 0.1) -> Samples:
    """g/(rms(g) + c), with the root mean square over a sample's elements in place of the norm."""
    return g / (_norm(g) / math.prod(g.shape[1:]) ** 0.5 + c)


def clipped(g: Samples, *, bound: Positive = 1.0) -> Samples:
    """g with every element clipped to [−bound, bound].   [Lu & Song 2025, sCM, sec. 4.2]"""
    return jnp.clip(g, -bound, bound)


def unchanged(g: Samples) -> Samples:
    """g itself."""
    return g


def _norm(g: Samples) -> Array:
    """The L2 norm of each sample, (b, 1, ...)."""
    return jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
