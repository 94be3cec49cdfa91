"""What a compiler says of a program: its memory on one device, what it moves and what it exchanges."""

import re
import time
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
    """Bytes on one device. arguments: what the program is given; results: what it returns and does not write over its
    arguments. peak: the compiler's own figure, which leaves out some and counts some twice. moved: between the chip
    and its memory, in one run, a loop's body counted once. operations: the compiler's count, on one device, likewise.
    text: the optimised HLO.
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
    """The compiler found no way to run the program in the device's memory; bytes, where it told them."""

    def __init__(self, message: str, *, temporaries: int | None, total: int | None, available: int | None):
        super().__init__(message)
        self.temporaries, self.total, self.available = temporaries, total, available


def compile_program(traced: jax.stages.Traced) -> Program:
    """Compile what was traced, for the devices that it was traced for.

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
    cost, text = _one(compiled.cost_analysis()), compiled.as_text() or ""
    return Program(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        moved=cost.get("bytes accessed", 0.0),
        operations=cost.get("flops", 0.0),
        collectives=tuple(read_collectives(text)),
        text=text,
        seconds=time.perf_counter() - began,
    )


def _one(cost: Any) -> dict[str, float]:
    return cost[0] if isinstance(cost, list) else cost or {}


def _does_not_fit(message: str) -> DoesNotFitError:
    first = message.strip().split("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
    if (found := _TEMPORARIES.search(message)) is not None:
        return DoesNotFitError(first, temporaries=_bytes(*found.group(1, 2)), total=None,
                               available=_bytes(*found.group(3, 4)))  # fmt: skip
    if (found := _TOTAL.search(message)) is not None:
        return DoesNotFitError(first, temporaries=None, total=_bytes(*found.group(1, 2)),
                               available=_bytes(*found.group(3, 4)))  # fmt: skip
    return DoesNotFitError(first, temporaries=None, total=None, available=None)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
