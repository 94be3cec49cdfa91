"""Writes the records of a training: `metrics.jsonl`, the source of truth, and its mirrors TensorBoard and W&B."""

import contextlib
import io
import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from cmjax.system.errors import UserError
from cmjax.system.files import is_bucket, read_json_lines, to_path, write_atomically
from cmjax.system.libraries import how_to_install, is_installed
from cmjax.system.processes import on_first_process

log = logging.getLogger(__name__)

WANDB_ID = "wandb-id"
"""The file of a run's folder that holds its id at Weights & Biases, under which it resumes."""
REWRITE_SECONDS = 30.0


class MirrorError(UserError, RuntimeError):
    """Weights & Biases does not start."""


@dataclass(frozen=True)
class Results:
    """Holds what was made of a run's parameters at a step: metrics by name, and images, PNG files, by name."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)


class Mirror(Protocol):
    """Takes what TensorBoard or Weights & Biases shows of a step. images: name -> the bytes of a PNG."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def write_images(self, step: int, images: Mapping[str, bytes]) -> None: ...


class MetricsWriter:
    """Appends lines {"step": k, name: value, …} to `metrics.jsonl`, and mirrors them to TensorBoard and W&B."""

    def __init__(self, workdir: str | Path, *, resume_step: int, tensorboard: bool, wandb: bool, config: Mapping):
        """Drop the records of steps after `resume_step`, which a killed run left: each step is recorded once.

        Raises: MirrorError where Weights & Biases does not start, as without a login.
        """
        path = to_path(workdir) / "metrics.jsonl"
        if path.exists():
            # a torn last line, as a kill leaves, is no record either
            kept = [record for record in read_json_lines(path) if record["step"] <= resume_step]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = _BucketRecords(path) if is_bucket(path) else _DiskRecords(path)
        self._mirrors: list[Mirror] = []
        self._open = contextlib.ExitStack()
        self._open.callback(self._file.close)
        if tensorboard and is_bucket(path):
            log.info("no TensorBoard files: they are written on disks alone; metrics.jsonl has the same numbers")
        elif tensorboard and is_installed("tensorboardX"):
            from cmjax.training.tensorboard import EventFiles

            files = EventFiles(workdir, resume_step=resume_step)
            self._mirrors.append(files)
            self._open.callback(files.close)
        elif tensorboard:
            log.info("no TensorBoard files: they need tensorboardX: %s", how_to_install("tensorboardX"))
        if wandb:
            self._add_wandb(workdir, config, resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for mirror in self._mirrors:
            mirror.write(step, values)

    def mirror(self, step: int, results: Results) -> None:
        """Send results to TensorBoard and W&B alone. An image that cannot be read is left out."""
        if not self._mirrors:
            return
        images: dict[str, bytes] = {}
        for name, path in results.images.items():
            try:
                images[name] = path.read_bytes()
            except OSError as error:
                log.warning("%s is not sent to TensorBoard and W&B: %s", path, error.strerror or error)
        for mirror in self._mirrors:
            mirror.write(step, results.metrics)
            mirror.write_images(step, images)

    def flush(self) -> None:
        """Write all records to where they survive a kill."""
        self._file.flush()

    def close(self) -> None:
        self._open.close()

    def _add_wandb(self, workdir: str | Path, config: Mapping, resume_step: int) -> None:
        import wandb

        try:
            id_file, folder = to_path(workdir) / WANDB_ID, None if is_bucket(workdir) else str(workdir)
            if not resume_step or not id_file.exists():  # a training from step 0 is another run there
                write_atomically(id_file, uuid.uuid4().hex[:12])
            about = {"dir": folder, "name": to_path(workdir).name, "config": dict(config)}
            # "allow" goes on with the run of this id where there is one, and otherwise begins it
            run = wandb.init(project="cmjax", id=id_file.read_text().strip(), resume="allow", **about)
        except Exception as error:  # of a login, a key, a mode or the network
            # the records and TensorBoard's files are open by now, and nobody will have this writer to close it
            self.close()
            raise MirrorError(
                "config.log.wandb=True: Weights & Biases does not start: "
                f"{' '.join(str(error).split())[:300]}; log in by `wandb login`, keep its files here by "
                "WANDB_MODE=offline, or set it to False"
            ) from error
        self._mirrors.append(_WandbRun(run))
        self._open.callback(run.finish)


def open_writer(workdir: Path, **arguments: Any) -> contextlib.AbstractContextManager[MetricsWriter | None]:
    """Open a `MetricsWriter` with these arguments in the first process; None in the others. Every process must call it.

    Raises: MirrorError, as `MetricsWriter`.
    """
    opened: list[MetricsWriter] = []
    # through a list, as results go to all processes as JSON, which cannot hold a writer
    on_first_process(lambda: opened.append(MetricsWriter(workdir, **arguments)))
    return contextlib.closing(opened[0]) if opened else contextlib.nullcontext()


def mirror(writer: MetricsWriter | None, step: int, results: Results) -> None:
    """Send results to TensorBoard and W&B, where there is a writer: in the first process."""
    if writer:
        writer.mirror(step, results)


class _WandbRun:
    """Logs to a run at Weights & Biases."""

    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        import wandb

        self._run.log({name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in images.items()}, step=step)


class _DiskRecords:
    """Appends lines to a file. Lines that a full disk refuses wait until it has room."""

    def __init__(self, path: Path):
        # unbuffered: a line that is written is the system's, and a kill does not lose it
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting, self._failed = b"", False

    def write(self, line: str) -> None:
        self._waiting += line.encode()
        self.flush()

    def flush(self) -> None:
        try:
            # a write may take a part of the bytes, on a disk that is nearly full
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
    """Keeps the lines of an object in a bucket. Objects cannot be appended to: it is rewritten now and then."""

    def __init__(self, path: Path):
        self._path, self._text = path, path.read_text() if path.exists() else ""
        self._written = time.monotonic()

    def write(self, line: str) -> None:
        self._text += line
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._path.write_text(self._text)
        self._written = time.monotonic()

    # an object is written whole each time, and is never open
    close = flush
