"""What a run says: `metrics.jsonl` (the source of truth), its mirrors, and progress on the terminal."""

import contextlib
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmjax.files import is_bucket, to_path, write_atomically

log = logging.getLogger(__name__)

Update = Callable[[int, str], None]
"""(done, text): how far the work is, and a few words beside the bar."""


class MetricsWriter:
    """Appends {"step": k, name: value, …} lines to `metrics.jsonl`; TensorBoard and W&B mirror them where asked."""

    def __init__(self, workdir: str | Path, *, resume_step: int, tensorboard: bool, wandb: bool, config: Mapping):
        """Records of steps after `resume_step`, left by a run that was killed, are dropped: each step stands once."""
        path = to_path(workdir) / "metrics.jsonl"
        if path.exists():
            _drop_records_after(path, resume_step)
        self._file = _BucketRecords(path) if is_bucket(path) else _DiskRecords(path)
        self._mirrors: list[Callable[[int, Mapping[str, float]], Any]] = []
        self._closers: list[Callable[[], None]] = [self._file.close]
        if tensorboard and is_bucket(path):
            log.info("no TensorBoard files: they are written on disks alone; metrics.jsonl has the same numbers")
        elif tensorboard and importlib.util.find_spec("tensorboardX"):
            self._add_tensorboard(workdir, resume_step)
        if wandb:
            self._add_wandb(workdir, config)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for mirror in self._mirrors:
            mirror(step, values)

    def flush(self) -> None:
        """Return when all records are where a kill does not reach them."""
        self._file.flush()

    def close(self) -> None:
        for close in self._closers:
            close()

    def _add_tensorboard(self, workdir: str | Path, resume_step: int) -> None:
        from cmjax.training.tensorboard import EventFiles

        files = EventFiles(workdir, resume_step=resume_step)
        self._mirrors.append(files.write)
        self._closers.append(files.close)

    def _add_wandb(self, workdir: str | Path, config: Mapping) -> None:
        import wandb

        run = wandb.init(
            project="cmjax",
            dir=None if is_bucket(workdir) else str(workdir),
            name=to_path(workdir).name,
            config=dict(config),
            resume="allow",
        )
        self._mirrors.append(lambda step, values: run.log(dict(values), step=step))
        self._closers.append(run.finish)


class _DiskRecords:
    """Lines at the end of a file. What a full disk does not take waits until it does."""

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
    """The lines of an object. A bucket cannot add to one: it is written anew, now and then."""

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


@contextlib.contextmanager
def progress(description: str, total: int, *, start: int = 0, every_s: float = 10.0) -> Iterator[Update]:
    """A bar with the time left on a terminal, a line every `every_s` seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(description, total, start) as update:
            yield update
        return
    began = last = time.monotonic()

    def say_now_and_then(done: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every_s:
            return
        last = now
        left = (now - began) * (total - done) / max(done - start, 1)
        log.info("%s %d/%d (%.0f%%), %s left  %s", description, done, total, 100 * done / total, _clock(left), text)

    yield say_now_and_then


@contextlib.contextmanager
def _bar(description: str, total: int, start: int) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, completed=start, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
