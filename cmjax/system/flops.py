"""The floating-point operations of a traced program, counted from its jaxpr: loops as often as they run."""

import math
from collections.abc import Callable
from typing import Any

import jax


def flops(fn: Callable[..., Any], *args: Any) -> float:
    """Operations of the matrix products and convolutions of one call, two for each multiply-add.

    Args: args: arrays, or their shapes; nothing is computed.
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """The same of a program that was traced already."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _conv_flops(eqn)
        repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += repeats * sum(map(jaxpr_flops, _inner(eqn.params)))
    return float(total)


def _conv_flops(eqn: Any) -> float:
    """Multiply-adds with what dilation put between the points are not work; those with the padding are counted."""
    kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
    spread = math.prod(eqn.params["lhs_dilation"])
    return 2 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[spec[0]] / spread


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
    return [getattr(p, "jaxpr", p) for p in leaves if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
