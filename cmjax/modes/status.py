"""`--mode=status`: what a run is, where it stands, how fast it goes, its newest figures and what is on disk.

Files are read and nothing else: no device is used, and no other process waited for.

    cmjax status --workdir=runs/digits_ct
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cmjax.command_line import Flags, Options
from cmjax.config.recorded import Description, describe
from cmjax.evaluation.figures import format_figures
from cmjax.machine.files import changed_at, size_of
from cmjax.machine.identity import is_alive, this_place
from cmjax.machine.lock import MARK, SILENT_SECONDS
from cmjax.runs.record import RECORD, read_record
from cmjax.training.checkpoint import saved_steps

RECENT = 10
"""Records that the speed is the mean of."""
LISTED = 5
"""Checkpoints that are told one by one."""

Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """What a run's folder tells. records: those that can be read. age: seconds since it was last written to by the
    run. mark: of the process that runs there, or ran there when it died; alive: whether it is there still. summary: of
    the newest end of a training, or empty. saved: steps of the whole checkpoints, ascending."""

    record: Mapping[str, Any]
    records: list[dict[str, Any]]
    age: float
    mark: Mapping[str, Any] | None
    alive: bool
    summary: Mapping[str, Any]
    saved: list[int]

    @property
    def description(self) -> Description:
        return describe(self.record["config"])

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.description.steps

    @property
    def step(self) -> int:
        """Where the training is, or was."""
        return max([0, *self.saved[-1:], *(record["step"] for record in self.records[-1:])])

    @property
    def step_seconds(self) -> float | None:
        """The mean of the newest records; None without any."""
        recent = [record["step_seconds"] for record in self.records[-RECENT:] if "step_seconds" in record]
        return sum(recent) / len(recent) if recent else None


def declare(flags: Flags) -> None:
    """No flags of its own."""


def start(options: Options) -> None:
    run(options.workdir)


def run(workdir: Path) -> None:
    """Print the status of the run in `workdir`.

    Raises: ConfigError where it is no run's folder.
    """
    found = _find(workdir)
    rows = [("run", _what(workdir, found)), *_made_with(found)]
    rows += [_origin(found)] if "imported" in found.record else [*_progress(found), *_speed(found)]
    rows += [*_on_disk(workdir, found.saved), ("versions", _versions(found.record))]
    print("\n".join(f"{name:13s}{text}" for name, text in rows))
    if found.summary.get("figures"):
        print(f"\nfigures at step {found.summary['steps']:,}\n{format_figures(found.summary['figures'])}")


def _find(workdir: Path) -> Found:
    record, metrics, end = read_record(workdir), workdir / "metrics.jsonl", workdir / "summary.json"
    summary = next(_objects([_text(end)]), {})
    mark = next(_objects([_text(workdir / MARK)]), None)
    written = [changed_at(path) for path in (workdir / RECORD, metrics, end) if path.exists()]
    return Found(
        record=record,
        records=[line for line in _objects(_text(metrics).splitlines()) if isinstance(line.get("step"), int)],
        age=time.time() - max(written),
        mark=mark,
        alive=mark is not None and _is_alive(mark, workdir / MARK),
        summary=summary if "steps" in summary else {},
        saved=sorted(saved_steps(workdir / "checkpoints")),
    )


def _is_alive(mark: Mapping[str, Any], path: Path) -> bool:
    """Of a process elsewhere there is the time of its last sign alone, by that machine's clock or the disk's."""
    if mark.get("place") == this_place():
        return is_alive(mark)
    return time.time() - changed_at(path) < SILENT_SECONDS


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def _objects(texts: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of the texts, without what a kill cut short."""
    for text in texts:
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(text)
            if isinstance(value, dict):
                yield value


def _what(workdir: Path, found: Found) -> str:
    name = found.record.get("recipe") or workdir.name
    count = f", {found.summary['parameters']:,} parameters" if "parameters" in found.summary else ""
    return f"{name}: {found.description.method}, network {found.description.network}{count}"


def _made_with(found: Found) -> Rows:
    record, description = found.record, found.description
    height, width, channels = record["shape"]
    classes = f", {record['num_classes']} classes" if record["num_classes"] else ""
    yield "data", f"{description.data}, {height}x{width}x{channels}{classes}"
    if description.teacher:
        yield "teacher", description.teacher


