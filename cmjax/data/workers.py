"""Reads and decodes in other processes, by grain (`pip install 'cmjax[large]'`)."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing import connection
from typing import Any

import jax
import numpy as np

from cmjax.data.base import DataError
from cmjax.system.libraries import require
from cmjax.system.signals import NUMBERS

AHEAD = 1
"""Results that wait for each process to be fetched."""


def in_processes(
    result_of: Callable[[int], Any], start: int, stop: int | None, workers: int, *, every: int = 1
) -> Generator[Any]:
    """Yields result_of(start), result_of(start + every), …, each computed in one of `workers` processes, in that order.

    Args:   result_of: what `cloudpickle` can send to a process. stop: None for no end.
    Raises: MissingLibrary without grain; DataError where a process dies; what `result_of` raises, at its step.
    """
    check_grain(workers)
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, in programs without any, too
        flags.FLAGS.mark_as_parsed()
    # grain asks for a length: no run gets to the end of this one
    steps = grain.MapDataset.range(start, 2**62 if stop is None else stop, every)
    results = steps.map(result_of).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    iterator = iter(results.mp_prefetch(options, worker_init_fn=_depend_on_parent))
    try:
        for result in iterator:
            # Out of the memory that the processes share, which is then free again.
            yield jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, result)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        problem = f"a process that decodes ended with code {code}, perhaps for lack of memory, or of room in /dev/shm"
        raise DataError(f"config.data.workers={workers}: {problem}; the same command continues") from error
    finally:
        iterator.close()
        del iterator
        gc.collect()  # results that nobody fetched, which lie in a circle: shared memory goes with their objects


def check_grain(workers: int) -> None:
    """Raises MissingLibrary where there are to be workers and grain is missing."""
    if workers:
        require("grain", f"config.data.workers={workers}:")


def _depend_on_parent(_worker: int, _workers: int) -> None:
    # A terminal and a scheduler send signals to all processes: what they mean is the parent's to decide.
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    # A parent that is killed can end nobody.
    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True, name="parent").start()
