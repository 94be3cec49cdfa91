"""Reads pickles of containers, text, numbers and NumPy arrays as data: no code in a file is run."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from cmjax.system.unpickle import Global, Machine, Stream, Unbuilt, UnsafeFile, check_key

OTHER_FILES = {
    b"<": "a web page",
    b"PK": "a zip archive, as torch.save writes",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy file",
    b"version https://git-lfs": "a pointer of Git LFS, in place of the file",
}
"""First bytes of files that are often taken for pickles -> what they are."""


def read_pickle(path: str | Path) -> Any:
    """Returns the value of a plain pickle, its arrays read-only.

    Raises: UnsafeFile naming a global that is not part of such a value, nothing having been executed; ValueError saying
            what the file is where it is no pickle, or where it is damaged; OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        return load_pickle(file, path)


def load_pickle(file: BinaryIO, name: str | Path) -> Any:
    """Does the same with an open file, which errors call by `name`."""
    with one_line_errors(name, "a pickle of arrays"):
        return Machine(pickle_source(file), VALUES).load()


@contextmanager
def one_line_errors(path: str | Path, kind: str) -> Iterator[None]:
    """Turns every way in which a file can be wrong into one sentence with its name."""
    try:
        yield
    except UnsafeFile as error:
        message = f"{path} {error}, which is not part of {kind} as this reader knows it; nothing in it was executed"
        raise UnsafeFile(message) from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not {kind}, or is damaged: {error}") from error
    except (LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, OSError, struct.error) as error:
        raise ValueError(f"{path} is not {kind}, or is damaged: it is malformed ({error})") from error


def pickle_source(file: BinaryIO) -> Stream:
    """Opens the whole of a file. Raises: ValueError where it begins as files of another kind do."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    # a web page may begin with blank lines
    head = file.read(64).lstrip()
    file.seek(0)
    if not size:
        raise ValueError("it is empty")
    for start, kind in OTHER_FILES.items():
        if head.startswith(start):
            raise ValueError(f"it is {kind}")
    return Stream(file, size)


def of_type(value: Any, *kinds: type) -> Any:
    """Gives the value itself. Raises: ValueError where it is of none of these types."""
    if type(value) not in kinds:
        raise ValueError(f"it has a {type(value).__name__} where a {kinds[0].__name__} belongs")
    return value


def is_natural(value: Any) -> bool:
    """Says whether a value can be a size, a stride or an offset."""
    return type(value) is int and 0 <= value < 2**62


def booleans(raw: Any) -> np.ndarray:
    """Bytes as those of booleans, which NumPy expects to be 0 or 1."""
    return (np.frombuffer(raw, np.uint8) != 0).view(np.uint8)


def _set(items: Any = ()) -> set[Any]:
    return set(map(check_key, of_type(items, list, tuple)))


def _bytes(data: Any = b"", encoding: Any = "latin1") -> bytes:
    """Protocols below 3 have no bytes and write them as text; never from a number, which would be a length."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("it has bytes that are not understood")
    data = of_type(data, bytes, str, tuple)
    return data if isinstance(data, bytes) else data.encode("latin1") if isinstance(data, str) else bytes(data)


def _dtype(code: Any, *_: Any) -> Unbuilt:
    if not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|c8|c16|b1)", of_type(code, str)):
        raise ValueError("it has a NumPy array of something else than numbers")

    def build(state):
        # (version, byte order, subarray, names, fields, …): of numbers, the middle three are empty   [numpy.dtype]
        if any(field is not None for field in of_type(state, tuple)[2:5]) or state[1] not in ("<", ">", "|", "="):
            raise ValueError("it has a NumPy array of something else than numbers")
        return np.dtype(code).newbyteorder(state[1])

    return Unbuilt(build)


def _array(raw: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    # 32 axes are the most that NumPy 1 has
    if not isinstance(dtype, np.dtype) or not all(map(is_natural, of_type(shape, tuple))) or len(shape) > 32:
        raise ValueError("it has a NumPy array whose shape is not understood")
    # Python 2 wrote text
    raw = _bytes(raw)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError("it has a NumPy array whose shape does not fit its data")
    # an array over the bytes themselves: nothing is copied; NumPy refuses an empty buffer, and None makes one
    array = np.ndarray(shape, dtype, (booleans(raw) if dtype.kind == "b" else raw) if raw else None, order=order)
    array.flags.writeable = False
    return array


def _reconstruct(kind: Any, *_: Any) -> Unbuilt:
    if kind is not NDARRAY:
        raise ValueError("it has a NumPy array of a class of its own")
    # (version, shape, dtype, whether in Fortran's order, bytes)   [numpy.ndarray]
    return Unbuilt(lambda state: _array(state[4], state[2], state[1], "F" if state[3] else "C"))


NDARRAY = Global("numpy.ndarray")
_CALLS = {
    ("collections", "OrderedDict"): lambda pairs=(): {check_key(key): value for key, value in pairs},
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _dtype,
}
for _builtins in ("builtins", "__builtin__"):
    _CALLS |= {(_builtins, "set"): _set, (_builtins, "frozenset"): lambda items=(): frozenset(_set(items))}
    _CALLS |= {(_builtins, "bytes"): _bytes, (_builtins, "bytearray"): _bytes}
for _core in ("numpy.core", "numpy._core"):
    _CALLS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _CALLS[f"{_core}.multiarray", "scalar"] = lambda dtype, raw: _array(raw, dtype, (), "C")[()]
    _CALLS[f"{_core}.numeric", "_frombuffer"] = lambda raw, dtype, shape, order: _array(raw, dtype, shape, order)

VALUES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    **{(module, name): Global(f"{module}.{name}", call) for (module, name), call in _CALLS.items()},
}
"""(module, name) in a pickle -> what it stands for."""
