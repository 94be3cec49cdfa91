"""PyTorch's files as data, never code: what torch.save writes, and NVIDIA's pickles of networks.

Nothing in a file is imported or executed, whatever it says; neither PyTorch nor the classes it names are needed.
"""

import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmjax.interop.modules import OBJECTS, init_arguments, non_finite, state_dict
from cmjax.interop.tensors import VALUES, Storage, booleans, storage_of
from cmjax.interop.unpickle import Global, Machine, Module, Source, UnsafeFile

__all__ = [
    "Module",
    "UnsafeFile",
    "init_arguments",
    "non_finite",
    "read_persistent",
    "read_pickle",
    "read_torch",
    "state_dict",
]

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""How torch.save's legacy format begins."""

OTHER_FILES = {
    b"<": "a web page",
    b"PK": "a zip archive, as torch.save writes",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy file",
    b"version https://git-lfs": "a pointer of Git LFS, in place of the file",
}
"""How files begin that are taken for checkpoints."""


def read_torch(path: str | Path) -> Any:
    """What torch.save wrote, in its zip format or the one before PyTorch 1.6.

    Returns: dictionaries, lists, tuples, sets, text and numbers; tensors and parameters as read-only arrays of their
             dtype (bfloat16 is ml_dtypes'), which may share memory; dtypes and devices as text; networks as `Module`.
    Raises:  UnsafeFile naming a global that is not one of these, nothing having been executed; ValueError saying what
             the file is where it is not torch.save's, or where it is damaged; OSError where it cannot be opened.
    """
    with open(path, "rb") as file, _reading(path, "a file of torch.save"):
        size = os.fstat(file.fileno()).st_size
        if _head(file).startswith(b"PK"):
            return _read_zip(file, size)
        _refuse_others(file)
        return _read_legacy(Source(file, size), TABLE)


def read_persistent(path: str | Path) -> Any:
    """What NVIDIA's EDM and EDM2 pickled: a dictionary of networks, `{"ema": Module, …}`, and of their data's options.

    Returns: as `read_torch`. The source code that such a file carries is left out.
    Raises:  as `read_torch`; ValueError also where there is no network in it.
    """
    with open(path, "rb") as file, _reading(path, "a pickle of EDM's networks"):
        _refuse_others(file)
        found = Machine(Source(file, os.fstat(file.fileno()).st_size), TABLE).load()
        if type(found) is int and found == MAGIC:
            raise ValueError("it is a file of torch.save, which read_torch reads")
        if not any(isinstance(value, Module) for value in (found.values() if type(found) is dict else [found])):
            raise ValueError(f"it holds a {type(found).__name__} without a network")
        return found


def read_pickle(path: str | Path) -> Any:
    """A plain pickle of dictionaries, lists, text, numbers and NumPy arrays, as data.

    Raises: as `read_torch`.
    """
    with open(path, "rb") as file, _reading(path, "a pickle of arrays"):
        _refuse_others(file)
        return Machine(Source(file, os.fstat(file.fileno()).st_size), VALUES).load()


@contextmanager
def _reading(path: str | Path, kind: str) -> Iterator[None]:
    """Every way in which a file can be wrong, as one sentence with its name."""
    try:
        yield
    except UnsafeFile as error:
        message = f"{path} {error}, which is not part of {kind} as this reader knows it; nothing in it was executed"
        raise UnsafeFile(message) from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not {kind}, or is damaged: {error}") from error
    except (LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, OSError, struct.error) as error:
        raise ValueError(f"{path} is not {kind}, or is damaged: it is malformed ({error})") from error


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    return head


def _refuse_others(file: BinaryIO) -> None:
    head = _head(file)
    if not head:
        raise ValueError("it is empty")
    for start, kind in OTHER_FILES.items():
        if head.lstrip().startswith(start):
            raise ValueError(f"it is {kind}")


def _read_zip(file: BinaryIO, size: int) -> Any:
    """`NAME/data.pkl` and the storages `NAME/data/KEY`, each read once."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive without data.pkl" if not pickles else "it has several data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in archive.infolist()):
            raise ValueError("its zip archive is compressed or encrypted, which torch.save never does")
        if sum(info.file_size for info in archive.infolist()) > size:
            raise ValueError("its zip archive claims more content than it has")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in members:
            raise ValueError("it is a TorchScript program, not the tensors of one")
        if f"{prefix}byteorder" in members and archive.read(f"{prefix}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        storages: dict[str, Storage] = {}

        def persistent(identity: Any) -> Storage:
            key, dtype, count = storage_of(identity, 5)
            if key not in storages:
                if f"{prefix}data/{key}" not in members:
                    raise ValueError("a storage that it refers to is missing")
                raw = archive.read(f"{prefix}data/{key}")
                storages[key] = Storage(dtype, count, booleans(raw) if dtype.kind == "b" else raw)
            return _same(storages[key], dtype, count)

        data = archive.read(pickles[0])
        return Machine(Source(io.BytesIO(data), len(data)), TABLE, persistent).load()


def _same(storage: Storage, dtype: np.dtype, count: int) -> Storage:
    if (storage.dtype, storage.count) != (dtype, count) or len(storage.raw) != count * dtype.itemsize:
        raise ValueError("a storage in it has another size than it says")
    return storage


def _read_legacy(source: Source, table: Mapping[tuple[str, str], Any]) -> Any:
    """Five pickles (magic number, version, the machine, the object, keys), then the storages in the keys' order."""
    storages: dict[str, Storage] = {}
    room = source.size

    def persistent(identity: Any) -> Storage:
        nonlocal room
        key, dtype, count = storage_of(identity, 6)
        if key not in storages:
            room -= count * dtype.itemsize
            if room < 0:
                raise ValueError("its storages are larger than the file")
            # Tensors are views of the memory, which is filled below.
            storages[key] = Storage(dtype, count, np.zeros(count * dtype.itemsize, np.uint8))
        return _same(storages[key], dtype, count)

    magic = Machine(source, table).load()
    if type(magic) is not int or magic != MAGIC or Machine(source, table).load() != VERSION:
        raise ValueError("it is a pickle of something else")
    machine = Machine(source, table).load()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    found = Machine(source, table, persistent).load()
    keys = Machine(source, table).load()
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages does not fit its tensors")
    for key in keys:
        storage = storages[key]
        if struct.unpack("<q", source.read(8))[0] != storage.count:
            raise ValueError("a storage in it has another size than it says")
        raw = source.read(storage.count * storage.dtype.itemsize)
        storage.raw[:] = booleans(raw) if storage.dtype.kind == "b" else np.frombuffer(raw, np.uint8)
    return found


def _storage_in(data: Any) -> Storage:
    """A storage that torch.save wrote into a pickle; within it there is no other such file."""
    if type(data) is not bytes:
        raise ValueError("a storage in it is not made of bytes")
    storage = _read_legacy(Source(io.BytesIO(data), len(data)), VALUES)
    if not isinstance(storage, Storage):
        raise ValueError("it has a file within it that is not a storage")
    return storage


TABLE = {
    **VALUES,
    **OBJECTS,
    ("torch.storage", "_load_from_bytes"): Global("torch.storage._load_from_bytes", _storage_in),
}
"""All that a file can name."""
