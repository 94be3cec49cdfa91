"""Checksums beside a checkpoint: Orbax restores flipped bits silently."""

import json
import threading
import zlib
from pathlib import Path

from cmjax.system.files import to_json, write_atomically

CHECKSUMS = "checksums.json"


def write_checksums_once_committed(step_folder: Path, gave_up: threading.Event) -> None:
    """Orbax commits by renaming a finished folder to `step_folder`: once that exists, its files are complete."""
    while not step_folder.is_dir():
        if gave_up.wait(0.02):
            return
    write_checksums(step_folder)


def write_checksums(step_folder: Path) -> None:
    """Write the checksum of every file of a checkpoint beside them."""
    checksums = {str(path.relative_to(step_folder)): _crc32(path) for path in _files(step_folder)}
    write_atomically(step_folder / CHECKSUMS, to_json(checksums))


def verify_checksums(step_folder: Path) -> None:
    """Compare every file of a checkpoint with its checksum.

    A checkpoint whose checksums were never written (the process was killed just after the commit) passes.

    Raises: ValueError naming the file that is missing or has changed.
    """
    recorded = step_folder / CHECKSUMS
    if not recorded.exists():
        return
    for name, expected in json.loads(recorded.read_text()).items():
        path = step_folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if _crc32(path) != expected:
            raise ValueError(f"{name} has changed since it was written")


def _files(step_folder: Path) -> list[Path]:
    return sorted(p for p in step_folder.rglob("*") if p.is_file() and CHECKSUMS not in p.name)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
