"""One run in a folder at a time: a mark says who is there, and is touched while that process lives."""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmjax.system.identity import is_alive, this_process

MARK = "running.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""A process elsewhere whose mark was not touched for so long is taken for dead."""
SETTLE_SECONDS = 2.0
"""Two that write one object at the same moment read after this time which of them was the last."""

log = logging.getLogger(__name__)

Mark = dict[str, Any]
"""`this_process`, when it began in words, and a token that no other mark has."""


class AlreadyRunning(RuntimeError):
    """Another process is at work in the folder; the message names it."""


class FolderLock:
    """The mark `running.json` of this process in a folder. A context manager, which removes it.

    On a disk two at the same moment cannot both make it. A bucket makes no file exclusively: there the last of them
    wins, and whoever was before it finds out by its next beat at the latest.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_lost: Callable[[], None],
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ):
        """Args: folder: of a disk, or an `etils.epath.Path`. on_lost: called in a thread when another has taken it."""
        self._path, self._on_lost = folder / MARK, on_lost
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        self._on_disk = isinstance(folder, Path)
        self._mark: Mark = {
            **this_process(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": uuid.uuid4().hex,
        }
        self._made_folder = False
        self._done, self._touching = threading.Event(), threading.Lock()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def take(self) -> None:
        """Make the mark, and the folder where missing. A mark whose process is dead is replaced.

        Raises: AlreadyRunning where it is alive; OSError where the folder cannot be written.
        """
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not (self._make() or self._take_over()):
            time.sleep(0.01)
        threading.Thread(target=self._beat, daemon=True, name="running").start()
        _held.add(self)

    def release(self) -> None:
        """Remove the mark, where it is this process's, and the folder where nothing came to be in it."""
        self._done.set()
        _held.discard(self)
        with self._touching, contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()
                if self._made_folder and self._on_disk:
                    self._path.parent.rmdir()

    def _make(self) -> bool:
        """Whether there was no mark and this process's is there now."""
        if self._on_disk:
            return _make_exclusively(self._path, json.dumps(self._mark))
        return not self._path.exists() and self._write_and_settle()

    def _write_and_settle(self) -> bool:
        self._path.write_text(json.dumps(self._mark))
        time.sleep(SETTLE_SECONDS)
        return self._is_mine()

    def _take_over(self) -> bool:
        """Whether this process's mark stands now in the place of a dead one's."""
        other = _read(self._path)
        if other is None:
            return False
        if is_alive(other) if other.get("place") == self._mark["place"] else self._moves(other):
            other = _read(self._path) or other
            raise AlreadyRunning(
                f"{self._path.parent}: process {other.get('pid')} on {other.get('host')} runs there since "
                f"{other.get('started')}; wait for its end or stop it, or name another folder"
            )
        if not (self._replace(other) if self._on_disk else self._write_and_settle()):
            return False
        log.info(
            "process %s on %s is dead; going on in %s in its place",
            other.get("pid"), other.get("host"), self._path.parent,
        )  # fmt: skip
        return True

    def _replace(self, other: Mark) -> bool:
        """Put this process's mark in the place of exactly that one. One process at a time may, who has the claim."""
        claim, waited_from = self._path.with_name(f".{MARK}.{other.get('token')}"), time.monotonic()
        while not _make_exclusively(claim, ""):
            time.sleep(0.01)
            if time.monotonic() - waited_from > self._silent_seconds:
                claim.unlink(missing_ok=True)  # of one who died with it
        try:
            if (_read(self._path) or {}).get("token") != other.get("token"):
                return False
            mine = self._path.with_name(f".{MARK}.{self._mark['token']}")
            mine.write_text(json.dumps(self._mark))
            os.replace(mine, self._path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _moves(self, other: Mark) -> bool:
        """Whether a mark is touched while one waits. Clocks of two machines are not compared."""
        log.info("waiting up to %.0f s for a sign of process %s on %s", self._silent_seconds, other.get("pid"),
                 other.get("host"))  # fmt: skip
        first, deadline = _pulse(self._path), time.monotonic() + self._silent_seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._silent_seconds / 10))
            if (now := _pulse(self._path)) != first:
                return now is not None
        return False

    def _beat(self) -> None:
        number = 0
        while not self._done.wait(self._beat_seconds):
            number += 1
            try:
                with self._touching:
                    lost = not self._touch(number)
            except Exception as error:  # the libraries of buckets raise errors of many kinds
                log.warning("%s cannot be touched: %s", self._path, error)
                continue
            if lost:
                self._on_lost()
                return

    def _touch(self, number: int) -> bool:
        """Show that this process lives; False where the mark is another's by now."""
        if self._done.is_set():
            return True
        if not self._is_mine():
            return self._make()  # somebody may have removed it
        if self._on_disk:
            os.utime(self._path)
        else:
            self._path.write_text(json.dumps(self._mark | {"beat": number}))
        return True

    def _is_mine(self) -> bool:
        return (_read(self._path) or {}).get("token") == self._mark["token"]


_held: set[FolderLock] = set()


def release_all() -> None:
    """Remove the marks of this process, which is about to end without leaving its context managers."""
    for lock in list(_held):
        lock.release()


def _make_exclusively(path: Path, content: str) -> bool:
    """Make a file, unless there is one already. Not every disk has links, by which it would appear whole."""
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:  # of a full disk
        path.unlink()
        raise
    return True


def _read(path: Path) -> Mark | None:
    """The mark; None where there is none. One that cannot be read says nothing of itself."""
    try:
        mark = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _pulse(path: Path) -> tuple[str, int] | None:
    """What changes with every beat. The file is opened, since a network's disk then looks anew."""
    try:
        if not isinstance(path, Path):
            return path.read_text(), 0
        with path.open() as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
