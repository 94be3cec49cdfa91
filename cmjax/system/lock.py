"""Keeps a folder to one run at a time: a mark names the process at work, and is touched while that process lives."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MARK = "running.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""A process on another machine counts as dead when its mark was not touched for this long."""
SETTLE_SECONDS = 2.0
"""Two processes that write one object of a bucket at the same moment wait this long, then read who was last."""

log = logging.getLogger(__name__)

Mark = dict[str, Any]
"""The fields of `this_process`, "started" (ISO time) and a unique "token"."""


class AlreadyRunning(RuntimeError):
    """Another process is at work in the folder; the message names it."""


class FolderLock(contextlib.AbstractContextManager):
    """Holds a folder by the file `running.json`. A context manager, which removes it.

    On a disk two processes cannot both create the file. A bucket has no exclusive creation: there the last writer wins,
    and the others notice at their next beat at the latest.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_lost: Callable[[], None],
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ):
        """Args: folder: on a disk or in a bucket. on_lost: called in a thread when another process took the folder."""
        self._path, self._on_lost = folder / MARK, on_lost
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        # a bucket's path has the methods of `Path`, but is none
        self._on_disk = isinstance(folder, Path)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._mark: Mark = {**this_process(), "started": started, "token": uuid.uuid4().hex}
        self._made_folder = False
        self._done, self._touching = threading.Event(), threading.Lock()

    def __exit__(self, *_: Any) -> None:
        self.release()

    def take(self) -> None:
        """Make the mark, and the folder if missing; replace the mark of a dead process.

        Raises: AlreadyRunning if the mark's process is alive; OSError if the folder cannot be written.
        """
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # neither works where another process makes, replaces or removes its mark meanwhile
        while not (self._make() or self._take_over()):
            time.sleep(0.01)
        # a daemon thread does not keep a program alive that has ended
        threading.Thread(target=self._beat, daemon=True, name="running").start()
        _held.add(self)

    def release(self) -> None:
        """Remove this process's mark, and the folder if `take` made it and it is still empty."""
        self._done.set()
        _held.discard(self)
        # not between a beat's look at the mark and its touch, which would write it again
        with self._touching, contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()
                if self._made_folder and self._on_disk:
                    self._path.parent.rmdir()

    def _make(self) -> bool:
        """Make the mark if there is none. Returns: whether it is this process's."""
        if self._on_disk:
            return _make_exclusively(self._path, json.dumps(self._mark))
        return not self._path.exists() and self._write_and_settle()

    def _write_and_settle(self) -> bool:
        self._path.write_text(json.dumps(self._mark))
        time.sleep(SETTLE_SECONDS)
        return self._is_mine()

    def _take_over(self) -> bool:
        """Replace the mark of a dead process. Returns: whether it is this process's now."""
        other = _read(self._path)
        # it was removed meanwhile: `take` tries to make its own
        if other is None:
            return False
        # on this machine the process is looked up; on another one only the beats of its mark show that it lives
        if is_alive(other) if other.get("place") == self._mark["place"] else self._moves(other):
            other = _read(self._path) or other
            raise AlreadyRunning(
                f"{self._path.parent}: process {other.get('pid')} on {other.get('host')} runs there since "
                f"{other.get('started')}; wait for its end or stop it, or name another folder"
            )
        if not (self._replace(other) if self._on_disk else self._write_and_settle()):
            return False
        who = other.get("pid"), other.get("host")
        log.info("process %s on %s is dead; going on in %s in its place", *who, self._path.parent)
        return True

    def _replace(self, other: Mark) -> bool:
        """Replace exactly that mark. A claim file lets one process at a time do so."""
        claim, waited_from = self._path.with_name(f".{MARK}.{other.get('token')}"), time.monotonic()
        while not _make_exclusively(claim, ""):
            time.sleep(0.01)
            if time.monotonic() - waited_from > self._silent_seconds:
                # its owner died
                claim.unlink(missing_ok=True)
        try:
            # another process took over first, and this claim came too late
            if (_read(self._path) or {}).get("token") != other.get("token"):
                return False
            mine = self._path.with_name(f".{MARK}.{self._mark['token']}")
            mine.write_text(json.dumps(self._mark))
            os.replace(mine, self._path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _moves(self, other: Mark) -> bool:
        """Wait and see whether the mark changes. Compares no clocks of two machines."""
        who = other.get("pid"), other.get("host")
        log.info("waiting up to %.0f s for a sign of process %s on %s", self._silent_seconds, *who)
        first, deadline = _pulse(self._path), time.monotonic() + self._silent_seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._silent_seconds / 10))
            if (now := _pulse(self._path)) != first:
                # a mark that vanished was removed by its owner, which ended
                return now is not None
        return False

    def _beat(self) -> None:
        number = 0
        while not self._done.wait(self._beat_seconds):
            number += 1
            try:
                with self._touching:
                    lost = not self._touch(number)
            # the libraries of buckets raise errors of many kinds
            except Exception as error:
                log.warning("%s cannot be touched: %s", self._path, error)
                continue
            if lost:
                self._on_lost()
                return

    def _touch(self, number: int) -> bool:
        """Show that this process lives. Returns: False if the mark is another process's by now."""
        if self._done.is_set():
            return True
        if not self._is_mine():
            # somebody may have removed it
            return self._make()
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
    """Make a file unless it exists. It is not linked into place, since not every disk has links."""
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:  # a full disk
        path.unlink()
        raise
    return True


def _read(path: Path) -> Mark | None:
    """Read the mark; None where there is none, {} where it is unreadable."""
    try:
        mark = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _pulse(path: Path) -> tuple[str, int] | None:
    """Reads a value that changes with every beat. Opening the file makes a network disk refresh its view."""
    try:
        if not isinstance(path, Path):
            return path.read_text(), 0
        with path.open() as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def this_process() -> dict[str, Any]:
    """Describe this process, for JSON. A process number alone may belong to another process later."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "place": this_place(), "process_start": process_start(pid)}


def this_place() -> list[str]:
    """Says where process numbers are comparable: the host, its boot, and a container's namespace."""
    place = [socket.gethostname()]
    with contextlib.suppress(OSError):
        place += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return place


def process_start(pid: int) -> int | None:
    """Ticks from the machine's boot to the start of a process; None where it is gone or this is unknown."""
    try:
        # behind the program's name, which may hold blanks and brackets   [proc(5)]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Z and X: it ended, and its parent has not asked yet
    # field 22 of the file, where fields[0] is field 3
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(process: Mapping[str, Any]) -> bool:
    """Says whether a process of this place still runs, and its number was not reused."""
    if process["process_start"] is not None:
        return process_start(process["pid"]) == process["process_start"]
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
