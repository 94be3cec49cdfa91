"""The figures at the end of a run, for samples and beside them for real images and a fitted Gaussian."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.data.sources import DataError, Source
from cmjax.metrics.dataset_features import dataset_features, in_words, some_of
from cmjax.metrics.functional import (
    Images,
    check_images,
    fitted_gaussian,
    frechet_distance,
    prdc,
    squared_radii,
    statistics,
)

log = logging.getLogger(__name__)

MOST_HELD_OUT = 2000
"""Held-out images compared with; a random choice where the data set has more."""

LARGEST_GAUSSIAN = 4096
"""Elements of an image beyond which the Gaussian's covariance is too large to fit."""

FITTED_TO = 10_000
"""Training images that the Gaussian is fitted to, at most."""

REAL, GAUSSIAN = "training images", "fitted Gaussian"
"""The rows beside those of samples."""

NEIGHBOURS = 5
"""k of `prdc`, as published."""


@dataclass(frozen=True)
class Reference:
    """Real images (m, h, w, c) uint8, and the features by which others are held against them, None for none.

    k: the neighbours of `prdc`.
    """

    images: Images
    features: Callable[[np.ndarray], np.ndarray] | None
    k: int = NEIGHBOURS

    @cached_property
    def statistics(self) -> Any:
        return None if self.features is None else statistics(self.features(self.images))

    @cached_property
    def pixels(self) -> np.ndarray:
        """(m, h·w·c): whole pixel values. prdc does not see the scale, and is exact on integers."""
        return self.images.reshape(len(self.images), -1).astype(np.float64)

    @cached_property
    def radii(self) -> np.ndarray:
        return squared_radii(self.pixels, k=self.k)


@dataclass(frozen=True)
class Compared:
    """Images (n, h, w, c) uint8 beside a reference; what several metrics need is computed once."""

    images: Images
    reference: Reference

    @cached_property
    def neighbours(self) -> Any:
        flat = self.images.reshape(len(self.images), -1)
        return prdc(self.reference.pixels, flat, k=self.reference.k, real_radii=self.reference.radii)


@dataclass(frozen=True)
class Metric:
    """A figure of `Compared` images; None where it cannot be had.

    larger_is_better: or smaller. of_features: it needs the reference's features, and not the pixels alone.
    """

    of: Callable[[Compared], float | None]
    larger_is_better: bool
    of_features: bool = False


def frechet(compared: Compared) -> float | None:
    """The Fréchet distance of the features."""
    reference = compared.reference
    if reference.features is None:
        return None
    return frechet_distance(reference.statistics, reference.features(compared.images))


METRICS: dict[str, Metric] = {
    "fd": Metric(frechet, larger_is_better=False, of_features=True),
    "precision": Metric(lambda compared: compared.neighbours.precision, larger_is_better=True),
    "recall": Metric(lambda compared: compared.neighbours.recall, larger_is_better=True),
    "density": Metric(lambda compared: compared.neighbours.density, larger_is_better=True),
    "coverage": Metric(lambda compared: compared.neighbours.coverage, larger_is_better=True),
}
"""Every figure that a run ends with, and that times are searched by."""


def figures(
    rows: Mapping[str, Images],
    *,
    held_out: Images,
    features: Callable[[np.ndarray], np.ndarray] | None,
    k: int = NEIGHBOURS,
) -> dict[str, dict[str, float | None]]:
    """`METRICS` of each set of images against the held-out ones: one reference set and one rule for every row.

    Rows that give the others their scale are the training images (what a perfect model would reach) and
    `metrics.fitted_gaussian` of them. Every figure depends on the number of images, so a row that has more than the
    smallest one is represented by a fixed random choice of as many.

    Args:    rows: name -> (n, h, w, c) uint8. held_out: (m, h, w, c) uint8. Coverage grows with n/m.
             features: images -> (n, d) for the Fréchet distance; None leaves it None. k: neighbours, k < n, k < m.
    Returns: name -> {metric: value}; precision, recall, density and coverage are on pixels.
    Raises:  ValueError naming the row whose images do not fit held_out, or k.
    """
    check_images(held_out, "held_out")
    for name, images in rows.items():
        check_images(images, f"rows[{name!r}]")
        if images.shape[1:] != held_out.shape[1:]:
            raise ValueError(f"rows[{name!r}] must be images of {held_out.shape[1:]}, got {images.shape[1:]}")
        if len(images) <= k:
            raise ValueError(f"rows[{name!r}] must hold more than k={k} images, got {len(images)}")
    reference, smallest = Reference(held_out, features, k), min(map(len, rows.values()), default=0)
    table: dict[str, dict[str, float | None]] = {}
    for name, images in rows.items():
        if len(images) > smallest:
            images = images[np.random.default_rng(0).permutation(len(images))[:smallest]]
        compared = Compared(images, reference)
        table[name] = {metric: one.of(compared) for metric, one in METRICS.items()}
    return table


