"""Estimates how other settings change the memory and arithmetic of a train step, without compiling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from cmjax.config.fields import changed
from cmjax.config.run import Run
from cmjax.system.chips import Chip
from cmjax.system.mesh import batch_sharding, bytes_per_device, make_mesh, over_steps, parameter_shardings
from cmjax.system.program import DoesNotFitError, Program

Shapes = Mapping[str, Any]
"""Shapes of "state", "frozen" and "batch"."""


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
    def of(
        cls,
        run: Run,
        shapes: Shapes,
        mesh: Mesh,
        program: Program | None,
        refusal: DoesNotFitError | None,
        chip: Chip | None,
    ) -> "Memory":
        """Read the compiler's numbers, or those of its refusal."""
        state, frozen, batch = argument_bytes(run, shapes, mesh)
        available = None if chip is None else chip.hbm_bytes
        if program is not None:
            rest = program.memory - program.arguments - program.temporaries - program.code
            other = program.arguments - state - frozen - batch + rest
            return cls(state, frozen, batch, other, program.temporaries, program.code, available)
        temporaries = 0
        if refusal is not None:
            available = refusal.available or available
            temporaries = refusal.temporaries or max((refusal.total or 0) - state - frozen - batch, 0)
        return cls(state, frozen, batch, 0, temporaries, 0, available, refused=True)

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


def argument_bytes(run: Run, shapes: Shapes, mesh: Mesh) -> tuple[int, int, int]:
    """Bytes on one device of the state, the frozen parameters and the batches of one call."""
    state, frozen = (
        bytes_per_device(shapes[name], parameter_shardings(shapes[name], mesh)) for name in ("state", "frozen")
    )
    batch, by_device = shapes["batch"], batch_sharding(mesh)
    sharding = over_steps(by_device) if run.steps_per_call > 1 else by_device
    return state, frozen, bytes_per_device(batch, dict.fromkeys(batch, sharding))


def advise(
    config: Mapping[str, Any],
    run: Run,
    memory: Memory,
    shapes: Shapes,
    mesh: Mesh,
    operations: float,
    count_operations: Callable[[Mapping[str, Any]], float],
) -> list[dict[str, Any]]:
    """Make a row for each option: its flag, the estimated memory on one device (None: unknown) and the operations.

    Args: operations: of the train step. count_operations: counts those of another configuration.
    """
    rows = []

    def row(option: str, fraction: float = 1.0, **changes: int) -> None:
        total = _estimate(run, memory, shapes, mesh, fraction=fraction, **changes)
        rows.append({"option": f"--config.{option}", "memory": total, "operations": operations * fraction})

    for fsdp in sorted({2, 8, _fsdps(mesh.size)[-1]} & set(_fsdps(mesh.size))):
        if fsdp > run.fsdp:
            row(f"mesh.fsdp={fsdp}", fsdp=fsdp)
    for parts in _parts(run, mesh.size)[1:3]:
        row(f"grad_accumulation={parts}", parts=parts)
    if run.batch_size % (2 * mesh.size * run.grad_accumulation) == 0:
        row(f"batch_size={run.batch_size // 2}", fraction=0.5)
    if run.model_spec.net.get("remat") is False:
        recomputing = count_operations(changed(config, "net.remat", True))
        rows.append({"option": "--config.net.remat=True", "memory": None, "operations": recomputing})
    return rows


def what_fits(run: Run, memory: Memory, shapes: Shapes, mesh: Mesh) -> str:
    """Find the least change of fsdp and gradient accumulation that is estimated to fit. Returns: a sentence.

    A compiler that refuses a program has already shrunk it by recomputation, which it avoids for one that fits: the
    estimate may then be half of what is needed.
    """
    room = (memory.available or 0) / (2 if memory.refused else 1)
    fsdps = [run.fsdp, *(fsdp for fsdp in _fsdps(mesh.size) if fsdp > run.fsdp)]
    choices = [(fsdp, parts) for fsdp in fsdps for parts in _parts(run, mesh.size)][1:]
    for fsdp, parts in sorted(choices, key=lambda choice: (choice[0] * choice[1], choice[0])):
        total = _estimate(run, memory, shapes, mesh, fsdp=fsdp, parts=parts)
        if total <= room:
            options = [f"--config.mesh.fsdp={fsdp}"] if fsdp != run.fsdp else []
            options += [f"--config.grad_accumulation={parts}"] if parts != run.grad_accumulation else []
            return f"by estimate {' '.join(options)} makes it fit, {total / 2**30:.2f} GiB or more: plan that"
    return "no fsdp and no gradient accumulation makes it fit by estimate: try --config.net.remat=True or more devices"


def _estimate(
    run: Run,
    memory: Memory,
    shapes: Shapes,
    mesh: Mesh,
    *,
    fsdp: int | None = None,
    parts: int | None = None,
    fraction: float = 1.0,
) -> int:
    """Estimate the total: exact for state and frozen parameters; activations in proportion to the samples at once."""
    fsdp, parts = fsdp or run.fsdp, parts or run.grad_accumulation
    split = make_mesh(fsdp=fsdp, devices=list(mesh.devices.flat))
    state, frozen, batch = argument_bytes(run, shapes, split)
    params = shapes["state"].params
    gradients = bytes_per_device(params, parameter_shardings(params, mesh))
    ours = bytes_per_device(params, parameter_shardings(params, split))
    activations = max(memory.temporaries - gradients, 0) * fraction * run.grad_accumulation / parts
    accumulated = ours if parts > 1 and run.grad_accumulation == 1 else 0
    return round(state + frozen + batch * fraction + memory.other + memory.code + ours + accumulated + activations)


def _fsdps(devices: int) -> list[int]:
    """Values of fsdp to try."""
    return [fsdp for fsdp in (1, 2, 4, 8, 16, 32, 64, 128, 256) if fsdp <= devices and devices % fsdp == 0]


def _parts(run: Run, devices: int) -> list[int]:
    """Values of grad_accumulation, from the present one on, that divide the batch over the devices."""
    return [
        parts
        for parts in range(run.grad_accumulation, run.batch_size // devices + 1)
        if run.batch_size % (parts * devices) == 0
    ]
