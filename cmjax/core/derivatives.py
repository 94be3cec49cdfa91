"""The derivative of a network along a direction: by forward mode, or by evaluations alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.core.paths import per_sample
from cmjax.core.typing import PerSample
from cmjax.ranges import Inside

Derivative = Callable[..., tuple[Any, ...]]
"""As `jax.jvp`: (function, primals, directions, has_aux=False) -> (output, its derivative along the directions), and
with `has_aux` the auxiliary output."""


@dataclass(frozen=True)
class Differences:
    """Takes a `Derivative` by two evaluations, one on each side. `between`: the times that they stay within, if any."""

    step: float
    between: tuple[PerSample, PerSample] | None = None

    def __call__(
        self, function: Callable[..., Any], primals: Sequence[Any], directions: Sequence[Any], has_aux: bool = False
    ) -> tuple[Any, ...]:
        def at(h: Any) -> tuple[Any, jax.Array]:
            """Gives the shift that is made of h, and the output there."""
            # the last argument is the time; the others move by the same h along their own directions
            end = primals[-1] + h
            if self.between is not None:
                end = jnp.clip(end, *self.between)
                # (b,): the clip may shorten h, for each sample by its own ends
                h = end - primals[-1]
            moved = [x + per_sample(h, x) * d for x, d in zip(primals, directions, strict=True)]
            # the end exactly, which x + h·1 may miss by rounding
            if self.between is not None:
                moved[-1] = end
            # the sums above may have promoted, and the network is to see the dtypes that it always has
            out = function(*(jnp.asarray(to, x.dtype) for to, x in zip(moved, primals, strict=True)))
            return h, out[0] if has_aux else out

        (after, above), (before, below) = at(self.step), at(-self.step)
        length = jnp.asarray(after - before)
        # no interval is left where first = last: the slope is 0 there, and not nan
        slope = (above - below) / per_sample(jnp.where(length > 0, length, 1), above)
        out = function(*primals)
        return (out[0], slope, out[1]) if has_aux else (out, slope)


def central_difference(*, step: Inside) -> Differences:
    """(F(x + h·d, t + h·e) − F(x − h·d, t − h·e))/2h, with h = step, as the derivative of F(x, t) along (d, e).

    It needs no forward mode, which fused attention kernels do not have, and costs two more evaluations. Its error is of
    order h² by the third derivative, and of order ε/h by rounding, ε being the precision of the network's dtype. The
    evaluations are apart, and not one batch, so that all three have the same dropout masks.
    """
    return Differences(step)


def within(derivative: Derivative, first: PerSample, last: PerSample) -> Derivative:
    """Keeps a derivative by differences to evaluations at times from `first` to `last` (b,); any other stays as it is.

    The last argument of the function is the time t, whose direction is one. Within h of an end the evaluation beyond it
    is made at the end, and the difference divided by what lies between: of order h there.
    """
    return replace(derivative, between=(first, last)) if isinstance(derivative, Differences) else derivative
