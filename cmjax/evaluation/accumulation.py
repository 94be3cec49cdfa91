"""Streams images through feature networks and accumulates statistics; cached, resumable."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.data.base import DataError, Source, shuffled
from cmjax.data.on_demand import fingerprint
from cmjax.evaluation.networks import FeatureNetwork
from cmjax.metrics.accumulator import Accumulator
from cmjax.system.content import content_key
from cmjax.system.npz import load_cached, save_cached
from cmjax.system.processes import is_first, on_first_process
from cmjax.system.progress import Update, progress

log = logging.getLogger(__name__)

PART = 1024  # images that are in memory at one time: an even number, for pairs
VERSION = 1  # a higher one accumulates every cached reference anew
SAVE_SECONDS = 60  # how often accumulators are written, so that a stopped evaluation goes on from there

ImagesOf = Callable[[int, int], np.ndarray]
"""(start, stop) -> those images of a numbered set, (stop − start, h, w, c) uint8."""


@dataclass(frozen=True)
class DataSets:
    """Opens the two splits of a data set when they are first needed. name: of the data set."""

    name: str
    open: Callable[[str], Source]
    _keys: dict[str, str] = field(default_factory=dict)

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

    def key(self, name: str, source: Source) -> str:
        """Takes the `fingerprint` of a split once, in the first process. Every process must call it."""
        if name not in self._keys:
            self._keys[name] = on_first_process(lambda: fingerprint(source))
        return self._keys[name]


def accumulate_split(
    network: FeatureNetwork,
    needed: tuple[str, ...],
    data: DataSets,
    split: str,
    cache_dir: Path,
    *,
    most: int | None = None,
) -> tuple[Accumulator, str]:
    """Accumulates a split, or a fixed random choice of `most` of it, or reads it from `cache_dir`.

    Returns: the accumulator, and the set in words. Every process must call it; the first has the accumulator.
    Raises:  DataError where there is no such split.
    """
    source = data.split(split)
    if source is None:
        raise DataError(f"{data.name} has no {split} images; name another --reference")
    num = min(most if most is not None else len(source), len(source))
    text = f"{num} {split} images of {data.name}"
    # whatever changes the features changes the key: the network's weights, the images, how many, and this code
    key = content_key(VERSION, network.key, data.key(split, source), num)
    path = cache_dir / f"reference-{'-'.join(needed)}-{key}.npz"
    # the first process alone reads the cache, and decides for all: another may see another disk
    cached = load_cached(path, Accumulator.of_arrays) if is_first() else None
    if on_first_process(lambda: cached is not None):
        return cached or Accumulator(), text
    # a data set may be sorted by class, of which `most` would be the first ones
    order = shuffled(len(source), seed=0)
    with progress(f"{network.name} of {text}", num) as update:

        def images_of(start: int, stop: int) -> np.ndarray:
            return source.gather(order[start:stop])["image"]

        by_name = accumulate_images({network.name: network}, {network.name: needed}, images_of, num, update=update)
    accumulator = by_name[network.name]
    on_first_process(lambda: save_cached(path, accumulator.arrays()))
    return accumulator, text


def accumulate_images(
    networks: Mapping[str, FeatureNetwork],
    needed: Mapping[str, tuple[str, ...]],
    images_of: ImagesOf,
    num: int,
    *,
    keep: Path | None = None,
    update: Update = lambda done, text: None,
) -> dict[str, Accumulator]:
    """Accumulates the networks' outputs for images 0 … num − 1, by network.

    Every process must call it; the first has the accumulators. keep: a file from which a stopped call goes on.
    """
    accumulators = {name: Accumulator() for name in networks}

    def save(path: Path, done: int) -> None:
        # an .npz has one level of names: `network:statistic`
        by_name: Any = {name: accumulator.arrays() for name, accumulator in accumulators.items()}
        arrays: Any = flatten_dict(by_name, sep=":")
        save_cached(path, {"done": np.array(done), **arrays})

    done, saved = on_first_process(lambda: _resume(keep, accumulators)), time.monotonic()
    for start in range(done, num, PART):
        stop = min(start + PART, num)
        images = images_of(start, stop)
        for name, network in networks.items():
            outputs = network.outputs_for(images, needed[name])
            # the other processes keep nothing: a covariance of 2048 features takes 34 MB
            if is_first():
                accumulators[name].add(outputs)
        update(stop, "")
        if keep is None or stop == num:
            continue
        # the first process's clock decides for all: `on_first_process` waits for every one of them
        if on_first_process(lambda saved=saved: time.monotonic() - saved > SAVE_SECONDS):
            on_first_process(partial(save, keep, stop))
            saved = time.monotonic()
    if keep is not None and is_first():
        with contextlib.suppress(OSError):  # of a folder that is only read
            keep.unlink(missing_ok=True)
    return accumulators


def _resume(keep: Path | None, accumulators: dict[str, Accumulator]) -> int:
    """Reads the accumulators that were saved into `accumulators`; returns how many images they have seen."""

    def make(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Accumulator], int]:
        parts = unflatten_dict(arrays, sep=":")
        made = {name: Accumulator.of_arrays(parts[name]) for name in accumulators}
        return made, int(arrays["done"])

    # None also where the file cannot be read: the images are then sampled from the first one on
    saved = None if keep is None else load_cached(keep, make)
    if saved is None:
        return 0
    accumulators.update(saved[0])
    return saved[1]
