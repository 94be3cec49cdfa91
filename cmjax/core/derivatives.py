"""The derivative of a network along a direction: by forward mode, or by evaluations alone."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.ranges import Inside

Derivative = Callable[..., tuple[Any, ...]]
"""As `jax.jvp`: (function, primals, directions, has_aux=False) -> (output, its derivative along the directions), and
with `has_aux` the auxiliary output."""


def central_difference(*, step: Inside) -> Derivative:
    """(F(x + h·d, t + h·e) − F(x − h·d, t − h·e))/2h, with h = step, as the derivative of F(x, t) along (d, e).

    It needs no forward mode, which fused attention kernels do not have, and costs two more evaluations. Its error is of
    order h² by the third derivative, and of order ε/h by rounding, ε being the precision of the network's dtype.
    """

    def derivative(
        function: Callable[..., Any], primals: Sequence[Any], directions: Sequence[Any], has_aux: bool = False
    ) -> tuple[Any, ...]:
        def at(h: float) -> jax.Array:
            out = function(*(jnp.asarray(x + h * d, x.dtype) for x, d in zip(primals, directions, strict=True)))
            return out[0] if has_aux else out

        slope = (at(step) - at(-step)) / (2 * step)
        out = function(*primals)
        return (out[0], slope, out[1]) if has_aux else (out, slope)

    return derivative
