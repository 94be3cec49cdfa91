"""The arrays of an .npz file, in memory or mapped from where they lie in it."""

import logging
import struct
import zipfile

import numpy as np

from cmjax.data.base import DataError
from cmjax.machine.files import AnyPath, is_bucket

log = logging.getLogger(__name__)


def read_npz(path: AnyPath, *, memory_limit_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; pickled objects are refused, for they can run code.

    Args:   memory_limit_bytes: the arrays of a larger file are mapped, where it lies on a disk and is not compressed.
    Raises: DataError where there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise DataError(f'{path}: no such file; give the path of an .npz with an array "images"')
    try:
        if not is_bucket(path) and path.stat().st_size > memory_limit_bytes:
            if (mapped := _mapped(path)) is not None:
                return mapped
            log.warning("%s is compressed, and is read into memory whole; np.savez writes files that are not", path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
            return {name: contents[name] for name in contents.files}
    except MemoryError as error:
        raise DataError(f"{path}: {error}; lower config.data.memory_limit_gb") from error
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz of plain arrays: {error}") from error


def _mapped(path: AnyPath) -> dict[str, np.ndarray] | None:
    """Each array where it lies in the file; None where one is compressed."""
    arrays = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as members:
        for member in members.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                return None
            file.seek(member.header_offset)
            name_size, extra_size = struct.unpack("<26x2H", file.read(30))  # [APPNOTE.TXT, sec. 4.3.7]
            file.seek(name_size + extra_size, 1)
            version = np.lib.format.read_magic(file)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, fortran, dtype = read_header(file)
            if dtype.hasobject:
                raise ValueError(f"{member.filename} holds Python objects")
            order = "F" if fortran else "C"
            arrays[member.filename.removesuffix(".npy")] = np.memmap(
                path, dtype, "r", offset=file.tell(), shape=shape, order=order
            )
    return arrays
