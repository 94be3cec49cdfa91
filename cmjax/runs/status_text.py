"""A run in words: what it is, where it stands and how fast it goes."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cmjax.runs.classes import in_words
from cmjax.runs.history import of_state, totals
from cmjax.runs.status import Found

Rows = Iterator[tuple[str, str]]


def rows_of(workdir: Path, found: Found) -> list[tuple[str, str]]:
    """What the run is, where it stands and how fast it goes, as (name, text)."""
    rows = [("run", _what(workdir, found)), *_made_with(found)]
    if "imported" in found.record:
        return [*rows, _origin(found)]
    return [*rows, *_progress(found), *_time(found), *_speed(found)]


def _what(workdir: Path, found: Found) -> str:
    name = found.record.get("recipe") or workdir.name
    count = f", {found.summary['parameters']:,} parameters" if "parameters" in found.summary else ""
    return f"{name}: {found.description.method}, network {found.description.network}{count}"


def _made_with(found: Found) -> Rows:
    record, description = found.record, found.description
    height, width, channels = record["shape"]
    classes = f", {record['num_classes']} classes" if record["num_classes"] else ""
    yield "data", f"{description.data}, {height}x{width}x{channels}{classes}"
    if (names := record.get("class_names")) and names != list(map(str, range(len(names)))):
        yield "classes", in_words(names)
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
    ago, mark = f"it wrote {duration(found.age)} ago", found.mark
    who = f"process {mark.get('pid')} on {mark.get('host')}" if mark else ""
    if mark and found.alive:
        return f"running{_since(mark)}: {who}; {ago}"
    if found.summary.get("steps", 0) >= found.total and found.summary.get("finished", True):
        return f"finished {duration(found.age)} ago"
    if found.saved and found.saved[-1] >= found.total:
        return "trained to the end; the last images and the summary are missing, and the same command makes them"
    gone = f"{who} is gone; " if mark else ""
    next_step = f"goes on from step {found.saved[-1]:,}" if found.saved else "starts again from step 0"
    return f"stopped: {gone}{ago}, and the same command {next_step}"


def _time(found: Found) -> Rows:
    """What the run took, over all its starts."""
    sums = totals(found.starts)
    if not sums["total_seconds"]:
        return
    made = of_state(found.starts)
    starts = f"{len(made)} starts" if len(made) > 1 else "one start"
    since = f" since step {made[0]['from']:,}" if made[0]["from"] else ""
    training = f", {duration(sums['train_seconds'])} of them in training" if sums["train_seconds"] else ""
    yield "took", f"{duration(sums['total_seconds'])} in {starts}{since}{training}"


def _since(mark: Mapping[str, Any]) -> str:
    try:
        return f" for {duration(time.time() - datetime.fromisoformat(mark['started']).timestamp())}"
    except (KeyError, TypeError, ValueError):  # a mark that another version wrote
        return ""


def _speed(found: Found) -> Rows:
    if not found.records or found.step_seconds is None:
        return
    newest, seconds = found.records[-1], found.step_seconds
    rate = found.description.batch_size / seconds
    text = f"{number(rate)} images/s, {number(1 / seconds)} steps/s"
    if "images_per_second_per_chip" in newest:
        chips = round(newest["images_per_second"] / newest["images_per_second_per_chip"])
        text += f"; {number(rate / chips)} images/s for each of {chips} chips" if chips > 1 else " on one chip"
    if "peak_share" in newest:
        text += f", {newest['peak_share']:.1%} of the chip's peak"
    yield "speed", text
    if found.step < found.total:
        yield "time left", duration((found.total - found.step) * seconds)
    if "loss" in newest:
        yield "loss", f"{newest['loss']:.4g} at step {newest['step']:,}"


def versions(record: Mapping[str, Any]) -> str:
    """The libraries that made a run, and the commit of cmjax."""
    commit = f" (commit {record['git_commit'][:10]})" if record.get("git_commit") else ""
    versions = {name: version for name, version in record.get("versions", {}).items() if version}
    return ", ".join(f"{name} {version}{commit * (name == 'cmjax')}" for name, version in versions.items())


def duration(seconds: float) -> str:
    """In its two largest units: `12 s`, `3 min 5 s`, `2 h 10 min`, `4 days 3 h`."""
    left, parts = max(round(seconds), 0), []
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts.append((left // size, unit))
        left %= size
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def number(value: float) -> str:
    """Three digits, or all of those before the point: `0.123`, `12.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(count: int) -> str:
    """So many bytes in the unit that suits: `12 B`, `3.4 MiB`."""
    left = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1024:
            return f"{left:.0f} B" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} TiB"
