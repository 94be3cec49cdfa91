"""Saves checkpoints with Orbax, in the background, atomic and with checksums; restores the newest that is whole.

A step's folder holds three items: `params`, `averages` (by name) and `optimizer` (the rest of the state), so that a
sampler reads the averages alone.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from cmjax.core.typing import Params
from cmjax.system.files import absolute, is_bucket, remove_folder, to_path
from cmjax.system.mesh import move, parameter_shardings, shapes_on
from cmjax.system.processes import all_agree, on_first_process
from cmjax.training.optimizer import AveragesState
from cmjax.training.saved import CheckpointError, newest_readable, saved_steps, why_failed, write_checksums
from cmjax.training.state import TrainState

UNFINISHED = ".orbax-checkpoint-tmp"
"""A part of the name of a checkpoint's folder on a disk until it is whole."""
EVERY_DEVICE = ("data", "fsdp")
"""Axes over which arrays are split while they are read: each process reads its own part of a file, and `move` then
lays the arrays as they are used."""

log = logging.getLogger(__name__)


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores the checkpoints of one run. A context manager: leaving it waits for saves under way.

    A save that fails, as on a full disk, logs a warning, and the next one tries again. Only for the last save a failure
    is an error.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every: int | None = None):
        """Args: keep: how many of the newest to keep. keep_every: multiples of this step are kept for good."""
        # Orbax takes absolute paths alone
        self.folder = absolute(to_path(folder))
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        self._manager = self._make_manager()
        self._under_way: int | None = None
        self._problem: str | None = None

    def __exit__(self, *_: Any) -> None:
        try:
            self.wait()
        finally:
            # closing raises the error of a failed save once more, which `wait` has reported
            why_failed(self._manager.close)

    def save(self, state: TrainState, step: int) -> None:
        """Copy the state from the devices and write it in the background; a step that is saved stays as it is. A
        failure logs a warning at the next call."""
        self._settle()
        if self._problem is not None:
            # TensorStore went on writing for a moment after the save failed
            on_first_process(lambda: _remove_unfinished(self.folder))
            self._problem = None
        # Orbax raises an error for a step that is there
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        self._under_way = step
        self._problem = why_failed(lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

    def wait(self) -> None:
        """Wait until every save is on disk, its checksums included.

        Raises: CheckpointError where the last one failed.
        """
        self._settle()
        if self._problem is not None:
            raise CheckpointError(
                f"a checkpoint could not be saved in {self.folder}: {self._problem}. Those saved before are whole; "
                "make room and start again with the same command"
            )

    def _settle(self) -> None:
        """Wait for the save under way; log a warning if it failed."""
        if self._under_way is None:
            return
        problem = self._problem or why_failed(self._manager.wait_until_finished)
        step, self._under_way = self._under_way, None
        # a checkpoint is whole only if every process wrote its part of it
        if not all_agree(problem is None):
            self._problem = problem or "another process could not save its part"
            log.warning("checkpoint %s could not be saved: %s", self.folder / str(step), self._problem)
            why_failed(self._manager.close)
            self._manager = self._make_manager()  # one whose save failed reports it at every call

    def _make_manager(self) -> ocp.CheckpointManager:
        on_first_process(lambda: _remove_unfinished(self.folder))
        return ocp.CheckpointManager(self.folder, options=self._options)

    def _write_checksums(self) -> None:
        """Called by Orbax in the first process, when all is written and before the folder has its final name."""
        written = self.folder / f"{self._under_way}{UNFINISHED}"
        if not is_bucket(self.folder) and (problem := why_failed(lambda: write_checksums(written))):
            log.warning("checkpoint %s is saved without checksums: %s", self.folder / str(self._under_way), problem)

    def restore(self, like: TrainState, mesh: Mesh) -> TrainState | None:
        """Restore the newest checkpoint that is whole, laid over the mesh; None in an empty folder. Damaged ones are
        renamed to `damaged-<step>`, with a warning. Every process must call it; the first chooses the checkpoint.

        Args:   like: the state's shapes.
        Raises: CheckpointError where there are checkpoints but none is whole.
        """
        target = shapes_on(like, parameter_shardings(like, mesh, over=EVERY_DEVICE))
        items = {name: ocp.args.StandardRestore(item) for name, item in _items(target).items()}

        # the step is an argument: where the newest is damaged, `newest_readable` calls again with the one before
        def read(step: int) -> TrainState:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            return move(_join(like, {name: restored[name] for name in items}), parameter_shardings(like, mesh))

        return newest_readable(
            self.folder, self._manager.all_steps, read, on_damaged=lambda step: self.quarantine(step, "damaged")
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return max(self._manager.all_steps(), default=None)

    def quarantine(self, step: int, what: str) -> None:
        """Rename a checkpoint to `<what>-<step>`, so that no run resumes from it. Every process must call it."""
        if is_bucket(self.folder):
            log.warning("remove %s: a bucket's folders cannot be renamed", self.folder / str(step))
            return
        on_first_process(lambda: os.replace(self.folder / str(step), self.folder / f"{what}-{step}"))
        # Orbax lists the folder once and remembers the steps
        self._manager.reload()


def _remove_unfinished(folder: Path) -> None:
    """Remove the saves that a kill or a full disk cut short."""
    whole = saved_steps(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        # a bucket has no rename: there a save that was cut short has the name of a whole one
        if UNFINISHED in path.name or (path.name.isdigit() and int(path.name) not in whole):
            remove_folder(path)


def read_average(step_folder: Path, like: Params, name: str, mesh: Mesh | None) -> Params:
    """Read one average of a checkpoint, as `restore_average`. like: its shapes."""
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, like)
    else:
        shardings = parameter_shardings(like, mesh, over=EVERY_DEVICE)
    target = {name: shapes_on(like, shardings)}
    # partial: the checkpoint holds other averages, which are not read
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    arguments = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(step_folder / "averages", args=arguments)[name]
    return restored if mesh is None else move(restored, parameter_shardings(like, mesh))


# the averages are the last member of the chain (`make_optimizer`), and here an item that samplers read alone
def _items(state: TrainState) -> dict[str, Any]:
    *rest, last = state.opt_state
    optimizer = {"step": state.step, "count": last.count, "rest": tuple(rest)}
    return {"params": state.params, "averages": last.averages, "optimizer": optimizer}


def _join(like: TrainState, items: dict[str, Any]) -> TrainState:
    optimizer = items["optimizer"]
    # Orbax gives NamedTuples back as dicts
    rest = jax.tree.unflatten(jax.tree.structure(tuple(like.opt_state[:-1])), jax.tree.leaves(optimizer["rest"]))
    opt_state = (*rest, AveragesState(optimizer["count"], items["averages"]))
    # `finite` is not saved: the loop saves no state whose loss was not finite
    return TrainState(step=optimizer["step"], params=items["params"], opt_state=opt_state, finite=jnp.ones((), bool))
