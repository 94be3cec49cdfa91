"""Reading and decoding in processes of their own, by grain (`pip install 'cmjax[large]'`)."""

import importlib.util
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from cmjax.data.base import DataError


def in_processes(rows_at: Callable[[int], Any], start: int, stop: int | None, workers: int) -> Generator[Any]:
    """rows_at(start), rows_at(start + 1), …, each computed in one of `workers` processes, in that order.

    Args:   rows_at: what `cloudpickle` can send to a process. stop: None for no end.
    Raises: DataError where grain is missing; what `rows_at` raises, at its step.
    """
    check_grain(workers)
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, in programs without any, too
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(start, 2**62 if stop is None else stop)
    one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    dataset = steps.map(rows_at).to_iter_dataset(one_thread)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    rows = iter(dataset.mp_prefetch(options))
    try:
        for row in rows:  # copied out of the memory that the processes share, which is then free again
            yield jax.tree.map(np.array, row)
    finally:
        rows.close()


def check_grain(workers: int) -> None:
    """Raise DataError where there are to be workers and grain is missing."""
    if workers and importlib.util.find_spec("grain") is None:
        raise DataError(f"config.data.workers={workers}: needs grain: pip install 'cmjax[large]'")
