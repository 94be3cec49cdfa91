"""Files and folders, on a disk or in a bucket: a kill or a full disk leaves the old content or the new, never a part.

A path is a `pathlib.Path`, or the `etils.epath.Path` of a bucket, which has the same methods.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from cmjax.system.errors import UserError
from cmjax.system.libraries import require

if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = PurePath
"""The type of a path for runtime checks: a bucket's has the methods of `Path`, but is no instance."""


class PathError(UserError, ValueError):
    """A path that cannot be reached; the message has the path."""


def is_address(text: str | os.PathLike[str]) -> bool:
    """Says whether it is the address of a model that is fetched, hf://owner/name or cmjax://name."""
    return str(text).startswith(("hf://", "cmjax://"))


def path_problem(text: str) -> str | None:
    """Says what is wrong with the name of a file or folder; None where nothing is."""
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text):
        if scheme[1] == "file":
            return "write it without file://"
        if not is_bucket(text):
            return f"{scheme[1]}:// can be neither read nor written here: name a folder of a disk, or of gs://"
    if not text.isprintable():
        return "holds a character that cannot be seen"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"there is no user {text.split('/')[0].removeprefix('~')}"
    return None


def to_path(path: str | os.PathLike[str]) -> Path:
    """Gives the path of a file or folder, a bucket's as gs://bucket/name; ~ is the user's home.

    Raises: PathError where it is none; MissingLibrary where it is a bucket's, and what reaches buckets is missing.
    """
    if problem := path_problem(os.fspath(path)):
        raise PathError(f"{os.fspath(path)!r}: {problem}")
    if not is_bucket(path):
        return Path(path).expanduser()
    from etils import epath

    require("gcsfs", f"{path}: a bucket")
    return cast(Path, epath.Path(path))


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Says whether a path is in an object store, which can neither rename nor append."""
    return os.fspath(path).startswith("gs://")


def ask_bucket(path: Path) -> None:
    """List one object of the path's bucket, to see whether it answers. Raises: any error of its library."""
    bucket = str(path).removeprefix("gs://").partition("/")[0]
    _bucket_files().call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)


def files_below(folder: Path, skip: Callable[[str], bool] = lambda name: False) -> list[Path]:
    """Lists all files in a folder and its subfolders, sorted. skip: whether to leave out what has this name.

    Links are followed; a folder that several lead to is read once in each subfolder of `folder`, so that circles end.
    A link that leads nowhere is among the files: who opens it says so.
    """
    # here, not above: most programs read no zip
    from cmjax.system.zips import ZipPath

    if isinstance(folder, ZipPath):
        within = (path for path in folder.files() if not any(map(skip, path.relative_to(folder).parts)))
        return cast(list[Path], sorted(within))
    if is_bucket(folder):
        # in one request, where walking asks for each subfolder
        paths = [to_path(f"gs://{name}") for name in sorted(_bucket_files().find(str(folder)))]
        return [path for path in paths if not any(map(skip, path.relative_to(folder).parts))]
    return sorted(iterate_files(folder, skip))


def iterate_files(
    folder: str | Path, skip: Callable[[str], bool] = lambda name: False, read: set[str] | None = None
) -> Iterator[Path]:
    """Does the same as `files_below` for a folder on a disk, as an iterator. read: the folders that were read
    already."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if skip(entry.name):
                continue
            # of a link `isdir`: `is_dir` raises for one that leads to itself
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry)):
                known = {os.path.realpath(folder)} if read is None else read
                # by real path: links may lead to one folder twice, or in a circle
                if (real := os.path.realpath(entry)) not in known:
                    known.add(real)
                    yield from iterate_files(entry.path, skip, known)
            elif entry.is_symlink() or entry.is_file():
                yield Path(entry.path)


def _bucket_files() -> Any:
    import fsspec

    return fsspec.filesystem("gs")


def absolute(path: Path) -> Path:
    """Gives the path from the root of the disk; a bucket's is one already."""
    return path if is_bucket(path) else path.absolute()


def cache_of(workdir: Path) -> Path:
    """Gives the cache folder of a run: `.cache` beside it, where training made that, else the user's cache, so that
    nothing appears beside a run that was moved."""
    beside = absolute(workdir).parent / ".cache"
    # in a bucket nothing is asked: each question would be a request
    if is_bucket(workdir) or (beside.is_dir() and os.access(beside, os.W_OK)):
        return beside
    return user_cache()


def user_cache() -> Path:
    """Gives the cache folder of the user, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cmjax"


def make_cache(workdir: Path) -> None:
    """Make `.cache` beside a run that trains, if its parent can be written."""
    if not is_bucket(workdir):
        with contextlib.suppress(OSError):
            (absolute(workdir).parent / ".cache").mkdir(parents=True, exist_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Make `path` hold `content`, or leave it as it was. Its folder is made where missing.

    Raises: OSError where the folder cannot be made or written.
    """
    path, content = to_path(path), content.encode() if isinstance(content, str) else content
    if is_bucket(path):
        # an object appears whole
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # a unique name: several hosts may share the folder
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        # gone where the move succeeded; a full disk leaves a part of it
        temporary.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and its content, if it exists."""
    if not is_bucket(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        cast(Any, path).rmtree()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder, which becomes `folder`, absent or empty, when the block ends: the whole folder or nothing.

    A bucket has no rename: there it is `folder` itself. Raises: OSError where it cannot be made or moved.
    """
    if is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    # a kill may have left one
    partial = folder.with_name(f".{folder.name}.partial")
    remove_folder(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            # it is empty; a rename may refuse a folder that exists
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        remove_folder(partial)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; files that vanish meanwhile count as 0."""
    try:
        if path.is_dir():
            return sum(map(size_of, path.iterdir()))
        stat: Any = path.stat()
    except FileNotFoundError:
        return 0
    return stat.length if is_bucket(path) else stat.st_size


def changed_at(path: Path) -> float:
    """Gives the time when a file was last written, in seconds since 1970."""
    stat: Any = path.stat()
    return stat.mtime if is_bucket(path) else stat.st_mtime


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; {} where there is no file, or a kill cut it short."""
    return next(iter(read_json_lines(path, whole=True)), {})


def read_json_lines(path: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line, without lines that a kill cut short; [] where there is no file. whole: the
    file is one object instead."""
    text, values = path.read_bytes().decode(errors="replace") if path.exists() else "", []
    for part in [text] if whole else text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            values.append(json.loads(part))
    return [value for value in values if isinstance(value, dict)]


def to_json(value: Any) -> str:
    """Write a value as indented JSON; what JSON has no word for becomes its `str`."""
    return json.dumps(value, indent=2, default=str) + "\n"
