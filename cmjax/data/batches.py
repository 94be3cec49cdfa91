"""Batches as a function of (seed, step), on any number of hosts; and the conversions between pixels and [-1, 1]."""

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Num, UInt8

from cmjax.data.base import DataError, Source, shuffled
from cmjax.data.on_demand import OnDemandSource
from cmjax.data.workers import in_processes
from cmjax.system.mesh import over_steps

log = logging.getLogger(__name__)

PREFETCH = 2
"""Batches prepared ahead of the step that runs."""


def batch_indices(step: int, *, seed: int, batch_size: int, num_examples: int) -> Int64[np.ndarray, " b"]:
    """Gives the examples of batch `step`: positions step·b … (step+1)·b − 1 of an endless sequence of shuffled epochs.

    Batches run across the ends of epochs, and a batch may be larger than the data set.

    Args:    step: >= 0. seed: of the shuffling. batch_size: over all hosts, >= 1. num_examples: >= 1.
    Returns: (b,) int64 in 0..num_examples − 1, the same for the same arguments whatever was asked before.
    Raises:  DataError naming the argument that is out of range.

    >>> two_epochs = [batch_indices(step, seed=0, batch_size=5, num_examples=10) for step in range(4)]
    >>> sorted(np.concatenate(two_epochs[:2]).tolist()) == list(range(10))
    True
    """
    for name, value, low in (("step", step, 0), ("batch_size", batch_size, 1), ("num_examples", num_examples, 1)):
        if value < low:
            raise DataError(f"{name} must be at least {low}, got {value}")
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
        first = epoch * num_examples
        parts.append(_epoch(seed, epoch, num_examples)[max(start - first, 0) : stop - first])
    return np.concatenate(parts)


# a batch that crosses an epoch's end asks for both, and the next batches ask again
@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = shuffled(num_examples, seed=seed, epoch=epoch)
    # it is cached: a caller that changed it would change later batches
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class Batches:
    """Gives the batches of a run: a function of (seed, step), whatever the hosts and whatever came before.

    Args:   batch_size: over all hosts. seed: of the shuffling. sharding: of the batches, whose first axis it may
            split; None puts them on the default device. workers: processes that decode, where the source does not
            keep what it decoded; 0: a thread of this one. steps_per_call: how many steps' batches come at once; where
            these are several, the step is their first axis.
    Raises: DataError where the batch does not divide over the sharding.
    """

    source: Source
    batch_size: int
    seed: int
    sharding: jax.sharding.Sharding | None = None
    workers: int = 0
    steps_per_call: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.sharding is not None:
            try:
                # called for its error alone: it raises where the batch does not divide
                self.sharding.shard_shape((self.batch_size, *self.source.shape))
            except ValueError as error:
                raise DataError(f"batch_size {self.batch_size} does not divide over {self.sharding}") from error

    def at(self, step: int) -> dict[str, jax.Array]:
        """Batch `step`: "image" (b, h, w, c) and what else the source has, such as "label" (b,) int32. Where
        `steps_per_call` is above 1, those of the steps after it too, (steps_per_call, b, ...).

        The arrays are global; a host gathers the rows of its own devices only.
        """
        return self._laid_out(self._host_rows(step))

    def stream(self, start: int, stop: int | None = None) -> Generator[dict[str, jax.Array]]:
        """Batches start … stop − 1, without end where `stop` is None, prepared ahead in one thread, or in `workers`
        processes.

        What goes wrong there is raised here at the batch it concerns. Threads and processes end with the generator:
        when it is exhausted, closed or collected.
        """
        # one, so that batches come in their order; sources decode on threads of their own
        thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        ahead, step, decoded = deque(), start, None
        if self.workers and isinstance(self.source, OnDemandSource):
            decoded = self._decoded_elsewhere(self.source, start, stop)
        elif self.workers:
            log.info("config.data.workers=%d: these data are kept in memory, and decoded by this process", self.workers)
        try:
            while True:
                # One more than PREFETCH, for the first of them is taken at once.
                while len(ahead) <= PREFETCH and (stop is None or step < stop):
                    ahead.append(thread.submit(self.at, step) if decoded is None else thread.submit(next, decoded))
                    step += self.steps_per_call
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
            if decoded is not None:
                decoded.close()

    def _decoded_elsewhere(
        self, source: OnDemandSource, start: int, stop: int | None
    ) -> Generator[dict[str, jax.Array]]:
        """Yields the batches, of rows that other processes decode, which also send the names of damaged examples."""
        # A sharding, with its devices, cannot be sent to a process: `_host_rows` has the numbers of rows alone.
        rows_at = functools.partial(_rows_and_damage, self._host_rows)
        results = in_processes(rows_at, start, stop, self.workers, every=self.steps_per_call)
        with contextlib.closing(results):
            for rows, damaged in results:
                for name, why in damaged.items():
                    source.damage.note(name, why)
                yield self._laid_out(rows)

    @property
    def _host_rows(self) -> "HostRows":
        if self.sharding is None:
            return HostRows(self.source, self.seed, self.batch_size, ((0, self.batch_size),), self.steps_per_call)
        indices = self.sharding.addressable_devices_indices_map((self.batch_size,)).values()
        # a set: devices that hold the same rows, as over `fsdp`, need them once
        ranges = {index[0].indices(self.batch_size)[:2] for index in indices if index is not None}
        return HostRows(self.source, self.seed, self.batch_size, tuple(sorted(ranges)), self.steps_per_call)

    def _laid_out(self, rows: "Rows") -> dict[str, jax.Array]:
        if self.sharding is None:
            return {name: jnp.asarray(array) for name, array in rows[0, self.batch_size].items()}

        steps = (self.steps_per_call,) if self.steps_per_call > 1 else ()

        def part(name: str, index: Any) -> np.ndarray:
            return rows[index[len(steps)].indices(self.batch_size)[:2]][name]  # only the batch's axis is ever split

        arrays = next(iter(rows.values()))
        shapes = {name: (*steps, self.batch_size, *array.shape[len(steps) + 1 :]) for name, array in arrays.items()}
        sharding = over_steps(self.sharding) if steps else self.sharding
        return {
            name: jax.make_array_from_callback(shape, sharding, functools.partial(part, name))
            for name, shape in shapes.items()
        }