def compare(
    samples: Mapping[str, np.ndarray], train: Source, held_out: Source, *, cache_dir: Path
) -> dict[str, dict[str, float | None]]:
    """`figures` of each set of samples (n, h, w, c) uint8, of real images and of the Gaussian."""
    num = min(len(images) for images in samples.values())
    real = some_of(train, max(num, FITTED_TO))["image"]
    reference = some_of(held_out, MOST_HELD_OUT)["image"]
    rows = {**samples, REAL: real[:num]}
    if reference[0].size <= LARGEST_GAUSSIAN:
        rows[GAUSSIAN] = fitted_gaussian(real, num, 0)
    return figures(rows, held_out=reference, features=dataset_features(train, cache_dir=cache_dir))


def about_figures(
    table: Mapping[str, Mapping[str, float | None]], train: Source, held_out: Source, *, cache_dir: Path
) -> str:
    """What is said beside the Fréchet distances of `compare`: what they are of, and where they mean nothing; "" where
    there are none."""
    classifier = dataset_features(train, cache_dir=cache_dir)
    if classifier is None:
        return ""
    about, real = f"fd: features of {in_words(classifier, held_out)}", table[REAL]["fd"]
    values = {name: row["fd"] for name, row in table.items() if name not in (REAL, GAUSSIAN)}
    if better := [name for name, value in values.items() if value is not None and real is not None and value < real]:
        about += f". {', '.join(better)}: below as many {REAL}; differences this small say nothing of the models"
    return about


def metric_against(held_out: Source, train: Source, metric: str, *, cache_dir: Path) -> Callable[[np.ndarray], float]:
    """One of `METRICS` of images (n, h, w, c) uint8 against the held-out ones. Its features, where it needs
    some, are those of a classifier of the data where it has labels, and pixels where it has none.

    Raises: DataError where there are neither labels nor few enough pixels.
    """
    features: Callable[[np.ndarray], np.ndarray] | None = None
    if METRICS[metric].of_features:
        features = dataset_features(train, cache_dir=cache_dir)
        if features is None and np.prod(train.shape) > LARGEST_GAUSSIAN:
            raise DataError(
                "the data have no different labels, and too many pixels to compare by; name the times yourself"
            )
        features = features or _pixels
    reference = Reference(some_of(held_out, MOST_HELD_OUT)["image"], features)

    def score(images: np.ndarray) -> float:
        value = METRICS[metric].of(Compared(images, reference))
        if value is None:
            raise ValueError(f"{metric} needs features")
        return value

    return score


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def why_not_compared(train: Source, *, num: int, held_out: int | None) -> str:
    """Why there cannot be `figures` of `num` samples, training images and `held_out` others; "" where there can be.

    held_out: None where their number is not known yet.
    """
    channels = train.shape[-1]
    if channels not in (1, 3):
        return f"figures are of images, and the data have {channels} channels"
    if train.gather(np.zeros(1, np.int64))["image"].dtype != np.uint8:
        return "figures are of uint8 images, and the data are floats"
    for there, what in ((num, "samples"), (len(train), "training images"), (held_out, "held-out images")):
        if there is not None and there <= NEIGHBOURS:
            return f"metrics need at least {NEIGHBOURS + 1} {what}, and there are {there}"
    return ""


def can_compare(samples: Mapping[str, np.ndarray], train: Source, open_held_out: Callable[[], Source]) -> Source | None:
    """The held-out images, or None with a word about why there are no metrics."""
    num, held_out = min(len(images) for images in samples.values()), None
    why = why_not_compared(train, num=num, held_out=None)
    if not why:
        try:
            held_out = open_held_out()
            why = why_not_compared(train, num=num, held_out=len(held_out))
        except DataError as error:
            why = f"there are no held-out images ({error})"
    if why:
        log.info("no metrics: %s", why)
    return None if why else held_out


def format_table(table: Mapping[str, Mapping[str, float | None]], *, form: str = ".3f") -> str:
    """The table of `figures` as aligned plain text, one line a row; "-" stands for None. form: of a number.

    >>> table = {"1 step": {"fd": 12.345, "precision": 0.5}, "fitted Gaussian": {"fd": None, "precision": 1}}
    >>> print(format_figures(table))
                         fd  precision
    1 step           12.345      0.500
    fitted Gaussian       -      1.000
    """
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    cells = [["", *columns]]
    for name, row in table.items():
        values = (row.get(column) for column in columns)
        cells.append([name, *("-" if value is None else format(value, form) for value in values)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
