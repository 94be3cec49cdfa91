"""Which checkpoint is read: the newest that is whole, the same one in every process."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cmjax.system.processes import all_agree, on_first_process
from cmjax.training.checksums import verify_checksums

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be read, or not be saved; the message names the folder and what to do."""


def newest_readable(
    folder: Path,
    list_steps: Callable[[], Iterable[int]],
    read: Callable[[int], Any],
    *,
    alone: bool = False,
    on_damaged: Callable[[int], None] = lambda step: None,
) -> Any:
    """What `read` gives of the newest step that is whole, None where there are no steps.

    The first process lists the steps and checks them, so that all read the same one. `alone`: this process reads by
    itself, whatever the others do.
    """
    ask = (lambda action: action()) if alone else on_first_process
    damaged = []
    for step in ask(lambda: sorted((int(step) for step in list_steps()), reverse=True)):
        problem = ask(lambda step=step: _damage(folder / str(step)))
        restored = None
        if problem is None:
            try:
                restored = read(step)
            except Exception as error:  # Orbax raises many kinds for what is unreadable
                problem = _in_a_line(error)
        if problem is None if alone else all_agree(problem is None):
            for step in damaged:
                on_damaged(step)
            return restored
        problem = problem or "another process could not"
        log.warning("checkpoint %s cannot be read (%s); trying the one before", folder / str(step), problem)
        damaged.append(step)
    if damaged:
        raise CheckpointError(
            f"none of the checkpoints {damaged} in {folder} can be read; restore the folder from a copy, or "
            "remove it to start again from step 0"
        )
    return None


def _damage(step_folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where nothing is."""
    try:
        verify_checksums(step_folder)
    except (OSError, ValueError) as error:
        return _in_a_line(error)
    return None


def why_failed(action: Callable[[], Any]) -> str | None:
    """What went wrong in an action, None where nothing did. Orbax raises many kinds, of a full disk for one."""
    try:
        action()
    except Exception as error:
        return _in_a_line(error)
    return None


def _in_a_line(error: Exception) -> str:
    if number := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore says it last, after a page of others
        return os.strerror(int(number[1]))
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
