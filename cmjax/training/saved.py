"""The files of saved checkpoints: which steps are whole, their checksums, and reading the newest that can be read.

Needs no jax: a mode that only lists checkpoints imports this module too.
"""

import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cmjax.system.errors import UserError
from cmjax.system.files import is_bucket, to_json, write_atomically
from cmjax.system.processes import all_agree, on_first_process

COMMITTED = "commit_success.txt"
"""Orbax writes it into a checkpoint's folder in a bucket when the checkpoint is whole."""
CHECKSUMS = "checksums.json"
STAMPED = "_CHECKPOINT_METADATA"
"""Orbax writes the time into it when it renames the folder, after the checksums."""

log = logging.getLogger(__name__)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or saved; the message names the folder and what to do."""


def saved_steps(folder: Path) -> list[int]:
    """List the steps of the whole checkpoints in a folder, in no order. On a disk Orbax renames a folder when it is
    whole; in a bucket it writes `COMMITTED` into it."""
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return [int(path.name) for path in steps if not is_bucket(folder) or (path / COMMITTED).exists()]


def newest_readable(
    folder: Path,
    list_steps: Callable[[], Iterable[int]],
    read: Callable[[int], Any],
    *,
    alone: bool = False,
    on_damaged: Callable[[int], None] = lambda step: None,
) -> Any:
    """Return `read(step)` of the newest step that can be read; None where there are no steps.

    The first process lists the steps and verifies their files, so that all read the same one. alone: this process reads
    by itself, whatever the others do. on_damaged: called with each newer step that could not be read.

    Raises: CheckpointError where there are steps and none can be read.
    """
    # a network disk may show a new file to one host before the others
    ask = (lambda action: action()) if alone else on_first_process
    damaged = []
    for step in ask(lambda: sorted((int(step) for step in list_steps()), reverse=True)):
        problem = ask(lambda step=step: why_failed(lambda: verify_checksums(folder / str(step))))
        restored = None
        if problem is None:
            try:
                restored = read(step)
            except Exception as error:  # Orbax raises many kinds for what is unreadable
                problem = _in_a_line(error)
        # files may be whole for one process and unreadable for another: all must restore the same step
        if problem is None if alone else all_agree(problem is None):
            # only now: where none can be read, nothing is renamed
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


def write_checksums(step_folder: Path) -> None:
    """Write the checksums of a checkpoint's files beside them: Orbax restores flipped bits silently."""
    files = sorted(path for path in step_folder.rglob("*") if path.is_file() and path.name != STAMPED)
    checksums = {str(path.relative_to(step_folder)): _crc32(path) for path in files}
    write_atomically(step_folder / CHECKSUMS, to_json(checksums))


def verify_checksums(step_folder: Path) -> None:
    """Raise ValueError naming the first file of a checkpoint that is missing, or does not fit its checksum."""
    recorded = step_folder / CHECKSUMS
    if not recorded.exists():  # of a bucket's checkpoint, or earlier code was killed before it wrote them
        return
    for name, expected in json.loads(recorded.read_text()).items():
        path = step_folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if _crc32(path) != expected:
            raise ValueError(f"{name} has changed since it was written")


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        # in blocks: a file may be larger than the memory that is left
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def why_failed(action: Callable[[], Any]) -> str | None:
    """Do an action. Returns: its error in one line; None where it succeeds. Orbax raises errors of many kinds."""
    try:
        action()
    except Exception as error:
        return _in_a_line(error)
    return None


def _in_a_line(error: Exception) -> str:
    # TensorStore's last words, after a page of others
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
