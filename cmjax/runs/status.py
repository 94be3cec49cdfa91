"""A run's status, read from the files of its folder: what it is, where it stands and how fast it goes."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmjax.config.description import Description, describe
from cmjax.runs.classes import are_names, in_words
from cmjax.runs.history import of_state, totals
from cmjax.runs.workdir import Workdir
from cmjax.system.files import changed_at, read_json
from cmjax.system.lock import SILENT_SECONDS, is_alive, this_place

RECENT = 10
"""The number of records whose mean is the speed."""

Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Status:
    """Holds the state of a run.

    record: of `config.json`. records: of `metrics.jsonl`. age: seconds since the run last wrote. mark: of the process
    that runs in the folder, or ran there when it died; alive: whether it still runs. summary: of the newest training
    that ended, or {}. saved: steps of the whole checkpoints, ascending. starts: lines of the history.
    """

    record: Mapping[str, Any]
    records: list[dict[str, Any]]
    age: float
    mark: Mapping[str, Any] | None
    alive: bool
    summary: Mapping[str, Any]
    saved: list[int]
    starts: list[dict[str, Any]]

    @property
    def description(self) -> Description:
        return describe(self.record["config"])

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.description.steps

    @property
    def step(self) -> int:
        """The step that the training has reached."""
        # whichever is newer: a run may be killed between a save and its next record
        return max([0, *self.saved[-1:], *(record["step"] for record in self.records[-1:])])

    @property
    def step_seconds(self) -> float | None:
        """The mean of the newest records; None without any."""
        recent = [record["step_seconds"] for record in self.records[-RECENT:] if "step_seconds" in record]
        return sum(recent) / len(recent) if recent else None

    @property
    def finished(self) -> bool:
        """Says whether the training ended with its summary."""
        return self.summary.get("steps", 0) >= self.total and self.summary.get("finished", True)


def read_status(workdir: Path, record: Mapping[str, Any] | None = None) -> Status:
    """Read the status of the run in a folder. record: of the run, where it was read already.

    Raises: ConfigError where it is no run's folder.
    """
    run = Workdir(workdir)
    record = run.read_record() if record is None else record
    mark = read_json(run.mark) or None
    written = [changed_at(path) for path in (run.record, run.metrics, run.summary) if path.exists()]
    if mark and mark.get("place") == this_place():
        alive = is_alive(mark)
    else:  # on another machine: its last touch of the mark decides, by the disk's clock
        alive = mark is not None and time.time() - changed_at(run.mark) < SILENT_SECONDS
    return Status(
        record=record,
        records=run.read_metrics(),
        age=time.time() - max(written),
        mark=mark,
        alive=alive,
        summary=run.read_summary(),
        saved=run.steps,
        starts=run.read_history(),
    )


def ago(age: float) -> str:
    """Write an age in seconds for a reader of today: `3 min 5 s ago`."""
    return f"{duration(age)} ago"


def at(age: float) -> str:
    """Write the time that was so many seconds ago, for a document: `on 2026-11-30 at 12:34 UTC`."""
    return f"{datetime.fromtimestamp(time.time() - age, UTC):on %Y-%m-%d at %H:%M UTC}"


def rows_of(workdir: Path, status: Status, when: Callable[[float], str] = ago) -> list[tuple[str, str]]:
    """Describe the run, its progress and its speed, as (name, text). when: `ago` or `at`."""
    if imported := status.record.get("imported"):
        origin = f"from {imported['from']} (licence: {imported['licence']}); no training here"
        return [*_made_with(workdir, status), ("weights", origin)]
    return [*_made_with(workdir, status), *_progress(status, when), *_time(status), *_speed(status)]


def _made_with(workdir: Path, status: Status) -> Rows:
    record, description = status.record, status.description
    name = record.get("recipe") or workdir.name
    count = f", {status.summary['parameters']:,} parameters" if "parameters" in status.summary else ""
    yield "run", f"{name}: {description.method}, network {description.network}{count}"
    classes = f", {record['num_classes']} classes" if record["num_classes"] else ""
    yield "data", f"{description.data}, {'x'.join(map(str, record['shape']))}{classes}"
    if (names := record.get("class_names")) and are_names(names):
        yield "classes", in_words(names)
    if description.teacher:
        yield "teacher", description.teacher


def _progress(status: Status, when: Callable[[float], str]) -> Rows:
    yield "state", _state(status, when(status.age))
    if not status.step:
        yield "step", f"none of {status.total:,} recorded"
        return
    images = status.step * status.description.batch_size
    yield "step", f"{status.step:,} of {status.total:,} ({status.step / status.total:.1%}), {images:,} images"


def _state(status: Status, written: str) -> str:
    mark = status.mark
    who = f"process {mark.get('pid')} on {mark.get('host')}" if mark else ""
    if mark and status.alive:
        try:
            since = f" for {duration(time.time() - datetime.fromisoformat(mark['started']).timestamp())}"
        except (KeyError, TypeError, ValueError):  # a mark that another version wrote
            since = ""
        return f"running{since}: {who}; it wrote {written}"
    if status.finished:
        return f"finished {written}"
    if status.saved and status.saved[-1] >= status.total:
        return "trained to the end; the last images and the summary are missing, and the same command makes them"
    gone = f"{who} is gone; " if mark else ""
    next_step = f"goes on from step {status.saved[-1]:,}" if status.saved else "starts again from step 0"
    return f"stopped: {gone}it wrote {written}, and the same command {next_step}"


def _time(status: Status) -> Rows:
    sums = totals(status.starts)
    if not sums["total_seconds"]:
        return
    made = of_state(status.starts)
    starts = f"{len(made)} starts" if len(made) > 1 else "one start"
    since = f" since step {made[0]['from']:,}" if made[0]["from"] else ""
    training = f", {duration(sums['train_seconds'])} of them in training" if sums["train_seconds"] else ""
    yield "took", f"{duration(sums['total_seconds'])} in {starts}{since}{training}"
    if "goodput" in sums and sums["train_seconds"]:
        parts = {"compile": "compilation", "data": "waiting for data", "save": "saving"}
        parts["callback"] = "samples and evaluation between steps"
        rest = ", ".join(f"{text} {duration(sums[f'{name}_seconds'])}" for name, text in parts.items())
        yield "goodput", f"{sums['goodput']:.1%} of the time in steps; {rest}"


def _speed(status: Status) -> Rows:
    if not status.records or status.step_seconds is None:
        return
    newest, seconds = status.records[-1], status.step_seconds
    rate = status.description.batch_size / seconds
    text = f"{number(rate)} images/s, {number(1 / seconds)} steps/s"
    if "images_per_second_per_chip" in newest:
        # no record has the number of chips: it follows from the two rates
        chips = round(newest["images_per_second"] / newest["images_per_second_per_chip"])
        text += f"; {number(rate / chips)} images/s for each of {chips} chips" if chips > 1 else " on one chip"
    if "peak_fraction" in newest:
        text += f", {newest['peak_fraction']:.1%} of the chip's peak"
    yield "speed", text
    if status.step < status.total:
        yield "time left", duration((status.total - status.step) * seconds)
    if "loss" in newest:
        yield "loss", f"{newest['loss']:.4g} at step {newest['step']:,}"


def versions(record: Mapping[str, Any]) -> str:
    """List the libraries that made a run, and the commit of cmjax."""
    commit = f" (commit {record['git_commit'][:10]})" if record.get("git_commit") else ""
    versions = {name: version for name, version in record.get("versions", {}).items() if version}
    return ", ".join(f"{name} {version}{commit * (name == 'cmjax')}" for name, version in versions.items())


def duration(seconds: float) -> str:
    """Write a time in its two largest units: `12 s`, `3 min 5 s`, `2 h 10 min`, `4 days 3 h`."""
    left, parts = max(round(seconds), 0), []
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if parts or left >= size or unit == "s":
            parts.append(f"{left // size} {unit}")
        left %= size
    return " ".join(parts[:2])


def number(value: float) -> str:
    """Write three digits, or all of those before the point: `0.123`, `12.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(count: int) -> str:
    """Write a number of bytes in a unit that suits: `12 B`, `3.4 MiB`."""
    left = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1024:
            return f"{left:.0f} B" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} TiB"
