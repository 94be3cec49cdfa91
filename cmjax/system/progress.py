"""Shows progress: a bar on a terminal, lines in the log elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from cmjax.system.notebook import changing_line, in_notebook

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
    """Show a bar with the time left on a terminal, one line that changes in a notebook, and log a line every `every_s`
    seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(description, total, start) as update:
            yield update
        return
    notebook = in_notebook()
    # without a logger's settings a kernel shows no records of this level
    every_s, show = (1.0, changing_line()) if notebook else (every_s, partial(log.info, "%s"))
    began = last = time.monotonic()
    newest, shown = (start, ""), None

    def line(done: int, text: str) -> str:
        elapsed = time.monotonic() - began
        # a resumed run is as fast as the parts that it did itself
        left = f", {_clock(elapsed * (total - done) / max(done - start, 1))} left" if done < total else ""
        return f"{description} {done}/{total} ({100 * done / total:.0f}%), {_clock(elapsed)} elapsed{left}  {text}"

    def show_now_and_then(done: int, text: str) -> None:
        nonlocal last, newest, shown
        newest, now = (done, text), time.monotonic()
        if now - last >= every_s:
            last, shown = now, newest
            show(line(*newest))

    yield show_now_and_then
    if notebook and shown not in (None, newest):  # what stays below the cell is how it ended
        show(line(*newest))


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
