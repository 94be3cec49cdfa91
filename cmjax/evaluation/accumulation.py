"""Sets of images streamed through networks and tallied: never all in memory, kept where they are references, and gone
on with after a stop."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cmjax.data.base import DataError, Source, shuffled
from cmjax.data.on_demand import fingerprint
from cmjax.evaluation.networks import Network
from cmjax.metrics.accumulator import Accumulator
from cmjax.system.content import content_key
from cmjax.system.files import write_atomically
from cmjax.system.npz import load_npz, npz_bytes
from cmjax.system.processes import is_first, on_first_process
from cmjax.system.progress import Update, progress

log = logging.getLogger(__name__)

PART = 1024
"""Images that are in memory at one time: an even number, for pairs."""

VERSION = 1
"""Of what is tallied and how it is kept: a higher one makes everything that is kept anew."""

SAVE_SECONDS = 60
"""How often a tally is written, so that a stopped evaluation goes on from there."""

ImagesOf = Callable[[int, int], np.ndarray]
"""(start, stop) -> those images of a numbered set, (stop − start, h, w, c) uint8."""


@dataclass(frozen=True)
class DataSets:
    """The two splits of a data set, which are opened when they are first needed. name: of the data set."""

    name: str
    open: Callable[[str], Source]

    @cached_property
    def train(self) -> Source:
        return self.open("train")

    @cached_property
    def test(self) -> Source | None:
        """None where there are no held-out images."""
        try:
            return self.open("test")
        except DataError as error:
            log.info("there are no held-out images (%s)", error)
            return None

    def split(self, name: str) -> Source | None:
        return self.train if name == "train" else self.test

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {}

    def key(self, name: str, source: Source) -> str:
        """The `fingerprint` of a split, taken once, by the first process. Every process must call it."""
        if name not in self._keys:
            self._keys[name] = on_first_process(lambda: fingerprint(source))
        return self._keys[name]


def accumulate_split(
    network: Network, needed: tuple[str, ...], data: DataSets, split: str, cache_dir: Path, *, most: int | None = None
) -> tuple[Accumulator, str]:
    """The tally of a split, or of a fixed random choice of `most` of it, kept in `cache_dir`; and the set in words."""
    source = data.split(split)
    if source is None:
        raise DataError(f"{data.name} has no {split} images; name another --reference")
    num = min(most if most is not None else len(source), len(source))
    text = f"{num} {split} images of {data.name}"
    key = content_key(VERSION, network.key, data.key(split, source), num)
    path, kept = cache_dir / f"reference-{'-'.join(needed)}-{key}.npz", Accumulator()
    if on_first_process(lambda: _load_into(kept, path)):
        return kept, text
    order = shuffled(len(source), seed=0)
    with progress(f"{network.name} of {text}", num) as update:
        only, told = {network.name: network}, {network.name: needed}

        def images_of(start: int, stop: int) -> np.ndarray:
            return source.gather(order[start:stop])["image"]

        found = accumulate_images(only, told, images_of, num, update=update)
    on_first_process(lambda: _write(path, found[network.name].arrays()))
    return found[network.name], text


def accumulate_images(
    networks: Mapping[str, Network],
    needed: Mapping[str, tuple[str, ...]],
    images_of: ImagesOf,
    num: int,
    *,
    keep: Path | None = None,
    update: Update = lambda done, text: None,
) -> dict[str, Accumulator]:
    """What the networks tell of images 0 … num − 1, by network. Every process must call it; the first has the tallies.

    keep: a file that it goes on from, where it was stopped.
    """
    accumulators = {name: Accumulator() for name in networks}
    done, saved = on_first_process(lambda: _resume(keep, accumulators)), time.monotonic()
    for start in range(done, num, PART):
        stop = min(start + PART, num)
        images = images_of(start, stop)
        for name, network in networks.items():
            outputs = network.told(images, needed[name])
            if is_first():
                accumulators[name].add(outputs)
        update(stop, "")
        if (
            keep is not None
            and stop < num
            and on_first_process(lambda saved=saved: time.monotonic() - saved > SAVE_SECONDS)
        ):
            on_first_process(lambda stop=stop: _save(keep, stop, accumulators))
            saved = time.monotonic()
    if keep is not None:
        on_first_process(lambda: _remove(keep))
    return accumulators


def _resume(keep: Path | None, accumulators: dict[str, Accumulator]) -> int:
    """How many images were tallied before; `accumulators` are then those."""
    if keep is None or not keep.exists():
        return 0
    try:
        arrays = load_npz(keep)
        found = {
            name: Accumulator.of_arrays(
                {key.partition(":")[2]: a for key, a in arrays.items() if key.startswith(f"{name}:")}
            )
            for name in accumulators
        }
    except Exception as error:  # a damaged file fails in many ways, and beginning again answers them all
        log.warning("%s cannot be read, beginning again: %s", keep, error)
        return 0
    accumulators.update(found)
    return int(arrays["done"])


def _save(keep: Path, done: int, accumulators: Mapping[str, Accumulator]) -> None:
    arrays = {
        f"{name}:{key}": array
        for name, accumulator in accumulators.items()
        for key, array in accumulator.arrays().items()
    }
    _write(keep, {"done": np.array(done), **arrays})


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # of a folder that is only read
        path.unlink(missing_ok=True)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        write_atomically(path, npz_bytes(arrays))
    except OSError as error:
        log.warning("%s is not written: %s", path, error)


def _load_into(accumulator: Accumulator, path: Path) -> bool:
    """Whether a tally was kept there, which `accumulator` then is."""
    if not path.exists():
        return False
    try:
        vars(accumulator).update(vars(Accumulator.of_arrays(load_npz(path))))
    except Exception as error:  # a damaged file fails in many ways, and making it anew answers them all
        log.warning("%s cannot be read, and is made anew: %s", path, error)
        return False
    return True
