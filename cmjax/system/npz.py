"""The .npz files of plain arrays: their bytes, and reading them, with errors that say what a file is instead."""

import io
import logging
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any, TypeVar

import numpy as np

from cmjax.system.files import AnyPath, is_bucket, write_atomically

log = logging.getLogger(__name__)

T = TypeVar("T")


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Gives the content of an .npz file of these arrays."""
    content = io.BytesIO()
    np.savez(content, **dict[str, Any](arrays))
    return content.getvalue()


def load_npz(
    path: AnyPath, *, without: Collection[str] = (), memory_limit_bytes: float = math.inf
) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file by name, but those in `without`. Python objects are refused: they can run code.

    The arrays of a file larger than `memory_limit_bytes` are mapped, where it lies on a disk and is not compressed.

    Raises: ValueError naming the file and what is wrong with it; OSError where it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(6)
        if head == b"\x93NUMPY":
            raise ValueError(f"{path}: is an .npy file, which holds one array; save an .npz by numpy.savez")
        if not head.startswith(b"PK"):
            raise ValueError(f"{path}: is no .npz file; numpy.savez writes one")
        file.seek(0)
        try:
            # only a file on a disk can be mapped
            if not is_bucket(path) and path.stat().st_size > memory_limit_bytes:
                if (mapped := _mapped(path, file)) is not None:
                    return mapped
                log.warning("%s is compressed, and is read into memory whole; np.savez writes files that are not", path)
            with zipfile.ZipFile(file) as members:
                names = {name.removesuffix(".npy"): name for name in members.namelist()}
                return {name: _array(path, members, names[name]) for name in names if name not in without}
        except (OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: is damaged, or only a part of it is here") from error


def load_cached(path: AnyPath, make: Callable[[dict[str, np.ndarray]], T]) -> T | None:
    """Makes a thing of the arrays of a cached .npz file; None where there is no file, or none that can be read."""
    try:
        return make(load_npz(path))
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file fails in many ways, and making it anew answers them all
        log.warning("%s cannot be read, and is made anew: %s", path, error)
        return None


def save_cached(path: AnyPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays to an .npz file that only saves time: where that fails, a warning is logged."""
    try:
        write_atomically(path, npz_bytes(arrays))
    except OSError as error:
        log.warning("%s is not written: %s", path, error.strerror or error)


def read_header(path: AnyPath, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the shape, the order (True for Fortran's) and the dtype of the array that begins here in a file.

    Raises: ValueError where it is no array, or an array of Python objects.
    """
    try:
        # NumPy has a public reader of versions 1 and 2 alone; 3 is of structured arrays with other than Latin names
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{path}: "{name}" is no array; numpy.savez writes an .npz of arrays') from error
    if dtype.hasobject:
        raise ValueError(f'{path}: "{name}" holds Python objects, which are not read; save plain arrays')
    return shape, fortran, dtype


def _array(path: AnyPath, members: zipfile.ZipFile, name: str) -> Any:
    # first: NumPy's error for Python objects is a ValueError too, as that of a damaged file
    with members.open(name) as file:
        read_header(path, name.removesuffix(".npy"), file)
    with members.open(name) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:  # fewer bytes than the header states
            shown = name.removesuffix(".npy")
            raise ValueError(f'{path}: "{shown}" is damaged, or only a part of it is here') from error


def _mapped(path: AnyPath, file: IO[bytes]) -> dict[str, np.ndarray] | None:
    """Maps each array where it lies in the file; None where one is compressed."""
    arrays = {}
    for member in zipfile.ZipFile(file).infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(member.header_offset)
        name_size, extra_size = struct.unpack("<26x2H", file.read(30))  # [APPNOTE.TXT, sec. 4.3.7]
        file.seek(name_size + extra_size, 1)
        name = member.filename.removesuffix(".npy")
        shape, fortran, dtype = read_header(path, name, file)
        order = "F" if fortran else "C"
        arrays[name] = np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=order)
    return arrays
