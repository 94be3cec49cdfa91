"""Paths into .zip files, which are read in place."""

import functools
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO


class ZipPath(PurePosixPath):
    """A file or folder within a .zip file, as images.zip/00000/image.png: to be read, by the methods of `Path`.

    The zip is opened once in a process, and what is read is checked by its checksum.
    """

    @property
    def archive(self) -> str:
        """The path of the .zip file, which is the outermost of this name. Raises: FileNotFoundError."""
        for path in (*reversed(self.parents), self):
            if is_zip(path) and os.path.isfile(path):
                return str(path)
        raise FileNotFoundError(f"{self}: no such file")

    @property
    def within(self) -> str:
        """The name within the .zip file, "" of that itself."""
        return str(self)[len(self.archive) + 1 :]

    def files(self) -> list["ZipPath"]:
        """Lists all files below, in the order of the zip. Raises: zipfile.BadZipFile where it is damaged."""
        archive, start = self.archive, f"{self.within}/" if self.within else ""
        names = [name for name in _opened(archive).NameToInfo if name.startswith(start) and not name.endswith("/")]
        # names that lead out of the zip are nobody's images
        return [type(self)(archive, name) for name in names if ".." not in name.split("/") and name[0] != "/"]

    def is_file(self) -> bool:
        return self.within in _opened(self.archive).NameToInfo if self._in_zip else False

    def is_dir(self) -> bool:
        return self._in_zip and not self.is_file() and (not self.within or bool(self.files()))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    @property
    def _in_zip(self) -> bool:
        return any(is_zip(path) and os.path.isfile(path) for path in (self, *self.parents))

    def expanduser(self) -> "ZipPath":
        return self

    def iterdir(self) -> Iterator["ZipPath"]:
        depth = len(self.parts)
        yield from dict.fromkeys(type(self)(*file.parts[: depth + 1]) for file in self.files())

    def read_bytes(self) -> bytes:
        try:
            return _opened(self.archive).read(self.within)
        except KeyError:
            raise FileNotFoundError(f"{self}: no such file") from None

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        if mode != "rb":
            raise OSError(f"{self}: a file in a .zip is only read")
        return io.BytesIO(self.read_bytes())


def is_zip(path: Any) -> bool:
    """Says whether a path has the name of a .zip file."""
    return PurePosixPath(os.fspath(path)).suffix.lower() == ".zip"


def _opened(archive: str) -> zipfile.ZipFile:
    # a process that was forked would share the place in the file
    return _opened_by(archive, os.getpid())


@functools.lru_cache(maxsize=8)
def _opened_by(archive: str, _process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)
