"""Small classifiers that are trained on a data set itself: a perceptron, and for colour images a residual network.

Inception's features were made for natural images of 299 pixels, and its weights have to be downloaded. The last hidden
layer of a classifier that is trained in seconds on the same data separates good samples from bad ones as well. Its
distances compare models of one data set. They are never comparable with published FIDs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float64, Int, Integer

from cmjax.metrics.functional import Images, check_images
from cmjax.nets.features.residual import ResidualClassifier
from cmjax.system.content import content_key
from cmjax.system.files import AnyPath, to_path
from cmjax.system.mesh import in_chunks
from cmjax.system.npz import load_cached, save_cached
from cmjax.system.progress import progress
from cmjax.training.optimizer import as_matrices

Labels = Integer[np.ndarray, " _"]  # (n,): the class of each image; any integers
Arrays = Mapping[str, np.ndarray]

PERCEPTRON, RESIDUAL = "perceptron, 1", "patches, muon"
"""Name each network and its training in keys and cached files: a change of either needs another name."""
PERCEPTRON_IMAGES, RESIDUAL_IMAGES = 4096, 512  # images that go through a network at one time
BATCH, PEAK_RATE, DECAY = 128, 1e-2, 0.05
SHIFT = 2  # pixels by which the residual network's training images are moved, at most


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier: calling it gives features of images.

    hidden: images (n, h, w, c) uint8 -> activations (n, d) of the last hidden layer. kernel (d, classes), bias: of the
    last layer. classes: the labels of its outputs. key: differs with the features.
    """

    hidden: Callable[[np.ndarray], np.ndarray]
    kernel: np.ndarray
    bias: np.ndarray
    classes: Int[np.ndarray, " classes"]
    image_shape: tuple[int, ...]
    key: str

    def __call__(self, images: Images) -> Float64[np.ndarray, "n d"]:
        """Computes the features (n, d) of images (n, h, w, c) uint8.

        Raises: ValueError for images of another dtype or of another shape than the training images.
        """
        check_images(images, "images")
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must have shape (n, h, w, c) = (n, *{self.image_shape}), got {images.shape}")
        return np.asarray(self.hidden(images), np.float64)

    def probabilities_of(self, features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n classes"]:
        """Computes class probabilities from features, with columns in the order of `classes`."""
        logits = features @ self.kernel.astype(np.float64) + self.bias
        # the largest is taken off, since exp overflows
        unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return unnormalised / unnormalised.sum(axis=1, keepdims=True)

    def accuracy(self, images: Images, labels: Labels) -> float:
        """Computes the fraction of images whose label is predicted: whether the features know the data at all."""
        return float(np.mean(self.classes[np.argmax(self.probabilities_of(self(images)), axis=1)] == labels))


def perceptron(
    images: Images,
    labels: Labels,
    *,
    cache_dir: AnyPath | None,
    hidden: tuple[int, ...] = (128, 64),
    epochs: int = 40,
    seed: int = 0,
) -> Classifier:
    """Trains a ReLU perceptron on pixels/255, or reads it from `cache_dir`; one seed always gives one network.

    Args:   images (n, h, w, c) uint8, labels (n,) of at least two classes. cache_dir: None trains anew.
            hidden: widths of the hidden layers; the last is the number of features.
    Raises: ValueError naming the argument that is wrong.
    """
    for name, value in (("epochs", epochs), ("len(hidden)", len(hidden))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    classes, labels = _checked(images, labels)

    def make(arrays: Arrays) -> Classifier:
        weights, biases = ([arrays[f"{kind}{i}"] for i in range(len(hidden) + 1)] for kind in ("weight", "bias"))

        def activations(images: np.ndarray) -> np.ndarray:
            x = images.reshape(len(images), -1) / 255.0
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                x = np.maximum(x @ weight.astype(np.float64) + bias, 0)
            return x

        def in_blocks(images: np.ndarray) -> np.ndarray:
            starts = range(0, len(images), PERCEPTRON_IMAGES)
            return np.concatenate([activations(images[start : start + PERCEPTRON_IMAGES]) for start in starts])

        shape = images.shape[1:]
        # of the weights, not of the settings: another machine may train others from the same
        key = content_key(PERCEPTRON, weights, biases, shape)
        return Classifier(in_blocks, weights[-1], biases[-1], classes, shape, key)

    name = f"classifier-{content_key(PERCEPTRON, images, labels, hidden, epochs, seed)}.npz"
    return _cached(cache_dir, name, make, lambda: _train_perceptron(images, labels, hidden, epochs, seed))


def residual(
    images: Images, labels: Labels, *, cache_dir: AnyPath | None, epochs: int = 5, seed: int = 0
) -> Classifier:
    """Trains a `ResidualClassifier`, or reads it from `cache_dir`. Arguments and errors are those of `perceptron`."""
    classes, labels = _checked(images, labels)
    module, shape = ResidualClassifier(len(classes)), images.shape[1:]

    def make(arrays: Arrays) -> Classifier:
        params = unflatten_dict(dict[str, Any](arrays), sep="/")

        def in_parts(images: np.ndarray) -> np.ndarray:
            return in_chunks(lambda part: _features(module, params, part), images, RESIDUAL_IMAGES)

        head = params["head"]
        return Classifier(in_parts, head["kernel"], head["bias"], classes, shape, content_key(RESIDUAL, params, shape))

    name = f"residual-{content_key(RESIDUAL, images, labels, epochs, seed)}.npz"
    # the network's outputs are numbered from 0, in the order of the sorted classes
    return _cached(
        cache_dir, name, make, lambda: _train_residual(module, images, np.searchsorted(classes, labels), epochs, seed)
    )


def _checked(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the classes, and the labels as int64. Raises: ValueError where they or the images are none."""
    check_images(images, "images")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be ({len(images)},) integers, got {labels.shape} {labels.dtype}")
    classes = np.unique(labels).astype(np.int64)
    if len(classes) < 2:
        raise ValueError(f"labels must hold at least two classes, got only {classes.tolist()}")
    return classes, labels.astype(np.int64)


def _cached(
    cache_dir: AnyPath | None, name: str, make: Callable[[Arrays], Classifier], train: Callable[[], Arrays]
) -> Classifier:
    """Gives the classifier of the cached file, or a newly trained one, which is cached then."""
    path = None if cache_dir is None else to_path(cache_dir) / name
    cached = None if path is None else load_cached(path, make)
    if cached is not None:
        return cached
    arrays = train()
    if path is not None:
        save_cached(path, arrays)
    return make(arrays)


def _train_perceptron(
    images: np.ndarray, labels: np.ndarray, hidden: tuple[int, ...], epochs: int, seed: int
) -> dict[str, np.ndarray]:
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
    named = {"weight": weights, "bias": biases}
    return {f"{kind}{i}": array for kind, arrays in named.items() for i, array in enumerate(arrays)}


@partial(jax.jit, static_argnums=0)
def _features(module: ResidualClassifier, params: Any, images: Any) -> jax.Array:
    return jnp.asarray(module.apply({"params": params}, _scaled(images))[0])


def _scaled(images: Any) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1


def _train_residual(
    module: ResidualClassifier, images: np.ndarray, places: np.ndarray, epochs: int, seed: int
) -> dict[str, np.ndarray]:
    """Trains for one cycle of Muon, on images that are mirrored and moved at random."""
    # one step more for the schedule, whose end is a rate near 0
    rng, steps = np.random.default_rng(seed), max(epochs * (len(images) // BATCH), 1)
    rule = optax.contrib.muon(
        optax.schedules.cosine_onecycle_schedule(steps + 1, PEAK_RATE),
        weight_decay=DECAY,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=as_matrices,
    )
    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *images.shape[1:])))["params"]

    def loss(params, batch, labels):
        logits: Any = module.apply({"params": params}, _scaled(batch))[1]
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
            # whole batches of one shape, which compile once; fewer images than one are a batch
            for start in range(0, max(len(images) - BATCH + 1, 1), BATCH):
                chosen = order[start : start + BATCH]
                params, state, value = step(params, state, _varied(images[chosen], rng), places[chosen])
                update(done := done + 1, "" if done % 50 else f"loss {float(value):.3f}")
    flat: Any = flatten_dict(jax.device_get(params), sep="/")
    return flat


def _varied(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images, and moves all of them alike by up to `SHIFT` pixels."""
    images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    down, across = rng.integers(0, 2 * SHIFT + 1, 2)
    return padded[:, down : down + images.shape[1], across : across + images.shape[2]]
