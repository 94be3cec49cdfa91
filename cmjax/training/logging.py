"""Writes the records of a training: `metrics.jsonl`, the source of truth, and its mirrors TensorBoard and W&B."""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmjax.system.errors import UserError
from cmjax.system.files import is_bucket, to_path, write_atomically
from cmjax.system.libraries import how_to_install, is_installed
from cmjax.system.processes import on_first_process

log = logging.getLogger(__name__)

WANDB_ID = "wandb-id"
"""The file of a run's folder that holds its id at Weights & Biases, under which it resumes."""


class MirrorError(UserError, RuntimeError):
    """Weights & Biases does not start."""


class MetricsWriter:
    """Appends lines {"step": k, name: value, …} to `metrics.jsonl`, and mirrors them to TensorBoard and W&B."""

    def __init__(self, workdir: str | Path, *, resume_step: int, tensorboard: bool, wandb: bool, config: Mapping):
        """Drop the records of steps after `resume_step`, which a killed run left: each step is recorded once.

        Raises: MirrorError where Weights & Biases does not start, as without a login.
        """
        path = to_path(workdir) / "metrics.jsonl"
        if path.exists():
            _drop_records_after(path, resume_step)
        self._file = _BucketRecords(path) if is_bucket(path) else _DiskRecords(path)
        self._mirrors: list[Callable[[int, Mapping[str, float]], Any]] = []
        self._closers: list[Callable[[], None]] = [self._file.close]
        if tensorboard and is_bucket(path):
            log.info("no TensorBoard files: they are written on disks alone; metrics.jsonl has the same numbers")
        elif tensorboard and is_installed("tensorboardX"):
            self._add_tensorboard(workdir, resume_step)
        elif tensorboard:
            log.info("no TensorBoard files: they need tensorboardX: %s", how_to_install("tensorboardX"))
        if wandb:
            self._add_wandb(workdir, config, resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for mirror in self._mirrors:
            mirror(step, values)

    def flush(self) -> None:
        """Write all records to where they survive a kill."""
        self._file.flush()

    def close(self) -> None:
        for close in self._closers:
            close()

    def _add_tensorboard(self, workdir: str | Path, resume_step: int) -> None:
        from cmjax.training.tensorboard import EventFiles

        files = EventFiles(workdir, resume_step=resume_step)
        self._mirrors.append(files.write)
        self._closers.append(files.close)

    def _add_wandb(self, workdir: str | Path, config: Mapping, resume_step: int) -> None:
        import wandb

        try:
            run = wandb.init(
                project="cmjax",
                dir=None if is_bucket(workdir) else str(workdir),
                name=to_path(workdir).name,
                config=dict(config),
                id=_wandb_id(to_path(workdir) / WANDB_ID, resume_step),
                resume="allow",
            )
        except Exception as error:  # of a login, a key, a mode or the network
            self.close()
            raise MirrorError(
                "config.log.wandb=True: Weights & Biases does not start: "
                f"{' '.join(str(error).split())[:300]}; log in by `wandb login`, keep its files here by "
                "WANDB_MODE=offline, or set it to False"
            ) from error
        self._mirrors.append(lambda step, values: run.log(dict(values), step=step))
        self._closers.append(run.finish)


def _wandb_id(path: Path, resume_step: int) -> str:
    """Read the run's id from its folder; a training from step 0 gets a new one."""
    if resume_step and path.exists():
        return path.read_text().strip()
    write_atomically(path, new := uuid.uuid4().hex[:12])
    return new


@contextlib.contextmanager
def open_writer(workdir: Path, **arguments: Any) -> Iterator[MetricsWriter | None]:
    """Open a `MetricsWriter` with these arguments in the first process; None in the others. Every process must call it.

    Raises: MirrorError, as `MetricsWriter`.
    """
    opened: list[MetricsWriter] = []
    on_first_process(lambda: opened.append(MetricsWriter(workdir, **arguments)))
    with contextlib.closing(opened[0]) if opened else contextlib.nullcontext():
        yield opened[0] if opened else None


class _DiskRecords:
    """Appends lines to a file. Lines that a full disk refuses wait until it has room."""

    def __init__(self, path: Path):
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting = b""
        self._failed = False

    def write(self, line: str) -> None:
        self._waiting += line.encode()
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written: %s; the records wait until it can", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        self.flush()
        self._file.close()


class _BucketRecords:
    """Keeps the lines of an object in a bucket. Objects cannot be appended to: it is rewritten every `every_s`."""

    def __init__(self, path: Path, *, every_s: float = 30.0):
        self._path, self._every_s = path, every_s
        self._text = path.read_text() if path.exists() else ""
        self._written = time.monotonic()

    def write(self, line: str) -> None:
        self._text += line
        if time.monotonic() - self._written > self._every_s:
            self.flush()

    def flush(self) -> None:
        self._path.write_text(self._text)
        self._written = time.monotonic()

    close = flush


def _drop_records_after(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept))
