"""Interpolates between images in the noise from which a consistency model makes them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.core.editing import invert, slerp
from cmjax.core.model import BoundModel
from cmjax.core.sampling import gaussian
from cmjax.data.batches import preprocess
from cmjax.generation.sampling import over_devices, rows_in_chunks
from cmjax.system.progress import ProgressBar, no_progress, progress

STARTS = 4  # latents that the descent starts from for each image; the one that ends nearest is kept
RATES = np.geomspace(0.2, 0.005, 12)
STEPS = 25  # the descent: so many steps with each learning rate


@dataclass(frozen=True)
class Ends:
    """Holds the two ends of an interpolation: latents (2, h, w, c).

    images, errors: of a search for two images, these in [-1, 1], and the RMS distance of f(T·z, T) from them; empty for
    the latents of seeds.
    """

    latents: jax.Array
    images: np.ndarray
    errors: np.ndarray


def seeded_ends(flow_map: BoundModel, seeds: tuple[int, int]) -> Ends:
    """Samples the latents of two seeds."""
    latents = [gaussian(jax.random.key(seed), (1, *flow_map.shape)) for seed in seeds]
    return Ends(jnp.concatenate(latents), np.zeros((0, *flow_map.shape), np.float32), np.zeros(0))


def find_ends(
    flow_map: BoundModel, images: np.ndarray, *, time: float, seed: int, conditions: dict[str, np.ndarray]
) -> Ends:
    """Finds the latents whose one-evaluation samples come nearest to two images, (2, h, w, c) uint8.

    conditions: of each image, (2, ...).
    """
    images = np.asarray(preprocess(jnp.asarray(images), jax.random.key(0), horizontal_flip=False))
    # (2 · STARTS, h, w, c): each image once for each of its starts
    targets = np.repeat(images, STARTS, axis=0)
    labels = {name: np.repeat(values, STARTS, axis=0) for name, values in conditions.items()}

    def descend(model, rows):
        (flow_map, rate), (targets, latents, labels) = model, rows
        return invert(flow_map, targets, latents, time=time, steps=STEPS, learning_rate=rate, **labels)

    # the rate is an argument: all of the descent is one compiled function
    compiled = over_devices(descend)
    latents, errors = gaussian(jax.random.key(seed), targets.shape), np.zeros(len(targets))
    with progress("finding the images' noise", len(RATES)) as update:
        for i, rate in enumerate(RATES.astype(np.float32)):
            latents, errors = compiled((flow_map, rate), (targets, latents, labels))
            update(i + 1, f"error {errors.min():.3f}")
    by_image = errors.reshape(len(images), STARTS)
    best = by_image.argmin(axis=1)
    # of each image the start that ended nearest, as a row of all
    chosen = jnp.asarray(latents[np.arange(len(images)) * STARTS + best])
    return Ends(chosen, images, by_image.min(axis=1))


def interpolate(
    flow_map: BoundModel,
    ends: jax.Array,
    num: int,
    *,
    time: float,
    conditions: dict[str, np.ndarray],
    show_progress: ProgressBar = no_progress,
) -> np.ndarray:
    """Makes `num` images on the way from one latent of `ends` (2, h, w, c) to the other, (num, h, w, c) in [-1, 1].

    Between two classes an image is (1 − w)·f(x | first) + w·f(x | last), w its fraction of the way.

    conditions: of each end, (2, ...). show_progress: counts the images.
    """
    first, last = (jnp.broadcast_to(end, (num, *flow_map.shape)) for end in ends)
    fraction = jnp.linspace(0, 1, num)
    classes = [{name: np.repeat(values[[end]], num, axis=0) for name, values in conditions.items()} for end in (0, 1)]
    rows = {"z": slerp(first, last, fraction), "fraction": fraction, "classes": classes}
    between = any((values[0] != values[1]).any() for values in conditions.values())

    def sample_rows(f, rows):
        # at t_max x_t is noise alone: nothing of x0 is left
        x = f.path.b(jnp.asarray(time)) * rows["z"]
        one = f(x, time, **rows["classes"][0])
        # one class at both ends needs one evaluation
        if not between:
            return one
        w = rows["fraction"].reshape(-1, *(1,) * (x.ndim - 1))
        return (1 - w) * one + w * f(x, time, **rows["classes"][1])

    sample, images = over_devices(sample_rows), []
    with show_progress(num) as update:
        for part in rows_in_chunks(rows, flow_map.shape):
            images.append(sample(flow_map, part))
            update(min(len(images) * len(part["z"]), num), "")
    return np.concatenate(images)[:num]
