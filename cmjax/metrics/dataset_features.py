"""Features of a data set: of a classifier that is trained on it, or of its pixels."""

from collections.abc import Callable

import numpy as np

from cmjax.data.base import DataError, Source
from cmjax.metrics.classifier import Classifier, perceptron, residual
from cmjax.metrics.functional import Samples
from cmjax.system.files import AnyPath

LEAST_SIDE = 16  # of images that a convolutional network is worth its time for

RESIDUAL_TRAINED_ON, PERCEPTRON_TRAINED_ON = 20_000, 10_000
"""Images that a classifier is trained on, at most; a random choice where there are more. Features need no more, and a
CPU has no more time."""

MOST_HELD_OUT = 2000  # held-out images that are compared with, at most; a random choice where the data set has more

WEAK, PER_FEATURE = 0.7, 2
"""The accuracy of a classifier, and the images for each of its features, below which distances of its features are a
matter of luck: less than this fraction is known of the data, or most directions of the covariance are noise."""

REMEDY = "Have more labelled data, or measure by a published network, as --mode=evaluate --metrics=fid does"
LARGEST_PIXELS = 4096  # elements of an image beyond which its pixels are too many for a covariance


def dataset_classifier(train: Source, *, cache_dir: AnyPath) -> Classifier | None:
    """Trains a classifier of the training images, or reads it from `cache_dir`: a residual network for colour images of
    at least `LEAST_SIDE` pixels, a perceptron for others. None where the images have no labels, or all the same, and of
    signals and points."""
    if len(train.shape) != 3:
        return None
    height, width, channels = train.shape
    in_colour = channels == 3 and min(height, width) >= LEAST_SIDE
    real = some_of(train, RESIDUAL_TRAINED_ON if in_colour else PERCEPTRON_TRAINED_ON)
    if "label" not in real or len(np.unique(real["label"])) < 2:
        return None
    return (residual if in_colour else perceptron)(real["image"], real["label"], cache_dir=cache_dir)


def dataset_features(train: Source, *, cache_dir: AnyPath) -> Classifier | Callable[[Samples], np.ndarray]:
    """Gives the features of the data set: those of its classifier, or pixels/255 where it has none; of signals and
    points their values.

    Raises: DataError where there are neither labels nor few enough pixels.
    """
    classifier = dataset_classifier(train, cache_dir=cache_dir)
    if classifier is None and np.prod(train.shape) > LARGEST_PIXELS:
        raise DataError("the data have no labels to train a classifier by, and too many pixels to compare by")
    unit = 255.0 if len(train.shape) == 3 else 1.0
    return classifier or (lambda images: images.reshape(len(images), -1) / unit)


def in_words(classifier: Classifier, held_out: Source) -> str:
    """Says what a classifier is and its accuracy on held-out images; and what to do where its features are too weak to
    rank models by, or those images too few."""
    test = some_of(held_out, MOST_HELD_OUT)
    num, accuracy = len(test["image"]), classifier.accuracy(test["image"], test["label"])
    dimensions = classifier(test["image"][:1]).shape[1]
    weak = [f"an accuracy below {WEAK:g}"] * (accuracy < WEAK)
    weak += [f"{num} images for a covariance of {dimensions} features"] * (num < PER_FEATURE * dimensions)
    about = f"a classifier of the training images, accuracy {accuracy:.3f} on {num} held-out ones"
    if not weak:
        return about
    return f"{about}; {' and '.join(weak)}: too weak to rank models by. {REMEDY}"


def some_of(source: Source, most: int) -> dict[str, np.ndarray]:
    """Reads a fixed random choice of at most `most` examples, in random order."""
    return source.gather(np.random.default_rng(0).permutation(len(source))[:most])
