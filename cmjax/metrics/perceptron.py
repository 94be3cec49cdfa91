"""Features of a small classifier that is trained on the data set itself.

Inception features were made for natural images of 299 pixels and have to be downloaded. For digits, or a data set of
one's own, a two-layer perceptron trained in seconds on the same data separates good samples from bad ones. Its
distances are comparable between models of one data set, never with published FIDs.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Integer

from cmjax.metrics.functional import Images, check_images
from cmjax.system.content import content_key
from cmjax.system.files import AnyPath, to_path, write_atomically
from cmjax.system.npz import load_npz, npz_bytes

Labels = Integer[np.ndarray, " _"]
"""(n,): the class of each image; any integers."""

NETWORK = "perceptron, 1"
"""Names the cached files of this network and its training: another one has another name."""

FORWARD_IMAGES = 4096  # a block of images as float64 in memory at one time


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """A ReLU perceptron on pixels/255: calling it gives the last hidden layer's activations.

    `weights` and `biases` are the layers', first to last; `classes` are the labels of the last one's outputs;
    `image_shape` is (h, w, c).
    """

    weights: Sequence[np.ndarray]
    biases: Sequence[np.ndarray]
    classes: Int[np.ndarray, " classes"]
    image_shape: tuple[int, int, int]

    def __call__(self, images: Images) -> Float64[np.ndarray, "n d"]:
        """Features (n, d) of uint8 images (n, h, w, c).

        Raises: ValueError for images of another dtype or of another shape than the training images.
        """
        check_images(images, "images")
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must have shape (n, h, w, c) = (n, *{self.image_shape}), got {images.shape}")
        blocks = range(0, len(images), FORWARD_IMAGES)
        return np.concatenate([self._hidden(images[start : start + FORWARD_IMAGES]) for start in blocks])

    def _hidden(self, images: np.ndarray) -> np.ndarray:
        x = images.reshape(len(images), -1) / 255.0
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight.astype(np.float64) + bias, 0)
        return x

    def probabilities(self, images: Images) -> Float64[np.ndarray, "n classes"]:
        """Class probabilities (n, classes), columns in the order of `classes`."""
        return self.probabilities_of(self(images))

    def probabilities_of(self, features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n classes"]:
        """Class probabilities of images with these features."""
        logits = features @ self.weights[-1] + self.biases[-1]
        unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return unnormalised / unnormalised.sum(axis=1, keepdims=True)

    @property
    def key(self) -> str:
        """Differs with the features."""
        return content_key(NETWORK, self.weights, self.biases, self.image_shape)

    def accuracy(self, images: Images, labels: Labels) -> float:
        """The fraction of images that are given their label: tells whether the features know the data at all."""
        _check_labels(images, labels)
        return float(np.mean(self.classes[np.argmax(self.probabilities(images), axis=1)] == labels))


def classifier_features(
    train_images: Images,
    train_labels: Labels,
    *,
    cache_dir: str | os.PathLike[str] | None,
    hidden: tuple[int, ...] = (128, 64),
    epochs: int = 40,
    max_images: int = 10_000,
    seed: int = 0,
) -> ClassifierFeatures:
    """Train a classifier on at most `max_images` of the images, or read it from `cache_dir` if it was trained before.

    Args:    train_images: (n, h, w, c) uint8. train_labels: (n,) integers, at least two different ones.
             cache_dir: folder of trained weights, one .npz for each data set and setting; None keeps nothing. A file
             that cannot be read is trained anew, a folder that cannot be written is a logged warning.
             hidden: layer widths; the last is the number of features. epochs: passes over the images.
             seed: of the choice of images, the initial weights and the order of batches.
    Returns: a callable, images (n, h, w, c) uint8 -> features (n, hidden[-1]) float64.
    Raises:  ValueError naming the argument that is out of range.
    """
    check_images(train_images, "train_images")
    _check_labels(train_images, train_labels)
    for name, value in (("len(hidden)", len(hidden)), ("epochs", epochs), ("max_images", max_images)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    # a random choice, for a data set may be stored class by class
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train_images))[:max_images])
    images, labels = train_images[chosen], np.asarray(train_labels[chosen], np.int64)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"train_labels must hold at least two classes, got only {np.unique(labels).tolist()}")
    if cache_dir is None:
        return _train(images, labels, hidden, epochs, seed)

    path = to_path(cache_dir) / f"classifier-{content_key(NETWORK, images, labels, hidden, epochs, seed)}.npz"
    cached = _read(path, layers=len(hidden) + 1)
    if cached is not None:
        return cached
    trained = _train(images, labels, hidden, epochs, seed)
    try:
        write_atomically(path, _encode(trained))
    except OSError as error:
        logging.getLogger(__name__).warning("The classifier was not cached in %s: %s", path, error)
    return trained


def _check_labels(images: np.ndarray, labels: np.ndarray) -> None:
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be ({len(images)},) integers, got {labels.shape} {labels.dtype}")


def _train(
    images: np.ndarray, labels: np.ndarray, hidden: tuple[int, ...], epochs: int, seed: int
) -> ClassifierFeatures:
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits  # scikit-learn's own dependency

    # an instance, not the integer: partial_fit would start from the integer again and repeat one order of batches
    network = MLPClassifier(hidden, random_state=np.random.RandomState(seed))
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    classes = np.unique(labels)
    # a number of passes that is fixed beforehand, where `fit` would go on to convergence and warn when it is not met
    # one thread: the products are too small to split, and on busy cores two threads take ten times as long
    with threadpool_limits(1, user_api="blas"):
        for _ in range(epochs):
            network.partial_fit(pixels, labels, classes=classes)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    if len(classes) == 2:  # scikit-learn's one logistic output z is a softmax of (0, z)
        weights[-1], biases[-1] = np.pad(weights[-1], ((0, 0), (1, 0))), np.pad(biases[-1], (1, 0))
    height, width, channels = images.shape[1:]
    return ClassifierFeatures(weights, biases, classes, (height, width, channels))


def _encode(features: ClassifierFeatures) -> bytes:
    arrays: dict[str, Any] = {"classes": features.classes, "image_shape": np.array(features.image_shape)}
    for i, (weight, bias) in enumerate(zip(features.weights, features.biases, strict=True)):
        arrays |= {f"weight{i}": weight, f"bias{i}": bias}
    return npz_bytes(arrays)


def _read(path: AnyPath, *, layers: int) -> ClassifierFeatures | None:
    """The classifier in `path`; None where there is none, or none that can be read (zip members have checksums)."""
    try:
        arrays = load_npz(path)
        weights = [arrays[f"weight{i}"] for i in range(layers)]
        biases = [arrays[f"bias{i}"] for i in range(layers)]
        height, width, channels = (int(side) for side in arrays["image_shape"])
        return ClassifierFeatures(weights, biases, arrays["classes"], (height, width, channels))
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged zip fails in many ways, and training again answers them all
        logging.getLogger(__name__).warning("The cached classifier %s cannot be read, training anew: %s", path, error)
        return None
