"""Estimates how other settings change the memory and arithmetic of a train step, without compiling."""

from dataclasses import dataclass
from typing import Any

from cmjax.config.fields import changed
from cmjax.planning.abstract import AbstractRun
from cmjax.system.chips import Chip
from cmjax.system.mesh import bytes_per_device, make_mesh, parameter_shardings
from cmjax.system.program import DoesNotFitError, Program


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. other: padding of the arguments, and results that do not overwrite them."""

    state: int
    frozen: int
    batch: int
    other: int
    temporaries: int
    code: int
    available: int | None
    refused: bool = False

    @classmethod
    def of(cls, planned: AbstractRun, compiled: Program | DoesNotFitError, chip: Chip | None) -> "Memory":
        """Read the compiler's numbers, or those of its refusal."""
        arguments = planned.argument_bytes(planned.mesh)
        available = None if chip is None else chip.hbm_bytes
        if isinstance(compiled, DoesNotFitError):
            # a refusal may name only the total
            temporaries = compiled.temporaries or max((compiled.total or 0) - sum(arguments), 0)
            return cls(*arguments, 0, temporaries, 0, compiled.available or available, refused=True)
        other = compiled.memory - sum(arguments) - compiled.temporaries - compiled.code
        return cls(*arguments, other, compiled.temporaries, compiled.code, available)

    @property
    def total(self) -> int:
        return self.state + self.frozen + self.batch + self.other + self.temporaries + self.code

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        if self.refused:
            return False
        return None if self.available is None else self.total <= self.available

    def table(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total, "fits": self.fits}


def advise(planned: AbstractRun, memory: Memory, operations: float) -> list[dict[str, Any]]:
    """Make a row for each option: its flag, the estimated memory on one device (None: unknown) and the operations.

    Args: operations: of the train step as it is.
    """
    run, devices = planned.run, planned.mesh.size
    rows = []

    def row(option: str, fraction: float = 1.0, **changes: int) -> None:
        total = _estimate(planned, memory, fraction=fraction, **changes)
        rows.append({"option": f"--config.{option}", "memory": total, "operations": operations * fraction})

    # a few stand for all: the table is to be read, and what lies between can be asked of `plan`
    for fsdp in sorted({2, 8, _fsdps(devices)[-1]} & set(_fsdps(devices))):
        if fsdp > run.fsdp:
            row(f"mesh.fsdp={fsdp}", fsdp=fsdp)
    # the first is the present one
    for parts in _parts(planned)[1:3]:
        row(f"grad_accumulation={parts}", parts=parts)
    if run.batch_size % (2 * devices * run.grad_accumulation) == 0:
        row(f"batch_size={run.batch_size // 2}", fraction=0.5)
    if run.model_spec.net.get("remat") is False:
        # what recomputing saves is known only to the compiler
        recomputing = AbstractRun.of(changed(run.config, "net.remat", True), list(planned.mesh.devices.flat))
        rows.append({"option": "--config.net.remat=True", "memory": None, "operations": recomputing.operations})
    return rows


def what_fits(planned: AbstractRun, memory: Memory) -> str:
    """Find the least change of fsdp and gradient accumulation that is estimated to fit. Returns: a sentence."""
    run = planned.run
    # A compiler that refuses a program has already shrunk it by recomputation, which it avoids for one that fits:
    # the estimate may then be half of what is needed.
    room = (memory.available or 0) / (2 if memory.refused else 1)
    fsdps = [run.fsdp, *(fsdp for fsdp in _fsdps(planned.mesh.size) if fsdp > run.fsdp)]
    # the first pair is the present setting
    choices = [(fsdp, parts) for fsdp in fsdps for parts in _parts(planned)][1:]
    # both make a step slower, so the least product comes first, and of equals the one with less to exchange
    for fsdp, parts in sorted(choices, key=lambda choice: (choice[0] * choice[1], choice[0])):
        total = _estimate(planned, memory, fsdp=fsdp, parts=parts)
        if total <= room:
            options = [f"--config.mesh.fsdp={fsdp}"] if fsdp != run.fsdp else []
            options += [f"--config.grad_accumulation={parts}"] if parts != run.grad_accumulation else []
            return f"by estimate {' '.join(options)} makes it fit, {total / 2**30:.2f} GiB or more: plan that"
    return "no fsdp and no gradient accumulation makes it fit by estimate: try --config.net.remat=True or more devices"


def _estimate(
    planned: AbstractRun, memory: Memory, *, fsdp: int | None = None, parts: int | None = None, fraction: float = 1.0
) -> int:
    """Estimate the total: exact for state and frozen parameters; activations in proportion to the samples at once."""
    run, mesh, params = planned.run, planned.mesh, planned.state.params
    parts = parts or run.grad_accumulation
    split = make_mesh(fsdp=fsdp or run.fsdp, devices=list(mesh.devices.flat))
    state, frozen, batch = planned.argument_bytes(split)
    # Temporaries hold one copy of the gradients, which are split as the parameters are; the rest is activations.
    gradients, split_gradients = (bytes_per_device(params, parameter_shardings(params, one)) for one in (mesh, split))
    activations = max(memory.temporaries - gradients, 0) * fraction * run.grad_accumulation / parts
    copies = 2 if parts > 1 and run.grad_accumulation == 1 else 1  # the sum of the parts' gradients is one more
    fixed = state + frozen + memory.other + memory.code + copies * split_gradients
    return round(fixed + batch * fraction + activations)


def _fsdps(devices: int) -> list[int]:
    """Lists the values of fsdp to try."""
    return [fsdp for fsdp in (1, 2, 4, 8, 16, 32, 64, 128, 256) if fsdp <= devices and devices % fsdp == 0]


def _parts(planned: AbstractRun) -> list[int]:
    """Lists the values of grad_accumulation, from the present one on, that divide the batch over the devices."""
    run, devices = planned.run, planned.mesh.size
    candidates = range(run.grad_accumulation, run.batch_size // devices + 1)
    return [parts for parts in candidates if run.batch_size % (parts * devices) == 0]
