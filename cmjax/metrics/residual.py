"""Features of a small residual network that is trained on the data set itself: for colour images, as CIFAR-10's.

As those of `features`, its distances are comparable between models of one data set, never with published FIDs.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float64, Int

from cmjax.metrics.functional import Images
from cmjax.nets.features.residual import ResidualClassifier
from cmjax.system.content import content_key
from cmjax.system.files import AnyPath, to_path, write_atomically
from cmjax.system.npz import load_npz, npz_bytes
from cmjax.system.progress import progress

NETWORK = "patches, muon"
"""Names the cached files of this network and its training, and not those of the one before."""
BATCH = 128
FORWARD_IMAGES = 512
PEAK_RATE, DECAY = 1e-2, 0.05
EPOCHS = 5
SHIFT = 2
"""Pixels that training images are moved by, at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ResidualFeatures:
    """A trained `ResidualClassifier`: calling it gives its features. classes: the labels of its outputs."""

    params: Any
    classes: Int[np.ndarray, " classes"]
    image_shape: tuple[int, int, int]

    def __call__(self, images: Images) -> Float64[np.ndarray, "n d"]:
        """Features (n, d) of uint8 images (n, h, w, c)."""
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be (n, *{self.image_shape}) uint8, got {images.shape} {images.dtype}")
        module, found = ResidualClassifier(len(self.classes)), []
        for start in range(0, len(images), FORWARD_IMAGES):
            part = images[start : start + FORWARD_IMAGES]
            full = part[np.minimum(np.arange(FORWARD_IMAGES), len(part) - 1)]  # of one size, compiled once
            found.append(np.asarray(_forward(module, self.params, full), np.float64)[: len(part)])
        return np.concatenate(found)

    def probabilities_of(self, features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n classes"]:
        """Class probabilities of images with these features."""
        head = self.params["head"]
        logits = features @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return unnormalised / unnormalised.sum(axis=1, keepdims=True)

    def accuracy(self, images: Images, labels: np.ndarray) -> float:
        """The fraction of images that are given their label."""
        guessed = self.classes[np.argmax(self.probabilities_of(self(images)), axis=1)]
        return float(np.mean(guessed == labels))

    @property
    def key(self) -> str:
        """Differs with the features."""
        return content_key(NETWORK, self.params, self.image_shape)


def residual_features(
    images: Images, labels: np.ndarray, *, cache_dir: AnyPath, epochs: int = EPOCHS, seed: int = 0
) -> ResidualFeatures:
    """Train the network on images (n, h, w, c) uint8 with labels (n,), or read it from `cache_dir`.

    Raises: ValueError for fewer than two classes.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"labels must be of at least two classes, got only {classes.tolist()}")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    key = content_key(NETWORK, images, np.asarray(labels, np.int64), epochs, seed)
    path = to_path(cache_dir) / f"residual-{key}.npz"
    if (params := _read(path)) is None:
        params = _train(images, np.searchsorted(classes, labels), len(classes), epochs, seed)
        _write(path, params)
    return ResidualFeatures(params, classes, shape)


@partial(jax.jit, static_argnums=0)
def _forward(module: ResidualClassifier, params: Any, images: Any) -> jax.Array:
    features, _ = module.apply({"params": params}, _pixels(images))
    return jnp.asarray(features)


def _pixels(images: Any) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1


def _train(images: np.ndarray, places: np.ndarray, classes: int, epochs: int, seed: int) -> Any:
    """One cycle of Muon over images that are mirrored and moved at random."""
    module, rng = ResidualClassifier(classes), np.random.default_rng(seed)
    steps = max(epochs * (len(images) // BATCH), 1)
    rule = optax.contrib.muon(
        optax.schedules.cosine_onecycle_schedule(steps + 1, PEAK_RATE),
        weight_decay=DECAY,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_as_matrices,
    )
    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *images.shape[1:])))["params"]

    def loss(params, batch, labels):
        logits: Any = module.apply({"params": params}, _pixels(batch))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, batch, labels):
        value, gradient = jax.value_and_grad(loss)(params, batch, labels)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, done = rule.init(params), 0
    with progress("training the classifier", steps) as update:
        while done < steps:
            order = rng.permutation(len(images))
            for start in range(0, max(len(images) - BATCH + 1, 1), BATCH):
                chosen = order[start : start + BATCH]
                params, state, value = step(params, state, _varied(images[chosen], rng), places[chosen])
                update(done := done + 1, "" if done % 50 else f"loss {float(value):.3f}")
    return jax.device_get(params)


def _as_matrices(params: Any) -> Any:
    """For each parameter the axes of its matrix, all but the last by the last; None for what is none."""

    def axes(parameter: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if parameter.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(parameter.ndim - 1)), parameter.ndim - 1)

    return jax.tree.map(axes, params)


def _varied(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images mirrored; all of them moved alike by up to `SHIFT` pixels."""
    images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    down, across = rng.integers(0, 2 * SHIFT + 1, 2)
    return padded[:, down : down + images.shape[1], across : across + images.shape[2]]


def _write(path: AnyPath, params: Any) -> None:
    arrays: Any = flatten_dict(params, sep="/")
    try:
        write_atomically(path, npz_bytes(arrays))
    except OSError as error:
        log.warning("The classifier was not cached in %s: %s", path, error)


def _read(path: AnyPath) -> Any:
    """The parameters in `path`; None where there are none, or none that can be read."""
    try:
        return unflatten_dict(load_npz(path), sep="/")
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged zip fails in many ways, and training again answers them all
        log.warning("The cached classifier %s cannot be read, training anew: %s", path, error)
        return None