Rows = dict[tuple[int, int], dict[str, np.ndarray]]
"""(start, stop) within a batch -> the examples there."""


@dataclass(frozen=True)
class HostRows:
    """step -> the rows of that batch which this host's devices take, by their places `ranges`; where
    `steps_per_call` is above 1, those of the steps after it too, (steps_per_call, rows, ...)."""

    source: Source
    seed: int
    batch_size: int
    ranges: tuple[tuple[int, int], ...]
    steps_per_call: int = 1

    def __call__(self, step: int) -> Rows:
        if self.steps_per_call == 1:
            return self._rows(step)
        steps = [self._rows(step + i) for i in range(self.steps_per_call)]
        return jax.tree.map(lambda *parts: np.stack(parts), *steps)

    def _rows(self, step: int) -> Rows:
        indices = batch_indices(step, seed=self.seed, batch_size=self.batch_size, num_examples=len(self.source))
        return {(start, stop): self.source.gather(indices[start:stop]) for start, stop in self.ranges}


def _rows_and_damage(rows_at: HostRows, step: int) -> tuple[Rows, dict[str, str]]:
    rows, source = rows_at(step), cast(OnDemandSource, rows_at.source)
    return rows, source.damage.take()


def batch_shapes(
    shape: tuple[int, ...], dtype: Any, num_classes: int | None, batch_size: int, *, steps_per_call: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Gives the shapes of `Batches.at` of a source of examples like these."""
    rows = (steps_per_call, batch_size) if steps_per_call > 1 else (batch_size,)
    labels = {} if num_classes is None else {"label": jax.ShapeDtypeStruct(rows, np.dtype(np.int32))}
    return {"image": jax.ShapeDtypeStruct((*rows, *shape), np.dtype(dtype)), **labels}


def preprocess(images: Num[Array, "b *dims"], key: Array, *, horizontal_flip: bool) -> Float[Array, "b *dims"]:
    """Source images to network units, on the device: uint8 x -> x/127.5 − 1 in [-1, 1] float32; floats as they are.

    Signals and points are floats, and are not mirrored.

    Args: key: of the flips; unused without. horizontal_flip: mirror each sample left to right with probability 1/2.
    """
    if images.dtype == jnp.uint8:
        # In this order both ends are exact; compiled, x/127.5 − 1 may become a fused multiply-add that passes 1.
        images = (images.astype(jnp.float32) - 127.5) / 127.5
    if horizontal_flip:
        mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def to_uint8(images: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to 0..255 by rounding and clipping, on the host: the exact inverse of `preprocess` on uint8 images."""
    return np.clip(np.rint((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def edm_uint8(images: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to 0..255 by 127.5x + 128, clipped and then truncated, as EDM and OpenAI's codes do.

    Rounding up where `to_uint8` rounds to even, it differs from it at exact halves alone.
    """
    return np.clip(np.asarray(images, np.float32) * 127.5 + 128, 0, 255).astype(np.uint8)


def truncated_uint8(images: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to 0..255 by 127.5x + 127.5, clipped and then truncated, as the released JAX code of consistency models
    does: half a grey level darker than the others on average."""
    return np.clip((np.asarray(images, np.float32) + 1) * 127.5, 0, 255).astype(np.uint8)


UINT8: dict[str, Callable[..., np.ndarray]] = {"round": to_uint8, "edm": edm_uint8, "truncate": truncated_uint8}
RULES = {
    "round": "127.5x + 127.5, rounded and clipped",
    "edm": "127.5x + 128, clipped and truncated",
    "truncate": "127.5x + 127.5, clipped and truncated",
}
"""The note of each rule beside a metric."""
