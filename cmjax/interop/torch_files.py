"""Reads PyTorch's files as data, never code: what torch.save writes, and NVIDIA's pickles of networks.

Nothing in a file is imported or executed, whatever it says; neither PyTorch nor the classes it names are needed.
"""

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmjax.interop.modules import OBJECTS
from cmjax.interop.tensors import TENSORS, Storage, storage_of
from cmjax.system.pickles import booleans, one_line_errors, pickle_source
from cmjax.system.unpickle import Global, Machine, PickledObject, Stream

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""The first two values in torch.save's legacy format."""


def read_torch(path: str | Path) -> Any:
    """Reads what torch.save wrote, in its zip format or the one before PyTorch 1.6.

    Returns: dictionaries, lists, tuples, sets, text and numbers; tensors and parameters as read-only arrays of their
             dtype (bfloat16 is ml_dtypes'), which may share memory; dtypes and devices as text; networks as
             `PickledObject`.
    Raises:  UnsafeFile naming a global that is not one of these, nothing having been executed; ValueError saying what
             the file is where it is not torch.save's, or where it is damaged; OSError where it cannot be opened.
    """
    with open(path, "rb") as file, one_line_errors(path, "a file of torch.save"):
        if file.read(2) == b"PK":
            return _read_zip(file, os.fstat(file.fileno()).st_size)
        return _read_legacy(pickle_source(file), TABLE)


def read_persistent(path: str | Path) -> Any:
    """Reads what NVIDIA's EDM and EDM2 pickled: `{"ema": PickledObject, …}`, networks and their data's options.

    Returns: as `read_torch`. The source code that such a file carries is left out.
    Raises:  as `read_torch`; ValueError also where there is no network in it.
    """
    with open(path, "rb") as file, one_line_errors(path, "a pickle of EDM's networks"):
        content = Machine(pickle_source(file), TABLE).load()
        if type(content) is int and content == MAGIC:
            raise ValueError("it is a file of torch.save, which read_torch reads")
        values = content.values() if type(content) is dict else [content]
        if not any(isinstance(value, PickledObject) for value in values):
            raise ValueError(f"it holds a {type(content).__name__} without a network")
        return content


def _read_zip(file: BinaryIO, size: int) -> Any:
    """Reads `NAME/data.pkl` and the storages `NAME/data/KEY`, each once."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive without data.pkl" if not pickles else "it has several data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in archive.infolist()):
            raise ValueError("its zip archive is compressed or encrypted, which torch.save never does")
        # Members that are stored as they are can only hold more than the file where they overlap, as a zip bomb's do.
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
        return Machine(Stream(io.BytesIO(data), len(data)), TABLE, persistent).load()


def _same(storage: Storage, dtype: np.dtype, count: int) -> Storage:
    if (storage.dtype, storage.count) != (dtype, count) or len(storage.raw) != count * dtype.itemsize:
        raise ValueError("a storage in it has another size than it says")
    return storage


def _read_legacy(source: Stream, table: Mapping[tuple[str, str], Any]) -> Any:
    """Reads five pickles (magic number, version, machine, object, keys), then the storages in the keys' order."""
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
    content = Machine(source, table, persistent).load()
    keys = Machine(source, table).load()
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages does not fit its tensors")
    for key in keys:
        storage = storages[key]
        if struct.unpack("<q", source.read(8))[0] != storage.count:
            raise ValueError("a storage in it has another size than it says")
        raw = source.read(storage.count * storage.dtype.itemsize)
        storage.raw[:] = booleans(raw) if storage.dtype.kind == "b" else np.frombuffer(raw, np.uint8)
    return content


def _storage_in(data: Any) -> Storage:
    """Reads a storage that torch.save wrote into a pickle; within it there is no other such file."""
    if type(data) is not bytes:
        raise ValueError("a storage in it is not made of bytes")
    storage = _read_legacy(Stream(io.BytesIO(data), len(data)), TENSORS)
    if not isinstance(storage, Storage):
        raise ValueError("it has a file within it that is not a storage")
    return storage


TABLE = {
    **TENSORS,
    **OBJECTS,
    ("torch.storage", "_load_from_bytes"): Global("torch.storage._load_from_bytes", _storage_in),
}
"""(module, name) -> its value or function: all that a file can name."""
