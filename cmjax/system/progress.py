"""Shows progress: a bar on a terminal, lines in the log elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from cmjax.system.notebook import in_notebook

log = logging.getLogger(__name__)

Update = Callable[[int, str], None]
"""(parts done, a few words beside the bar)."""

ProgressBar = Callable[[int], contextlib.AbstractContextManager[Update]]
"""(number of parts) -> a context manager that yields an `Update`. A library function takes one, and its caller chooses
the display."""


def no_progress(total: int) -> contextlib.AbstractContextManager[Update]:
    """Makes the `ProgressBar` that shows nothing."""
    return contextlib.nullcontext(lambda done, text: None)


@contextlib.contextmanager
def progress(description: str, total: int, *, start: int = 0, every_s: float = 10.0) -> Iterator[Update]:
    """Show a bar with the time left on a terminal, a line in a notebook, and log a line every `every_s` seconds
    elsewhere."""
    if sys.stderr.isatty():
        with _bar(description, total, start) as update:
            yield update
        return
    notebook = in_notebook()
    every_s = 1.0 if notebook else every_s
    began = last = time.monotonic()

    def log_now_and_then(done: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every_s:
            return
        last = now
        # a resumed run is as fast as the parts that it did itself
        elapsed, left = _clock(now - began), _clock((now - began) * (total - done) / max(done - start, 1))
        fraction = 100 * done / total
        line = f"{description} {done}/{total} ({fraction:.0f}%), {elapsed} elapsed, {left} left  {text}"
        if notebook:
            # without a logger's settings a kernel shows no records of this level
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        else:
            log.info("%s", line)

    yield log_now_and_then
    if notebook:
        print(file=sys.stderr)


@contextlib.contextmanager
def _bar(description: str, total: int, start: int) -> Iterator[Update]:
    # here, not above: most programs that import this have no terminal
    from rich import progress as parts
    from rich.console import Console

    numbers = (parts.BarColumn(), parts.MofNCompleteColumn(), parts.TimeElapsedColumn())
    columns = ("{task.description}", *numbers, "elapsed,", parts.TimeRemainingColumn(), "left", "{task.fields[text]}")
    with parts.Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, completed=start, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
