"""The limit r → t of a consistency objective: the total derivative of the model along the PF-ODE, by one jvp."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.paths import per_sample
from cmjax.core.preconditioning import Preconditioning, apply_net
from cmjax.core.typing import Conditions, Net, Params, PerSample, PRNGKey, Samples

Gain = Callable[[PerSample], PerSample]
"""A bounded prefactor of the derivative, which keeps it finite: cos t on the TrigFlow path, 1 on the linear one."""

Normalize = Callable[[Samples], Samples]


class Tangent(NamedTuple):
    """`out`: F (b, ...), which carries the gradient. `g`: gain·df/dt of the model f (b, ...), which carries none.

    `log_weight`: (b,), the network's weight head, None where it was not asked for.
    """

    out: Samples
    g: Samples
    log_weight: PerSample | None


def tangent(
    net: Net,
    params: Params,
    scalings: Preconditioning,
    x: Samples,
    t: PerSample,
    velocity: Samples,
    *,
    gain: Gain = jnp.ones_like,
    warmup: Array | float = 1.0,
    along: Samples | None = None,
    key: PRNGKey | None = None,
    weighted: bool = False,
    conditions: Conditions,
) -> Tangent:
    """gain·df/dt for f = c_skip·x + c_out·F along dx/dt = v:

        g = gain·(c_skip·v + c_out'·F) + warmup·(gain·c_skip'·x + k·dF/dt),  k = gain·c_out

    with k·dF/dt the jvp of F in the direction (k·v, k), bounded where dF/dt is not.   [Lu & Song 2025, eq. 6 and 8;
    with c_skip = 1, c_out = s − t: Geng et al. 2025, eq. 10]

    Args: net: F(params, x, c_noise, *, key, **conditions). scalings: t (b,) -> `Scalings`; of a flow map with its s
          bound. velocity: v (b, ...). warmup: 0 leaves out what is unstable at first. along: the direction of the jvp
          where it is another than v. weighted: the network is asked for its weight head too.
    """
    c, derivative = jax.jvp(scalings, (t,), (jnp.ones_like(t),))
    scale, k = (per_sample(value, x) for value in (gain(t), gain(t) * c.c_out))
    c_skip, c_skip_slope, c_out_slope = (
        per_sample(value, x) for value in (c.c_skip, derivative.c_skip, derivative.c_out)
    )
    asked = {"return_weight": True} if weighted else {}

    def network(x, t):
        out = apply_net(net, params, x, scalings(t), key=key, **conditions, **asked)
        return out if weighted else (out, None)

    direction = velocity if along is None else along
    out, k_slope, log_weight = jax.jvp(network, (x, t), (k * direction, k.reshape(t.shape)), has_aux=True)
    steady = scale * (c_skip * velocity + c_out_slope * out)
    g = steady + warmup * (scale * c_skip_slope * x + k_slope)
    return Tangent(out, jax.lax.stop_gradient(g), log_weight)


def unit_norm(g: Samples, *, c: float = 0.1) -> Samples:
    """g/(‖g‖₂ + c), the norm over a sample's elements.   [Lu & Song 2025, sec. 4.2]"""
    return g / (_norm(g) + c)


def unit_rms(g: Samples, *, c: float = 0.1) -> Samples:
    """g/(rms(g) + c), with the root mean square over a sample's elements in place of the norm."""
    return g / (_norm(g) / (g[0].size ** 0.5) + c)


def clipped(g: Samples, *, bound: float = 1.0) -> Samples:
    """Every element within [−bound, bound].   [Lu & Song 2025, sec. 4.2]"""
    return jnp.clip(g, -bound, bound)


def unchanged(g: Samples) -> Samples:
    """g itself."""
    return g


def _norm(g: Samples) -> Array:
    """(b, 1, ...)."""
    return jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
