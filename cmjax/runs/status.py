"""What a run's folder holds, read for those who tell of it. Files are read and nothing else."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmjax.config.recorded import Description, describe
from cmjax.config.renamed import summary_with_new_names
from cmjax.runs.record import RECORD, read_record
from cmjax.system.files import changed_at
from cmjax.system.lock import MARK, SILENT_SECONDS, is_alive, this_place
from cmjax.training.checkpoint import saved_steps

HISTORY = "history.jsonl"
"""Of a run's folder: a line for each start, as `Session` keeps it."""
RECENT = 10
"""Records that the speed is the mean of."""


@dataclass(frozen=True)
class Found:
    """What a run's folder tells. records: those that can be read. age: seconds since it was last written to by the
    run. mark: of the process that runs there, or ran there when it died; alive: whether it is there still. summary: of
    the newest end of a training, or empty. saved: steps of the whole checkpoints, ascending. starts: the lines of its
    history."""

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
        """Where the training is, or was."""
        return max([0, *self.saved[-1:], *(record["step"] for record in self.records[-1:])])

    @property
    def step_seconds(self) -> float | None:
        """The mean of the newest records; None without any."""
        recent = [record["step_seconds"] for record in self.records[-RECENT:] if "step_seconds" in record]
        return sum(recent) / len(recent) if recent else None


def find(workdir: Path) -> Found:
    """What the folder of a run tells. Raises: ConfigError where it is no run's folder."""
    record, metrics, end = read_record(workdir), workdir / "metrics.jsonl", workdir / "summary.json"
    summary = summary_with_new_names(next(objects([text_of(end)]), {}))
    mark = next(objects([text_of(workdir / MARK)]), None)
    written = [changed_at(path) for path in (workdir / RECORD, metrics, end) if path.exists()]
    return Found(
        record=record,
        records=[line for line in objects(text_of(metrics).splitlines()) if isinstance(line.get("step"), int)],
        age=time.time() - max(written),
        mark=mark,
        alive=mark is not None and _is_alive(mark, workdir / MARK),
        summary=summary if "steps" in summary else {},
        saved=sorted(saved_steps(workdir / "checkpoints")),
        starts=[line for line in objects(text_of(workdir / HISTORY).splitlines()) if is_start(line)],
    )


def _is_alive(mark: Mapping[str, Any], path: Path) -> bool:
    """Of a process elsewhere there is the time of its last sign alone, by that machine's clock or the disk's."""
    if mark.get("place") == this_place():
        return is_alive(mark)
    return time.time() - changed_at(path) < SILENT_SECONDS


def is_start(line: Mapping[str, Any]) -> bool:
    """Whether it is a line of a history."""
    return all(isinstance(line.get(name), int) for name in ("from", "to"))


def text_of(path: Path) -> str:
    """The content of a file; empty where there is none."""
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def objects(texts: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of the texts, without what a kill cut short."""
    for text in texts:
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(text)
            if isinstance(value, dict):
                yield value
