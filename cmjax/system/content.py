"""Hashes contents, for caches: a kept result is used again while all that it was computed from has the same key.

Its key covers parameters, images, files, settings, and a version of the code. With another key it is computed anew.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmjax.system.files import AnyPath

DIGITS = 16
"""Hexadecimal digits of a key."""


def content_key(*values: Any) -> str:
    """Hash values: arrays by dtype, shape and every byte, mappings and sequences by their items, others by `repr`.

    Arrays may lie on the devices of several processes; every process must call then, and has the same key.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()[:DIGITS]


def files_key(files: Iterable[AnyPath]) -> str:
    """Hash the content of files in their order, not their names. Raises: OSError."""
    # reading from a bucket or a network disk mostly waits
    with ThreadPoolExecutor(8, thread_name_prefix="content") as threads:
        return content_key(*threads.map(_file_key, files))


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        # kind and length first: other nestings of the same values must not give the same bytes
        digest.update(b"{%d" % len(value))
        # the order in which names were put in is no content
        for name in sorted(value):
            _add(digest, name)
            _add(digest, value[name])
    elif isinstance(value, list | tuple):
        digest.update(b"[%d" % len(value))
        for one in value:
            _add(digest, one)
    elif isinstance(value, np.ndarray | jax.Array):
        # a part of the array would give every process another key
        if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
            value = multihost_utils.process_allgather(value, tiled=True)
        array = np.ascontiguousarray(value)
        # not the array's shape: a scalar has become a row of one
        digest.update(f"{array.dtype.name}{value.shape}".encode())
        # the bytes by element, however the array lay in memory
        digest.update(array.reshape(-1).view(np.uint8))
    else:
        digest.update(f"{value!r};".encode())


def _file_key(file: AnyPath) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
