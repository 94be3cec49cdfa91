"""Compares samples with held-out images, beside real images and a fitted Gaussian: the metrics at the end of a run.

The images are few enough to be in memory; `cmjax.evaluation` streams any number.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.data.base import kind_of, noun_of
from cmjax.data.sources import DataError, Source
from cmjax.metrics.accumulator import Accumulator
from cmjax.metrics.dataset_features import (
    LARGEST_PIXELS,
    MOST_HELD_OUT,
    dataset_classifier,
    dataset_features,
    in_words,
    some_of,
)
from cmjax.metrics.functional import Samples, check_samples, fitted_gaussian, statistics
from cmjax.metrics.registry import METRIC_OF, METRICS, PIXELS, Metric

log = logging.getLogger(__name__)

RUN_METRICS = ("fd", "prdc_pixels")  # the metrics of `METRICS` that every run ends with
RUN_VALUES = tuple(value for metric in RUN_METRICS for value in METRICS[metric].values)
LEAST = max(METRICS[metric].least for metric in RUN_METRICS)  # images that they need of each set
FITTED_TO = 10_000  # training images that the Gaussian is fitted to, at most
REALS = ("training images", "training signals", "training points")  # the row of real data beside those of samples
GAUSSIAN = "fitted Gaussian"  # the other one
FeaturesOf = Callable[[np.ndarray], np.ndarray]  # images (n, h, w, c) uint8 -> features (n, d)
Table = dict[str, dict[str, float | None]]  # row -> name of a value -> value; None where it cannot be had


def compare_images(rows: Mapping[str, Samples], *, held_out: Samples, features: FeaturesOf | None) -> Table:
    """Computes `RUN_METRICS` of each set of images against the held-out ones.

    Rows that give the others their scale are training images (what a perfect model would reach) and
    `functional.fitted_gaussian` of them. Every value depends on the number of images, so a row that has more than the
    smallest one is represented by a fixed random choice of as many.

    Args:    rows: name -> (n, h, w, c) uint8, or signals or points. held_out: m of the same. Coverage grows with n/m.
             features: those of the data set, for the Fréchet distance; None leaves it None.
    Raises:  ValueError naming the row whose images do not fit held_out, or the set that has too few.
    """
    check_samples(held_out, "held_out")
    for name, images in rows.items():
        check_samples(images, f"rows[{name!r}]")
        if images.shape[1:] != held_out.shape[1:]:
            raise ValueError(f"rows[{name!r}] must be images of {held_out.shape[1:]}, got {images.shape[1:]}")
    for name, images in {**rows, "held_out": held_out}.items():
        if len(images) < LEAST:
            raise ValueError(f"{name} must hold at least {LEAST} images, got {len(images)}")
    values_of = _against(held_out, features, RUN_METRICS)
    smallest = min(map(len, rows.values()), default=0)
    table: Table = {}
    for name, images in rows.items():
        if len(images) > smallest:
            # at random, since a set may be sorted by class
            images = images[np.random.default_rng(0).permutation(len(images))[:smallest]]
        table[name] = dict.fromkeys(RUN_VALUES) | values_of(images)
    return table


def _against(
    held_out: Samples, features: FeaturesOf | None, metrics: Sequence[str]
) -> Callable[[np.ndarray], dict[str, float]]:
    """Makes the function of images that computes those of the metrics whose features are there."""
    known: dict[str | None, FeaturesOf] = {PIXELS: lambda images: images.reshape(len(images), -1)}
    known |= {} if features is None else {"dataset": features}

    def accumulated(metric: Metric, images: np.ndarray) -> Accumulator:
        rows, accumulator = known[metric.features](images), Accumulator(most_rows=len(images))
        if metric.needs == "features":  # of all at once, which keeps more digits than sums over batches
            accumulator.known["features"] = statistics(rows)
        else:
            accumulator.add({metric.needs: rows})
        return accumulator

    usable = [METRICS[name] for name in metrics if METRICS[name].features in known]
    references = [accumulated(metric, held_out) for metric in usable]

    def values_of(images: np.ndarray) -> dict[str, float]:
        values = {}
        for metric, reference in zip(usable, references, strict=True):
            values |= metric.of(accumulated(metric, images), reference)
        return values

    return values_of


def run_metrics(
    samples: Mapping[str, np.ndarray], train: Source, open_held_out: Callable[[], Source], *, cache_dir: Path
) -> dict[str, Any]:
    """Computes what `summary.json` says of the samples (n, h, w, c) uint8: "metrics", the table of `compare`, and
    "metrics_of", its features in words. Where nothing can be compared the table is empty, and the log says why."""
    held_out = can_compare(samples, train, open_held_out) if samples else None
    if held_out is None:
        return {"metrics": {}}
    try:
        table = compare(samples, train, held_out, cache_dir=cache_dir)
        about = about_metrics(table, train, held_out, cache_dir=cache_dir)
    except ValueError as error:  # no reason to lose the summary
        log.warning("no metrics: %s", error)
        return {"metrics": {}}
    return {"metrics": table, "metrics_of": about} if about else {"metrics": table}


def compare(samples: Mapping[str, np.ndarray], train: Source, held_out: Source, *, cache_dir: Path) -> Table:
    """Computes `RUN_METRICS` of each set of samples (n, h, w, c) uint8, of real images and of the Gaussian; of signals
    and points by their values."""
    num = min(len(images) for images in samples.values())
    # as many as the Gaussian is fitted to; the first of them are the row of real images
    real = some_of(train, max(num, FITTED_TO))["image"]
    reference = some_of(held_out, MOST_HELD_OUT)["image"]
    rows = {**samples, _real_row(train): real[:num]}
    # the Gaussian takes the square of the pixels in memory
    if reference[0].size <= LARGEST_PIXELS:
        rows[GAUSSIAN] = fitted_gaussian(real, num, 0)
    if len(train.shape) == 3:
        features: FeaturesOf | None = dataset_classifier(train, cache_dir=cache_dir)
    else:
        features = None if reference[0].size > LARGEST_PIXELS else dataset_features(train, cache_dir=cache_dir)
    return compare_images(rows, held_out=reference, features=features)


def _real_row(train: Source) -> str:
    return f"training {noun_of(train.shape)}"


def about_metrics(table: Table, train: Source, held_out: Source, *, cache_dir: Path) -> str:
    """Says which features the Fréchet distances of `compare` are of, and where they mean nothing; "" without any."""
    if len(train.shape) != 3:
        return f"fd and the others: of the values of the {noun_of(train.shape)}; the {GAUSSIAN}'s fd is small by itself"
    classifier = dataset_classifier(train, cache_dir=cache_dir)
    if classifier is None:
        return ""
    about, real = f"fd: features of {in_words(classifier, held_out)}", table[_real_row(train)]["fd"]
    values = {name: row["fd"] for name, row in table.items() if name not in (*REALS, GAUSSIAN)}
    if better := [name for name, value in values.items() if value is not None and real is not None and value < real]:
        about += (
            f". {', '.join(better)}: below as many {_real_row(train)}; differences this small say nothing of the models"
        )
    return about


def metric_against(held_out: Source, train: Source, value: str, *, cache_dir: Path) -> Callable[[np.ndarray], float]:
    """Makes the function of images (n, h, w, c) uint8 that computes one of `RUN_VALUES` against the held-out ones.

    Raises: DataError where it needs features of the data set, and these have neither labels nor few enough pixels.
    """
    metric, features = METRIC_OF[value], None
    if METRICS[metric].features == "dataset":
        try:
            features = dataset_features(train, cache_dir=cache_dir)
        except DataError as error:
            raise DataError(f"{error}: name the times yourself") from error
    values_of = _against(some_of(held_out, MOST_HELD_OUT)["image"], features, (metric,))
    return lambda images: values_of(images)[value]


def why_not_compared(train: Source, *, num: int, held_out: int | None) -> str:
    """Says why `num` samples cannot be compared with the data; "" where they can.

    held_out: the number of held-out images; None where it is not known yet.
    """
    kind = kind_of(train.shape)
    if kind == "latents":
        return f"metrics are of images, and the data have {train.shape[-1]} channels"
    if kind == "images" and train.gather(np.zeros(1, np.int64))["image"].dtype != np.uint8:
        return "metrics are of uint8 images, and the data are floats"
    for there, what in (
        (num, "samples"),
        (len(train), _real_row(train)),
        (held_out, f"held-out {noun_of(train.shape)}"),
    ):
        if there is not None and there < LEAST:
            return f"metrics need at least {LEAST} {what}, and there are {there}"
    return ""


def can_compare(samples: Mapping[str, np.ndarray], train: Source, open_held_out: Callable[[], Source]) -> Source | None:
    """Opens the held-out images; None where nothing can be compared, and the log says why."""
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
