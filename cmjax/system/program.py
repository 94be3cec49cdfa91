"""The cost of programs: operations counted from a jaxpr; memory, traffic and exchanges read from a compiled program."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from cmjax.system.collectives import Collective, read_collectives

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}i?B?\) exceeds available HBM \({_SIZE}")
_TOTAL = re.compile(rf"Used {_SIZE} of {_SIZE}")


@dataclass(frozen=True)
class Program:
    """Holds the compiler's account of a program on one device, in bytes.

    results: those that do not overwrite arguments. peak: the compiler's own number, which leaves out some memory and
    counts some twice. moved: between the chip and its memory in one run; operations: floating-point ones; both count a
    loop's body once. text: the optimised HLO.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    peak: int
    moved: float
    operations: float
    collectives: tuple[Collective, ...]
    text: str = field(repr=False)
    seconds: float

    @property
    def memory(self) -> int:
        """The most that the device holds at once."""
        return max(self.arguments + self.results + self.temporaries + self.code, self.peak)


class DoesNotFitError(RuntimeError):
    """The program needs more memory than the device has. Sizes in bytes; None where the compiler did not say."""

    def __init__(self, message: str, *, temporaries: int | None, total: int | None, available: int | None):
        super().__init__(message)
        self.temporaries, self.total, self.available = temporaries, total, available


def compile_program(traced: jax.stages.Traced) -> Program:
    """Compile a traced function, for the devices that it was traced for.

    Raises: DoesNotFitError where it needs more memory than the device has.
    """
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _does_not_fit(str(error)) from error
    memory: Any = compiled.memory_analysis()
    cost, text = compiled.cost_analysis() or {}, compiled.as_text() or ""
    # some versions of JAX give a list of one
    cost = cost[0] if isinstance(cost, list) else cost
    return Program(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        # older versions of jaxlib do not give it
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        moved=cost.get("bytes accessed", 0.0),
        operations=cost.get("flops", 0.0),
        collectives=tuple(read_collectives(text)),
        text=text,
        seconds=time.perf_counter() - began,
    )


def _does_not_fit(message: str) -> DoesNotFitError:
    first = message.strip().split("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
    sizes: dict[str, int | None] = {"temporaries": None, "total": None, "available": None}
    for name, pattern in (("temporaries", _TEMPORARIES), ("total", _TOTAL)):
        if sizes["available"] is None and (found := pattern.search(message)):
            needed, unit, available, its_unit = found.groups()
            sizes[name] = round(float(needed) * _UNITS[unit])
            sizes["available"] = round(float(available) * _UNITS[its_unit])
    return DoesNotFitError(first, **sizes)


def flops(fn: Callable[..., Any], *args: Any) -> float:
    """Count the operations of the matrix products and convolutions of one call, two for each multiply-add.

    Args: args: arrays, or their shapes; nothing is computed.
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """Does the same as `flops` for a jaxpr: a loop's body counts as often as it runs."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
            # zeros that dilation inserts between the points are not counted; those of the padding are
            spread = math.prod(eqn.params["lhs_dilation"])
            # inputs and places of the kernel: `spec[0]` is its axis of outputs
            total += 2 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[spec[0]] / spread
        # a while loop's trips are not in a jaxpr: its body counts once
        repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        # every branch of a condition counts, though only one runs
        total += repeats * sum(map(jaxpr_flops, _inner(eqn.params)))
    return float(total)


def _inner(params: dict[str, Any]) -> list[Any]:
    # loops, conditions, jitted functions and custom derivatives hold their jaxprs among their parameters
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
    return [getattr(p, "jaxpr", p) for p in leaves if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
