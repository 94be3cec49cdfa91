"""Sources that decode their examples when asked, and keep them where they are small; damaged examples; keys of a
source's content."""

import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from cmjax.data.base import ArraySource, DataError, OfAnother, Source, Subset
from cmjax.system.content import content_key
from cmjax.system.memory import GIB, free_on_host

log = logging.getLogger(__name__)

Example = TypeVar("Example")

MEMORY_LIMIT_BYTES = 4 * 10**9
"""Sources that take no more than this once decoded are kept in memory."""

CHUNK = 4096
"""Examples decoded at a time, where many are asked for."""

LAST = 3
"""Damaged examples that an error names."""


class Damage:
    """Counts the damaged examples of one data set. A copy in another process counts by itself and logs nothing.

    Args: where: the data set, for messages. limit: how many there may be; None: any number.
    """

    def __init__(self, where: str, limit: int | None, *, silent: bool = False):
        self.where, self.limit, self.silent = where, limit, silent
        self._reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        # The process that trains has a lock and a log of its own, and gets what a copy counted by `take`.
        return functools.partial(Damage, silent=True), (self.where, self.limit)

    def note(self, name: str, why: str) -> None:
        """Counts an example, and logs once that another one replaces it.

        Raises: DataError where there are more of them than the limit.
        """
        with self._lock:
            known = name in self._reasons
            if not known:
                self._reasons[name] = self._new[name] = why
            last, count = list(self._reasons.items())[-LAST:], len(self._reasons)
        if self.limit is not None and count > self.limit:
            reasons = "; ".join(f"{name}: {why}" for name, why in last)
            raise DataError(
                f"{self.where}: {count} examples cannot be read; repair or remove them, or allow more by "
                f"config.data.max_corrupt, which is {self.limit}. The last: {reasons}"
            )
        if not (known or self.silent):
            log.warning("%s: %s cannot be read (%s); another example replaces it", self.where, name, why)

    def take(self) -> dict[str, str]:
        """Gives the examples noted since this was last asked, with the reasons."""
        with self._lock:
            taken, self._new = self._new, {}
        return taken


@dataclass(frozen=True, kw_only=True)
class OnDemandSource:
    """Examples decoded each time they are asked for, by `gather` of a subclass, which is sent to other processes whole.

    Args: length: of the source. damage: where `first_whole` notes the examples that cannot be decoded. class_names,
          labels: as `base.class_names` and `base.known_labels` give them.
    """

    shape: tuple[int, int, int]
    length: int
    damage: Damage
    class_names: tuple[str, ...] | None = None
    labels: np.ndarray | None = None

    @property
    def num_classes(self) -> int | None:
        """The number of class names; None without."""
        return None if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return self.length

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        raise NotImplementedError

    def key(self) -> str | None:
        """Computes a key of the files that are read, for `fingerprint`; None where there is none."""
        return None

    def name(self, index: int) -> str:
        """Gives the name of an example in messages."""
        return f"record {index}"

    def first_whole(self, decode: Callable[[int], Example], index: int) -> Example:
        """Decodes the example at `index`, or the next one that can be decoded; the first follows the last.

        Which one it is depends on the data alone: a batch remains a function of (seed, step).

        Raises: DataError where there is none, or `damage` has more than its limit.
        """
        for here in (place % self.length for place in range(index, index + self.length)):
            try:
                return decode(here)
            # no fault of the example
            except MemoryError:
                raise
            except Exception as error:  # what is damaged raises errors of many kinds
                kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
                self.damage.note(self.name(here), f"{kind}{error}".splitlines()[0])
        where, first = self.damage.where, self.name(index)
        raise DataError(f"{where}: not one of its {self.length} examples can be read, beginning with {first}")


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
        # each once, though a batch may hold an example twice
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
    # captions are read once, by what encodes them
    small = len(source) * math.prod(source.shape) <= memory_limit_bytes and getattr(source, "captions", None) is None
    chosen = KeptSource(source) if small else source
    # data that cannot be decoded fail here, and not in a thread at the first step
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
    if isinstance(source, OnDemandSource) and (key := source.key()) is not None:
        return content_key(key, source.shape, source.num_classes, source.length)
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
    # there are more threads than processors, because a thread that reads a file mostly waits
    return ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="decode")
