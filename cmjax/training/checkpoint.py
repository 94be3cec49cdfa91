"""Checkpoints by Orbax: saved in the background, atomic, with checksums, restored from the newest that is whole.

A step's folder holds three items: `params`, `averages` (by name) and `optimizer` (the rest of the state), so that a
sampler reads the averages alone.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from cmjax.core.typing import Params
from cmjax.files import absolute, is_bucket, to_path, write_atomically
from cmjax.machine.mesh import move, parameter_shardings, reading_shardings, shapes_on
from cmjax.machine.processes import all_agree, first_does, is_first
from cmjax.training.checksums import verify_checksums, write_checksums, write_checksums_once_committed
from cmjax.training.optimizer import AveragesState
from cmjax.training.state import TrainState

COMMITTED = "commit_success.txt"
"""Orbax's mark of a checkpoint in a bucket that is whole."""

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be read, or not be saved; the message names the folder and what to do."""


class Checkpointer:
    """The checkpoints of one run's folder. A context manager: leaving it waits for saves under way."""

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every: int | None = None):
        """Args: keep: how many of the newest to keep. keep_every: multiples of this step are kept for good."""
        self.folder = absolute(to_path(folder))
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept)),
        )
        self._checksum_worker = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._pending: Future | None = None
        self._gave_up = threading.Event()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.wait()
            self._manager.close()
        finally:
            self._gave_up.set()
            self._checksum_worker.shutdown()

    def save(self, state: TrainState, step: int) -> None:
        """Copy the state from the devices and write it in the background. A step already saved is left as it is."""
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        with self._clear_errors():
            self._manager.save(step, args=ocp.args.Composite(**items))
        if is_first() and not is_bucket(self.folder):
            self._pending = self._checksum_worker.submit(
                write_checksums_once_committed, self.folder / str(step), self._gave_up
            )

    def wait(self) -> None:
        """Return when every save is on disk, its checksums included."""
        with self._clear_errors():
            self._manager.wait_until_finished()
            if self._pending is not None:
                self._pending.result()

    def restore(self, like: TrainState, mesh: Mesh) -> TrainState | None:
        """The newest checkpoint that is whole, laid over the mesh; None in an empty folder. Damaged ones are put aside
        as `damaged-<step>`, with a warning. Every process must call it; the first decides which checkpoint it is.

        Args:   like: the state's shapes.
        Raises: CheckpointError where there are checkpoints but none is whole.
        """
        target = shapes_on(like, reading_shardings(like, mesh))
        items = {name: ocp.args.StandardRestore(item) for name, item in _items(target).items()}

        def read(step: int) -> TrainState:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            return move(_join(like, {name: restored[name] for name in items}), parameter_shardings(like, mesh))

        return _newest_readable(self.folder, self._manager.all_steps, read, on_damaged=self._put_aside)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Orbax reports a failed write, of a full disk for one, from whichever call comes next."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            self._gave_up.set()
            reason = str(error).splitlines()[0][:300]
            raise CheckpointError(
                f"a checkpoint could not be saved in {self.folder}: {reason}. Those saved before are whole; make room "
                "and start again with the same command"
            ) from error

    def _put_aside(self, step: int) -> None:
        if is_bucket(self.folder):
            log.warning("remove %s: a bucket's folders cannot be renamed", self.folder / str(step))
            return
        first_does(lambda: os.replace(self.folder / str(step), self.folder / f"damaged-{step}"))
        self._manager.reload()


def save_average(folder: str | Path, params: Params, name: str) -> None:
    """Write a checkpoint of step 0 that holds one average alone, for `restore_average`. `folder` must be empty."""
    step_folder = absolute(to_path(folder)) / "0"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(step_folder / "averages", {name: params})
    if is_bucket(step_folder):
        write_atomically(step_folder / COMMITTED, "")
    else:
        write_checksums(step_folder)


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that were saved whole: Orbax then renames its folder, or writes a mark
    into it in a bucket."""
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return [int(path.name) for path in found if not is_bucket(folder) or (path / COMMITTED).exists()]


def restore_average(
    folder: str | Path, like: Params, name: str, *, step: int | None = None, mesh: Mesh | None = None
) -> Params:
    """One average of the parameters, from the newest whole checkpoint in `folder` or from that of `step`; nothing else
    is read.

    Args:   like: its shapes. mesh: of all processes, over which the arrays are laid as the train step has them, and
            every process must call; without, they come to this process's first device.
    Raises: CheckpointError where there is none.
    """
    folder = absolute(to_path(folder))
    device = SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: device, like) if mesh is None else reading_shardings(like, mesh)
    target = {name: shapes_on(like, shardings)}

    def steps() -> list[int]:
        found = saved_steps(folder)
        return found if step is None else [s for s in found if s == step]

    def read(step: int) -> Params:
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder / str(step) / "averages", args=arguments)[name]

    restored = _newest_readable(folder, steps, read, alone=mesh is None)
    if restored is None:
        raise CheckpointError(f"no checkpoint{'' if step is None else f' of step {step}'} in {folder}")
    return restored if mesh is None else move(restored, parameter_shardings(like, mesh))


def _items(state: TrainState) -> dict[str, Any]:
    *rest, last = state.opt_state
    optimizer = {"step": state.step, "count": last.count, "rest": tuple(rest)}
    return {"params": state.params, "averages": last.averages, "optimizer": optimizer}


def _join(like: TrainState, items: dict[str, Any]) -> TrainState:
    optimizer = items["optimizer"]
    rest = jax.tree.unflatten(jax.tree.structure(tuple(like.opt_state[:-1])), jax.tree.leaves(optimizer["rest"]))
    last = AveragesState(optimizer["count"], items["averages"])
    return TrainState(
        step=optimizer["step"], params=items["params"], opt_state=(*rest, last), finite=jnp.ones((), bool)
    )


def _newest_readable(
    folder: Path,
    list_steps: Callable[[], Iterable[int]],
    read: Callable[[int], Any],
    *,
    alone: bool = False,
    on_damaged: Callable[[int], None] = lambda step: None,
) -> Any:
    """What `read` gives of the newest step that is whole, None where there are no steps.

    The first process lists the steps and checks them, so that all read the same one. `alone`: this process reads by
    itself, whatever the others do.
    """
    ask = (lambda action: action()) if alone else first_does
    damaged = []
    for step in ask(lambda: sorted((int(step) for step in list_steps()), reverse=True)):
        problem = ask(lambda step=step: _damage(folder / str(step)))
        restored = None
        if problem is None:
            try:
                restored = read(step)
            except Exception as error:  # Orbax raises many kinds for what is unreadable
                problem = _in_a_line(error)
        if problem is None if alone else all_agree(problem is None):
            for step in damaged:
                on_damaged(step)
            return restored
        problem = problem or "another process could not"
        log.warning("checkpoint %s cannot be read (%s); trying the one before", folder / str(step), problem)
        damaged.append(step)
    if damaged:
        raise CheckpointError(
            f"none of the checkpoints {damaged} in {folder} can be read; restore the folder from a copy, or "
            "remove it to start again from step 0"
        )
    return None


def _damage(step_folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where nothing is."""
    try:
        verify_checksums(step_folder)
    except (OSError, ValueError) as error:
        return _in_a_line(error)
    return None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
