"""The figures at the end of a run, for samples and beside them for real images and a fitted Gaussian."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cmjax.data.sources import DataError, Source
from cmjax.evaluation.features import classifier_features, figures
from cmjax.evaluation.metrics import fitted_gaussian, frechet_distance, prdc, squared_radii, statistics

log = logging.getLogger(__name__)

MOST_HELD_OUT = 2000
"""Held-out images compared with; a random choice where the data set has more."""

LARGEST_GAUSSIAN = 4096
"""Elements of an image beyond which the Gaussian's covariance is too large to fit."""

FITTED_TO = 10_000
"""Training images that the Gaussian is fitted to, at most."""

NEIGHBOURS = 5
"""k of `prdc`, as in `evaluation.features.figures`."""


def compare(
    samples: Mapping[str, np.ndarray], train: Source, held_out: Source, *, cache_dir: Path
) -> dict[str, dict[str, float | None]]:
    """`evaluation.features.figures` of each set of samples (n, h, w, c) uint8, of real images and of the Gaussian."""
    num = min(len(images) for images in samples.values())
    real = _some(train, max(num, FITTED_TO))
    reference = _some(held_out, MOST_HELD_OUT)["image"]
    rows = {**samples, "training images": real["image"][:num]}
    if reference[0].size <= LARGEST_GAUSSIAN:
        rows["fitted Gaussian"] = fitted_gaussian(real["image"], num, 0)
    features = None
    if "label" in real:
        features = classifier_features(real["image"], real["label"], cache_dir=cache_dir)
    return figures(rows, held_out=reference, features=features)


def distance_to(held_out: Source, train: Source, *, cache_dir: Path) -> Callable[[np.ndarray], float]:
    """The Fréchet distance of images (n, h, w, c) uint8 to the held-out ones: of features of a classifier of the data
    where it has labels, and of pixels where it has none."""
    reference, real = _some(held_out, MOST_HELD_OUT)["image"], _some(train, FITTED_TO)
    if "label" in real:
        features = classifier_features(real["image"], real["label"], cache_dir=cache_dir)
    elif reference[0].size <= LARGEST_GAUSSIAN:

        def features(images):
            return images.reshape(len(images), -1) / 255.0
    else:
        raise DataError("the data have no labels, and pixels too many to compare by; name the times yourself")
    target = statistics(features(reference))
    return lambda images: frechet_distance(statistics(features(images)), target)


def neighbours_of(held_out: Source, metric: str) -> Callable[[np.ndarray], float]:
    """One of `metrics.prdc`, by its name, of images (n, h, w, c) uint8 and the held-out ones, on pixels."""
    reference = _some(held_out, MOST_HELD_OUT)["image"]
    real = reference.reshape(len(reference), -1)
    radii = squared_radii(real, k=NEIGHBOURS)
    return lambda images: getattr(
        prdc(real, images.reshape(len(images), -1), k=NEIGHBOURS, real_radii=radii), metric
    )  # fmt: skip


def _some(source: Source, most: int) -> dict[str, np.ndarray]:
    """A fixed random choice of at most `most` examples, in random order."""
    return source.gather(np.random.default_rng(0).permutation(len(source))[:most])


def can_compare(samples: Mapping[str, np.ndarray], open_held_out) -> Source | None:
    """The held-out images, or None with a word about why there are no figures."""
    shape = next(iter(samples.values())).shape
    if shape[-1] not in (1, 3):
        log.info("no figures: they are defined on images, and these samples have %d channels", shape[-1])
        return None
    try:
        return open_held_out()
    except DataError as error:
        log.info("no figures: there are no held-out images (%s)", error)
        return None
