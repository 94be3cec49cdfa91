"""Indexes the members of tars: where the bytes of each are. The index is kept: a later start reads no headers."""

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from cmjax.data.base import DataError
from cmjax.system.files import AnyPath, is_bucket, read_json_lines, user_cache, write_atomically
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

INDEX = ".tar_index.jsonl"
"""The file of the index beside the tars, a line for each; the dot keeps it out of the data."""

LONGEST_LABEL = 32
"""Bytes of a .cls file, at most."""


class Member(NamedTuple):
    """Says where the bytes of a file in a tar are, and holds the text of a .cls file, which has a label."""

    tar: AnyPath
    name: str
    offset: int
    size: int
    text: str = ""


def read_member(member: Member) -> bytes:
    """Reads a file in a tar."""
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def members_of(tars: Sequence[AnyPath]) -> dict[AnyPath, list[Member]]:
    """Lists the files in each of these tars of one folder, in the tar's order; other members are left out.

    They come from the index of an earlier call where a tar's size and time of change are unchanged; else from the
    headers, which are then added to the index. It lies beside the tars, or in the user's cache where that folder
    cannot be written. Where neither can, a line says so, and the next call reads the headers again.

    Raises: DataError naming the tar that cannot be read. Compressed tars are among these.
    """
    if not tars:
        return {}
    files = _index_files(tars[0].parent)
    known = {line["tar"]: line for file in files for line in _lines(file)}
    lines = [known.get(tar.name, {}) for tar in tars]
    with ThreadPoolExecutor(8, thread_name_prefix="tars") as threads:  # for a bucket, which answers slowly
        stamps = list(threads.map(_stamp, tars))
    unknown = [i for i, stamp in enumerate(stamps) if lines[i].get("stamp") != stamp]
    if unknown:
        with progress("reading the headers of tars", len(unknown)) as update:
            for done, i in enumerate(unknown, 1):
                lines[i] = {"tar": tars[i].name, "stamp": stamps[i], "members": _headers(tars[i])}
                update(done, tars[i].name)
        _write(files, lines)
    return {tar: [Member(tar, *member) for member in line["members"]] for tar, line in zip(tars, lines, strict=True)}


def _index_files(folder: AnyPath) -> list[AnyPath]:
    """Lists the files that may hold the index of a folder's tars, the better place first."""
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return [folder / INDEX, user_cache() / "tars" / f"{key}.jsonl"]


def _lines(file: AnyPath) -> Iterable[dict]:
    """Reads the whole lines of an index; none where it cannot be read: it is only a cache."""
    try:
        lines = read_json_lines(file)
    except OSError:
        return []
    return [line for line in lines if line.keys() == {"tar", "stamp", "members"}]


def _stamp(tar: AnyPath) -> list[float]:
    """Gives the size and the time of change. Another content of the same two would not be noticed."""
    try:
        stat: Any = tar.stat()
        return [stat.length, stat.mtime] if is_bucket(tar) else [stat.st_size, stat.st_mtime]
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error}") from error


def _headers(tar: AnyPath) -> list[tuple[Any, ...]]:
    """Reads name, offset and size of each file in a tar, and the text of those with labels."""
    try:
        # Mode "r:" refuses compressed tars, in which no file can be reached without all before it.
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
            return [_described(opened, member) for member in opened if member.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: cannot be read as an uncompressed tar: {error}") from error


def _described(opened: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[Any, ...]:
    place = member.name, member.offset_data, member.size
    if not member.name.endswith(".cls") or member.size > LONGEST_LABEL:
        return place
    content: Any = opened.extractfile(member)
    return *place, content.read().decode(errors="replace").strip()


def _write(files: Sequence[AnyPath], lines: Iterable[dict]) -> None:
    """Writes the index to the first of the places that can be written."""
    content = "".join(f"{json.dumps(line)}\n" for line in lines)
    for file in files:
        try:
            write_atomically(file, content)
        except OSError as error:
            problem = error
        else:
            if file != files[0]:
                log.info("%s cannot be written; the index of its tars is in %s", files[0].parent, file)
            return
    log.info("the index of the tars in %s cannot be kept (%s); their headers are read again", files[0].parent, problem)
