"""The arrays of an .npz file, in memory or mapped from where they lie in it."""

import logging
import struct
import zipfile

import numpy as np

from cmjax.data.base import DataError
from cmjax.system.files import AnyPath, is_bucket
from cmjax.system.npz import check_head, load_npz, read_header

log = logging.getLogger(__name__)


def read_npz(path: AnyPath, *, memory_limit_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Python objects are refused, because reading them can run code.

    Args:   memory_limit_bytes: the arrays of a larger file are mapped, where it lies on a disk and is not compressed.
    Raises: DataError where there is no such file, or it cannot be read.
    """
    check_is_file(path)
    try:
        if not is_bucket(path) and path.stat().st_size > memory_limit_bytes:
            if (mapped := _mapped(path)) is not None:
                return mapped
            log.warning("%s is compressed, and is read into memory whole; np.savez writes files that are not", path)
        return load_npz(path)
    except MemoryError as error:
        raise DataError(f"{path}: {error}; lower config.data.memory_limit_gb") from error
    except ValueError as error:
        raise DataError(str(error)) from error
    except (EOFError, struct.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is damaged, or only a part of it is here") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_is_file(path: AnyPath) -> None:
    """Raise DataError where there is no file at `path`."""
    if path.is_dir():
        raise DataError(f'{path}: is a folder; give the path of an .npz with an array "images"')
    if not path.is_file():
        raise DataError(f'{path}: no such file; give the path of an .npz with an array "images"')


def _mapped(path: AnyPath) -> dict[str, np.ndarray] | None:
    """Each array where it lies in the file; None where one is compressed."""
    arrays = {}
    with path.open("rb") as file:
        check_head(path, file.read(6))
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
