"""Sources that decode their examples each time, and those small enough to be decoded once."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmjax.data.base import ArraySource, Source
from cmjax.data.damage import Damage

MEMORY_LIMIT_BYTES = 4 * 10**9
"""Sources that take no more than this once decoded are kept in memory."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are)."""


@dataclass(frozen=True)
class OnDemandSource:
    """Examples decoded each time they are asked for.

    Args: read: does what `Source.gather` says, and can be sent to another process. damage: where `read` notes the
          examples that cannot be decoded.
    """

    shape: tuple[int, int, int]
    num_classes: int | None
    length: int
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    damage: Damage

    def __len__(self) -> int:
        return self.length

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        return self.read(indices)


def loaded_if_small(
    source: OnDemandSource, description: str, progress: Progress | None, *, memory_limit_bytes: int
) -> Source:
    """The source decoded into memory, where it takes no more than `memory_limit_bytes` there, else as it is.

    Raises: DataError where none of its examples can be decoded.
    """
    if len(source) * int(np.prod(source.shape)) <= memory_limit_bytes:
        return load(source, description, progress)
    source.gather(np.zeros(1, np.int64))
    return source


def load(source: OnDemandSource, description: str, progress: Progress | None, *, chunk: int = 4096) -> ArraySource:
    """Decode the whole source once."""
    images = np.empty((len(source), *source.shape), np.uint8)
    labels = None if source.num_classes is None else np.empty(len(source), np.int32)
    for start in range(0, len(source), chunk):
        rows = slice(start, min(start + chunk, len(source)))
        batch = source.gather(np.arange(rows.start, rows.stop))
        images[rows] = batch["image"]
        if labels is not None:
            labels[rows] = batch["label"]
        if progress is not None:
            progress(description, rows.stop, len(source))
    return ArraySource(images, labels, source.num_classes)


def parallel_map(function: Callable[[Any], Any], items: Sequence[Any], *, run: int = 32) -> list[Any]:
    """[function(item) for item in items] on the decoding threads, which take `run` items at a time."""

    def apply(part: Iterable[Any]) -> list[Any]:
        return [function(item) for item in part]

    parts = [items[start : start + run] for start in range(0, len(items), run)]
    return [result for results in _decoding_threads().map(apply, parts) for result in results]


@functools.cache
def _decoding_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="decode")