def _origin(found: Found) -> tuple[str, str]:
    imported = found.record["imported"]
    return "weights", f"from {imported['from']} (licence: {imported['licence']}); no training here"


def _progress(found: Found) -> Rows:
    yield "state", _state(found)
    if not found.step:
        yield "step", f"none of {found.total:,} recorded"
        return
    images = found.step * found.description.batch_size
    yield "step", f"{found.step:,} of {found.total:,} ({found.step / found.total:.1%}), {images:,} images"


def _state(found: Found) -> str:
    ago, mark = f"it wrote {_duration(found.age)} ago", found.mark
    who = f"process {mark.get('pid')} on {mark.get('host')}" if mark else ""
    if mark and found.alive:
        return f"running{_since(mark)}: {who}; {ago}"
    if found.summary.get("steps", 0) >= found.total and found.summary.get("finished", True):
        return f"finished {_duration(found.age)} ago"
    if found.saved and found.saved[-1] >= found.total:
        return "trained to the end; the last pictures and the summary are missing, and the same command makes them"
    gone = f"{who} is gone; " if mark else ""
    next_step = f"goes on from step {found.saved[-1]:,}" if found.saved else "starts again from step 0"
    return f"stopped: {gone}{ago}, and the same command {next_step}"


def _since(mark: Mapping[str, Any]) -> str:
    try:
        return f" for {_duration(time.time() - datetime.fromisoformat(mark['started']).timestamp())}"
    except (KeyError, TypeError, ValueError):  # a mark that another version wrote
        return ""


def _speed(found: Found) -> Rows:
    if not found.records or found.step_seconds is None:
        return
    newest, seconds = found.records[-1], found.step_seconds
    rate = found.description.batch_size / seconds
    text = f"{_number(rate)} images/s, {_number(1 / seconds)} steps/s"
    if "images_per_second_per_chip" in newest:
        chips = round(newest["images_per_second"] / newest["images_per_second_per_chip"])
        text += f"; {_number(rate / chips)} images/s for each of {chips} chips" if chips > 1 else " on one chip"
    if "peak_share" in newest:
        text += f", {newest['peak_share']:.1%} of the chip's peak"
    yield "speed", text
    if found.step < found.total:
        yield "time left", _duration((found.total - found.step) * seconds)
    if "loss" in newest:
        yield "loss", f"{newest['loss']:.4g} at step {newest['step']:,}"


def _on_disk(workdir: Path, saved: list[int]) -> Rows:
    folder = workdir / "checkpoints"
    sizes = {path.name: size_of(path) for path in workdir.iterdir()}
    yield "on disk", f"{_bytes(sum(sizes.values()))} in {workdir}"
    for step in saved[: -LISTED - 1 : -1]:
        yield "", f"checkpoint {step:,}: {_bytes(size_of(folder / str(step)))}"
    if saved[:-LISTED]:
        older = sum(size_of(folder / str(step)) for step in saved[:-LISTED])
        yield "", f"{len(saved) - LISTED} older ones: {_bytes(older)}"
    for path in sorted(folder.iterdir(), key=str) if folder.exists() else []:
        if path.name.startswith("damaged-"):
            yield "", f"{path.name}: {_bytes(size_of(path))}, put aside as it could not be read"
    for name in sorted(sizes.keys() - {"checkpoints"}):
        if (workdir / name).is_dir():
            pictures = f"{len(list((workdir / name).iterdir()))} files, " * (name == "samples")
            yield "", f"{name}: {pictures}{_bytes(sizes[name])}"


def _versions(record: Mapping[str, Any]) -> str:
    commit = f" (commit {record['git_commit'][:10]})" if record.get("git_commit") else ""
    versions = {name: version for name, version in record.get("versions", {}).items() if version}
    return ", ".join(f"{name} {version}{commit * (name == 'cmjax')}" for name, version in versions.items())


def _duration(seconds: float) -> str:
    """In its two largest units: `12 s`, `3 min 5 s`, `2 h 10 min`, `4 days 3 h`."""
    left, parts = max(round(seconds), 0), []
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts.append((left // size, unit))
        left %= size
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
