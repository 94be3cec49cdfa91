"""Sources that decode their examples when asked, and keep them where they are small; keys of a source's content."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmjax.data.base import ArraySource, DataError, OfAnother, Source, Subset
from cmjax.data.damage import Damage
from cmjax.system.content import content_key
from cmjax.system.memory import GIB, free_on_host

MEMORY_LIMIT_BYTES = 4 * 10**9
"""Sources that take no more than this once decoded are kept in memory."""

CHUNK = 4096
"""Examples decoded at a time, where many are asked for."""


@dataclass(frozen=True)
class OnDemandSource:
    """Examples decoded each time they are asked for.

    Args: read: does what `Source.gather` says, and can be sent to another process. damage: where `read` notes the
          examples that cannot be decoded. class_names, labels: as `base.class_names` and `base.known_labels` give them.
          key: of the files that it reads, as `fingerprint` needs it.
    """

    shape: tuple[int, int, int]
    num_classes: int | None
    length: int
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    damage: Damage
    class_names: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    key: Callable[[], str] | None = None

    def __len__(self) -> int:
        return self.length

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        return self.read(indices)


@dataclass(frozen=True)
class KeptSource(OfAnother):
    """Examples decoded when they are first asked for, and kept in memory from then on. Threads may use it together.

    Raises: DataError where there is too little memory for all of them.
    """

    source: OnDemandSource
    images: np.ndarray = field(init=False, repr=False)
    labels: np.ndarray = field(init=False, repr=False)
    kept: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        shape = (len(self.source), *self.source.shape)
        needed, free = math.prod(shape), free_on_host()
        try:
            if free is not None and needed > free:  # the pages of an array are taken only when it is written
                raise MemoryError(f"{needed / GIB:.1f} GiB of images, and {free / GIB:.1f} GiB of memory are free")
            images = np.empty(shape, np.uint8)
        except MemoryError as error:
            raise DataError(f"{self.source.damage.where}: {error}; lower config.data.memory_limit_gb") from error
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", np.empty(len(self.source), np.int32))
        object.__setattr__(self, "kept", np.zeros(len(self.source), bool))

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        new = np.unique(indices[~self.kept[indices]])
        for start in range(0, len(new), CHUNK):
            self._keep(new[start : start + CHUNK])
        batch = {"image": self.images[indices]}
        if self.num_classes is not None:
            batch["label"] = self.labels[indices]
        return batch

    def _keep(self, rows: np.ndarray) -> None:
        batch = self.source.gather(rows)
        self.images[rows] = batch["image"]
        if self.num_classes is not None:
            self.labels[rows] = batch["label"]
        self.kept[rows] = True  # last: another thread may read them now


def kept_if_small(source: OnDemandSource, *, memory_limit_bytes: int) -> Source:
    """Keeps what a source decodes where all of it takes no more than `memory_limit_bytes`. One example is
    read.

    Raises: DataError where none of its examples can be decoded, or there is no memory for what it is to keep.
    """
    small = len(source) * math.prod(source.shape) <= memory_limit_bytes
    chosen = KeptSource(source) if small else source
    chosen.gather(np.zeros(1, np.int64))
    return chosen


def fingerprint(source: Source) -> str:
    """Computes a key that differs where any image or label of a source does, or their order.

    Arrays are read whole; of examples that are decoded when they are asked for the files are read and nothing is
    decoded; any other source gives all its examples.
    """
    if isinstance(source, ArraySource):
        return content_key(source.images, source.labels, source.num_classes)
    if isinstance(source, Subset):
        return content_key(fingerprint(source.source), source.rows)
    if isinstance(source, KeptSource):
        return fingerprint(source.source)
    if isinstance(source, OnDemandSource) and source.key is not None:
        return content_key(source.key(), source.shape, source.num_classes, source.length)
    starts = range(0, len(source), CHUNK)
    batches = (source.gather(np.arange(start, min(start + CHUNK, len(source)))) for start in starts)
    return content_key(source.num_classes, *(content_key(batch) for batch in batches))


def parallel_map(function: Callable[[Any], Any], items: Sequence[Any], *, run: int = 32) -> list[Any]:
    """Maps items on the decoding threads, which take `run` items at a time."""

    def apply(part: Iterable[Any]) -> list[Any]:
        return [function(item) for item in part]

    parts = [items[start : start + run] for start in range(0, len(items), run)]
    return [result for results in _decoding_threads().map(apply, parts) for result in results]


@functools.cache
def _decoding_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="decode")
