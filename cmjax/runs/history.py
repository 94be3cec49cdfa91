"""A run's history, `history.jsonl`: a line for each start, with its command, its steps and what they took."""

import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any

from cmjax.runs.provenance import provenance
from cmjax.runs.status import HISTORY, is_start, objects, text_of
from cmjax.system.files import write_atomically
from cmjax.system.processes import is_first
from cmjax.training.loop import Stopped

SPEEDS = ("compile_seconds", "train_seconds")
"""Fields of a line, beside `seconds`, that are sums over the starts of a run."""

log = logging.getLogger(__name__)

Start = dict[str, Any]
"""A line. started: when, in words. command: as it was written. recipe, device, versions, git_commit: as in the record.
changes: of the configuration, as "field: old -> new". from, to: steps; `to` as the newest save has it. seconds: from
the command's begin until then. ended: how, None of one that is under way or was killed."""


class Session:
    """One start of a run, kept in its history as it goes on: with each save, and at its end. A context manager around
    all of it. The first process writes it."""

    def __init__(self, workdir: Path, *, began: float, recipe: str | None):
        """Args: began: of `time.perf_counter`. recipe: its name."""
        self.recipe = recipe
        self._path, self._began = workdir / HISTORY, began
        self._training_since: float | None = None
        self._earlier: list[Start] = []
        self._start: Start = {"started": datetime.now(UTC).isoformat(timespec="seconds")}

    def begin(self, step: int, **known: Any) -> None:
        """The run goes on from this step. known: more fields of the line."""
        self._earlier = starts_of(self._path)
        command = shlex.join(["cmjax", *sys.argv[1:]]) if sys.argv[0].endswith(("cmjax", "main.py")) else None
        self._start |= {"command": command, "recipe": self.recipe, **known, **provenance()}
        self._start |= {"from": step, "to": step, "ended": None}
        self._keep()

    def train(self, compile_seconds: float) -> None:
        """The steps begin now."""
        self._start["compile_seconds"] = round(compile_seconds, 2)
        self._training_since = time.perf_counter()

    def reached(self, step: int) -> None:
        """Keep that this step is done."""
        self._start["to"] = step
        self._keep()

    def trained(self) -> float:
        """The steps end now. Returns: the seconds that they took."""
        self._keep()
        seconds, self._training_since = time.perf_counter() - (self._training_since or 0.0), None
        return seconds

    def totals(self) -> dict[str, Any]:
        """Of the starts that made the state: how many, and the sums of their seconds."""
        self._keep()
        return totals([*self._earlier, self._start])

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        if "from" in self._start:
            how = "finished" if error is None else type(error).__name__
            self._start["ended"] = Signals(error.number).name if isinstance(error, Stopped) else how
            self._keep()

    def _keep(self) -> None:
        if not is_first():
            return
        now = time.perf_counter()
        self._start["seconds"] = round(now - self._began, 2)
        if self._training_since is not None:
            self._start["train_seconds"] = round(now - self._training_since, 2)
        try:
            lines = [json.dumps(start, default=str) + "\n" for start in (*self._earlier, self._start)]
            write_atomically(self._path, "".join(lines))
        except OSError as error:  # a full disk is no reason to end
            log.warning("%s cannot be written: %s", self._path, error.strerror or error)


def starts_of(path: Path) -> list[Start]:
    """The lines of a history; none where there is no such file."""
    with contextlib.suppress(OSError):
        return [line for line in objects(text_of(path).splitlines()) if is_start(line)]
    return []


def of_state(starts: Sequence[Start]) -> list[Start]:
    """The starts that made the state as it is: those since the newest that began at step 0."""
    first = max((i for i, start in enumerate(starts) if start["from"] == 0), default=0)
    return list(starts[first:])


def totals(starts: Sequence[Start]) -> dict[str, Any]:
    """Of the starts that made the state: their number, and the sums of their seconds, as a summary has them."""
    made = of_state(starts)
    sums = {name: sum(start.get(name) or 0 for start in made) for name in (*SPEEDS, "seconds")}
    sums["total_seconds"] = sums.pop("seconds")
    return {"starts": len(made), **{name: round(value, 2) for name, value in sums.items()}}
