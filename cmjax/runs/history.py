"""A run's history, `history.jsonl`: a line for each start, with what made it, its steps and their time."""

import contextlib
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import Signals
from typing import Any

from cmjax.runs.workdir import Workdir
from cmjax.system.files import write_atomically
from cmjax.system.libraries import version_of
from cmjax.system.processes import is_first
from cmjax.system.signals import Stopped

PACKAGES = ("cmjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
"""Libraries whose versions a run records."""
SPEEDS = ("compile_seconds", "train_seconds")
"""Fields of a line that a summary adds up over the starts of a run, beside `seconds`."""
PAUSES = ("data_seconds", "save_seconds", "callback_seconds")
"""Parts of `train_seconds` without a step: waiting for data, saving, and sampling and evaluation between steps."""

log = logging.getLogger(__name__)

Start = dict[str, Any]
"""A line of the history.

started: ISO time. command: as it was typed. recipe, device, versions, git_commit: as in the record. changes: of the
configuration, as "field: old -> new". from, to: steps; `to` is that of the newest save. seconds: from the begin of the
command until then. compile_seconds, train_seconds, and `PAUSES` of the latter. ended: "finished", a signal or an error;
None while it runs, or where it was killed.
"""


class Session(contextlib.AbstractContextManager):
    """Writes the line of one start, again with each save and at the end. A context manager around the whole start. Only
    the first process writes."""

    def __init__(self, workdir: Path, *, began: float, recipe: str | None):
        """Args: began: the `time.perf_counter` of the command's begin. recipe: its name."""
        self.recipe = recipe
        self._run, self._began = Workdir(workdir), began
        self._training_since: float | None = None
        self._earlier: list[Start] = []
        self._start: Start = {"started": datetime.now(UTC).isoformat(timespec="seconds")}

    def begin(self, step: int, **fields: Any) -> None:
        """Write the line of a run that starts from this step, with more fields."""
        with contextlib.suppress(OSError):  # a history that cannot be read is no reason to end
            self._earlier = self._run.read_history()
        # used as a library, or in a test, no command of cmjax was typed
        command = shlex.join(["cmjax", *sys.argv[1:]]) if sys.argv[0].endswith(("cmjax", "main.py")) else None
        self._start |= {"command": command, "recipe": self.recipe, **fields, **provenance()}
        self._start |= {"from": step, "to": step, "ended": None}
        self._keep()

    def train(self, compile_seconds: float) -> None:
        """Note that the steps begin now."""
        self._start["compile_seconds"] = round(compile_seconds, 2)
        self._start |= dict.fromkeys(PAUSES, 0.0)
        self._training_since = time.perf_counter()

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to the line's `<name>_seconds`, one of `PAUSES`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            field = f"{name}_seconds"
            # six digits, because thousands of short waits are added up
            self._start[field] = round(self._start.get(field, 0.0) + time.perf_counter() - began, 6)

    def waited(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches. The wait for each is a pause."""
        stream = iter(batches)
        # not a `for` loop: the pause surrounds the wait for a batch, and not the step that uses it
        while True:
            try:
                with self.pause("data"):
                    batch = next(stream)
            except StopIteration:
                return
            yield batch

    def reached(self, step: int) -> None:
        """Write that this step is saved."""
        self._start["to"] = step
        self._keep()

    def trained(self) -> float:
        """Note that the steps end now. Returns: their seconds."""
        # before the sum, so that the line has the last steps' time
        self._keep()
        seconds, self._training_since = time.perf_counter() - (self._training_since or 0.0), None
        return seconds

    def totals(self) -> dict[str, Any]:
        """Sums as the function `totals`, over all starts."""
        self._keep()
        return totals([*self._earlier, self._start])

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        # an error before `begin` is of no start of this run
        if "from" in self._start:
            how = "finished" if error is None else type(error).__name__
            self._start["ended"] = Signals(error.number).name if isinstance(error, Stopped) else how
            self._keep()

    def _keep(self) -> None:
        if not is_first():
            return
        now = time.perf_counter()
        self._start["seconds"] = round(now - self._began, 2)
        # grows until the steps end, and then stays
        if self._training_since is not None:
            self._start["train_seconds"] = round(now - self._training_since, 2)
        try:
            # the whole file is written anew, since a line within it cannot be replaced
            lines = [json.dumps(start, default=str) + "\n" for start in (*self._earlier, self._start)]
            write_atomically(self._run.history, "".join(lines))
        except OSError as error:  # a full disk is no reason to end
            log.warning("%s cannot be written: %s", self._run.history, error.strerror or error)


def of_state(starts: Sequence[Start]) -> list[Start]:
    """Gives the starts that made the present state: from the newest one at step 0 on."""
    first = max((i for i, start in enumerate(starts) if start["from"] == 0), default=0)
    return list(starts[first:])


def totals(starts: Sequence[Start]) -> dict[str, Any]:
    """Gives a summary's entries: the number of starts that made the state, and the sums of their seconds.

    goodput: the fraction of all seconds in which steps ran, see `PAUSES`. Histories of earlier versions have none.
    """
    made = of_state(starts)
    has_pauses = bool(made) and all(PAUSES[0] in start for start in made if start.get("train_seconds"))
    names = (*SPEEDS, *(PAUSES if has_pauses else ()), "seconds")
    sums: dict[str, Any] = {name: round(sum(start.get(name) or 0 for start in made), 2) for name in names}
    sums["total_seconds"] = sums.pop("seconds")
    if has_pauses and sums["total_seconds"]:
        productive = sums["train_seconds"] - sum(sums[name] for name in PAUSES)
        sums["goodput"] = round(max(productive, 0) / sums["total_seconds"], 4)
    return {"starts": len(made), **sums}


def provenance() -> dict[str, Any]:
    """Gives the record's entries "versions" and "git_commit"."""
    # the commit of cmjax, and not that of the folder where the command was typed
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # an installed package is in no checkout
        commit = None
    return {"versions": {name: version_of(name) for name in PACKAGES}, "git_commit": commit}


def devices() -> str:
    """Describe the devices of all processes, as `8 x TPU v4`."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
