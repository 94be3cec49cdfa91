"""Checkpoints by Orbax: saved in the background, atomic, with checksums, restored from the newest that is whole.

A step's folder holds three items: `params`, `averages` (by name) and `optimizer` (the rest of the state), so that a
sampler reads the averages alone.
"""

import contextlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from cmjax.core.typing import Params
from cmjax.files import to_json, write_atomically
from cmjax.training.optimizer import AveragesState
from cmjax.training.state import TrainState

CHECKSUMS = "checksums.json"
log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be read, or not be saved; the message names the folder and what to do."""


class Checkpointer:
    """The checkpoints of one run's folder. A context manager: leaving it waits for saves under way."""

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every: int | None = None):
        """Args: keep: how many of the newest to keep. keep_every: multiples of this step are kept for good."""
        self.folder = Path(folder).absolute()
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
        if jax.process_index() == 0:
            self._pending = self._checksum_worker.submit(
                _write_checksums_once_committed, self.folder / str(step), self._gave_up
            )

    def wait(self) -> None:
        """Return when every save is on disk, its checksums included."""
        with self._clear_errors():
            self._manager.wait_until_finished()
            if self._pending is not None:
                self._pending.result()

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, in the layout of `state` (arrays or shapes with shardings); None in an
        empty folder. Damaged ones are put aside as `damaged-<step>`, with a warning.

        Raises: CheckpointError where there are checkpoints but none is whole.
        """
        items = {name: ocp.args.StandardRestore(item) for name, item in _items(state).items()}

        def read(step: int) -> TrainState:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            return _join(state, {name: restored[name] for name in items})

        return _newest_readable(self.folder, self._manager.all_steps(), read, on_damaged=self._put_aside)

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
        if jax.process_index() == 0:
            os.replace(self.folder / str(step), self.folder / f"damaged-{step}")
        self._manager.reload()


def save_average(folder: str | Path, params: Params, name: str) -> None:
    """Write a checkpoint of step 0 that holds one average alone, for `restore_average`. `folder` must be empty."""
    step_folder = Path(folder).absolute() / "0"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(step_folder / "averages", {name: params})
    _write_checksums(step_folder)


def restore_average(folder: str | Path, like: Params, name: str, *, step: int | None = None) -> Params:
    """One average of the parameters, from the newest whole checkpoint in `folder` or from that of `step`; nothing else
    is read.

    Args:   like: its shapes. The arrays come to this process's first device.
    Raises: CheckpointError where there is none.
    """
    folder = Path(folder).absolute()
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if step is not None:
        steps = [s for s in steps if s == step]
    device = SingleDeviceSharding(jax.local_devices()[0])
    target = {name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like)}

    def read(step: int) -> Params:
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder / str(step) / "averages", args=arguments)[name]

    restored = _newest_readable(folder, steps, read, on_damaged=lambda step: None)
    if restored is None:
        raise CheckpointError(f"no checkpoint{'' if step is None else f' of step {step}'} in {folder}")
    return restored


def _items(state: TrainState) -> dict[str, Any]:
    *rest, last = state.opt_state
    optimizer = {"step": state.step, "count": last.count, "rest": tuple(rest)}
    return {"params": state.params, "averages": last.averages, "optimizer": optimizer}


def _join(like: TrainState, items: dict[str, Any]) -> TrainState:
    optimizer = items["optimizer"]
    rest = jax.tree.unflatten(jax.tree.structure(tuple(like.opt_state[:-1])), jax.tree.leaves(optimizer["rest"]))
    last = AveragesState(optimizer["count"], items["averages"])
    return TrainState(step=optimizer["step"], params=items["params"], opt_state=(*rest, last), finite=like.finite)


def _newest_readable(folder: Path, steps: Any, read: Callable[[int], Any], *, on_damaged: Callable[[int], None]) -> Any:
    damaged = []
    for step in sorted(steps, reverse=True):
        try:
            _verify_checksums(folder / str(step))
            restored = read(step)
        except Exception as error:  # Orbax raises many kinds for what is unreadable
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            log.warning("checkpoint %s cannot be read (%s); trying the one before", folder / str(step), reason)
            damaged.append(step)
        else:
            for step in damaged:
                on_damaged(step)
            return restored
    if damaged:
        raise CheckpointError(
            f"none of the checkpoints {damaged} in {folder} can be read; restore the folder from a copy, or "
            "remove it to start again from step 0"
        )
    return None


def _files(step_folder: Path) -> list[Path]:
    return sorted(p for p in step_folder.rglob("*") if p.is_file() and CHECKSUMS not in p.name)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _write_checksums_once_committed(step_folder: Path, gave_up: threading.Event) -> None:
    """Orbax commits by renaming a finished folder to `step_folder`: once that exists, its files are complete."""
    while not step_folder.is_dir():
        if gave_up.wait(0.02):
            return
    _write_checksums(step_folder)


def _write_checksums(step_folder: Path) -> None:
    checksums = {str(path.relative_to(step_folder)): _crc32(path) for path in _files(step_folder)}
    write_atomically(step_folder / CHECKSUMS, to_json(checksums))


def _verify_checksums(step_folder: Path) -> None:
    """Orbax restores flipped bits silently. A checkpoint whose checksums were never written (the process was killed
    just after the commit) is read without this check."""
    recorded = step_folder / CHECKSUMS
    if not recorded.exists():
        return
    for name, expected in json.loads(recorded.read_text()).items():
        path = step_folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if _crc32(path) != expected:
            raise ValueError(f"{name} has changed since it was written")
