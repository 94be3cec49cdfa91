"""The editing tasks: what each makes of a batch of pictures, and the results."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.core.editing import (
    Operator,
    colorization,
    edit,
    inpainting,
    nothing_known,
    super_resolution,
)
from cmjax.core.paths import Path, ve
from cmjax.core.sampling import FlowMap, gaussian
from cmjax.data.batches import preprocess
from cmjax.drawing.draw import keys_of, over_devices

STROKE_LEVELS = (5.38, 2.24)
"""Noise levels of stroke-guided editing, as published.   [Song et al. 2023, app. D]"""
LEAST_HEIGHT = 64
"""Smaller pictures take less noise in proportion: their structures have fewer pixels to average it over."""


@dataclass(frozen=True)
class TaskSettings:
    """What the tasks take from the command line, beside the picture."""

    times: tuple[float, ...] | None = None
    mask: np.ndarray | None = None  # (1, h, w, 1), 1 where a pixel is kept
    patch: int = 4
    sigma: float | None = None
    add_noise: bool = False
    margin: float = 0.25
    seed: int = 0
    clip: bool = True
    label: dict[str, Any] = field(default_factory=dict)
    path: Path = ve


@dataclass(frozen=True)
class Edited:
    """What is shown of an edit, each (n, h, w, c) in [-1, 1]."""

    originals: np.ndarray  # as given: two for each result of blending
    degraded: np.ndarray  # what was left of them, one for each result; none where a task takes nothing away
    results: np.ndarray


@dataclass(frozen=True)
class Edit:
    """What a task makes of a batch of pictures in [-1, 1]: the loop's arguments, and what is shown as degraded."""

    images: jax.Array
    operator: Operator
    times: tuple[float, ...]
    start: jax.Array | None = None
    degraded: jax.Array | None = None


def _inpainting(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    operator = inpainting(jnp.asarray(_mask(settings, "inpainting")))
    return Edit(images, operator, grid, degraded=operator.combine(images, jnp.zeros_like(images)))


def _outpainting(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    b, h, w, c = images.shape
    rows, columns = (max(1, round(n * (1 - 2 * settings.margin))) for n in (h, w))
    top, left = (h - rows) // 2, (w - columns) // 2
    smaller = jnp.clip(jax.image.resize(images, (b, rows, columns, c), "lanczos3"), -1, 1)
    within = ((0, 0), (top, h - rows - top), (left, w - columns - left), (0, 0))
    known = jnp.pad(jnp.ones((1, rows, columns, 1)), within)
    framed = jnp.pad(smaller, within)
    return Edit(framed, inpainting(known), grid, degraded=framed)


def _colorization(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    if images.shape[-1] != 3:
        raise ConfigError("--task=colorization: the model's images have no color")
    operator = colorization()
    grey = jnp.broadcast_to(operator.forward(images)[..., :1] / 3**0.5, images.shape)  # for the eye
    return Edit(images, operator, grid, degraded=grey)


def _super_resolution(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    try:
        operator = super_resolution(settings.patch)
        return Edit(images, operator, grid, degraded=operator.degrade(images))
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _strokes(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    return Edit(images, nothing_known(), _stroke_times(images, settings.path), start=images)


def _stroke_times(images: jax.Array, path: Path) -> tuple[float, ...]:
    share = min(images.shape[1] / LEAST_HEIGHT, 1)
    return tuple(float(path.time_at(share * level)) for level in STROKE_LEVELS)


def _blending(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    operator = inpainting(jnp.asarray(_mask(settings, "blending")))
    pasted = operator.combine(images[0::2], images[1::2])
    highest = _stroke_times(images, settings.path)[0]
    below = tuple(t for t in grid if t <= highest) or grid[-1:]
    return Edit(images[0::2], operator, below, start=pasted, degraded=pasted)


TASKS: dict[str, Callable[[jax.Array, tuple[float, ...], TaskSettings], Edit]] = {
    "inpainting": _inpainting,
    "outpainting": _outpainting,
    "colorization": _colorization,
    "super_resolution": _super_resolution,
    "strokes": _strokes,
    "blending": _blending,
}
"""The tasks that are loops of `edit`; denoising and interpolation are one evaluation."""

ALL_TASKS = (*TASKS, "denoising", "interpolation")
PICTURES = {"blending": 2}
"""How many pictures an edit takes; one unless said here."""


def edit_pictures(
    flow_map: FlowMap, pictures: np.ndarray, task: str, settings: TaskSettings, grid: tuple[float, ...]
) -> Edited:
    """A result for each of the pictures, or for blending for each pair of them, compiled once.

    pictures: (n, h, w, c) uint8. settings.label: as long as the results. grid: the model's descending noise levels.
    """
    images = preprocess(jnp.asarray(pictures), jax.random.key(0), horizontal_flip=False)
    number = len(images) // PICTURES.get(task, 1)
    keys, labels = keys_of(settings.seed, np.arange(number)), settings.label
    if task == "denoising":
        sigma, t = _sigma_and_time(flow_map, settings)
        noise = gaussian(jax.random.wrap_key_data(jnp.asarray(keys)), images.shape)
        noisy = images + sigma * noise if settings.add_noise else images
        denoise = over_devices(lambda flow_map, rows: flow_map(flow_map.path.a(t) * rows["x"], t, **rows["labels"]))
        results = denoise(flow_map, {"x": noisy, "labels": labels})
        return Edited(*map(np.asarray, (images, noisy if settings.add_noise else images[:0], results)))
    edit_of = TASKS[task](images, grid, settings)
    times = settings.times or edit_of.times

    def complete(flow_map, rows):
        key, conditions = jax.random.wrap_key_data(rows["keys"]), rows["labels"]
        given = {"times": times, "start": rows["start"], "clip": settings.clip}
        return edit(flow_map, key, rows["images"], edit_of.operator, **given, **conditions)

    rows = {"keys": keys, "images": edit_of.images, "start": edit_of.start, "labels": labels}
    results = over_devices(complete)(flow_map, rows)
    degraded = images[:0] if edit_of.degraded is None else edit_of.degraded
    return Edited(*map(np.asarray, (images, degraded, results)))


def _sigma_and_time(flow_map: FlowMap, settings: TaskSettings) -> tuple[float, jax.Array]:
    """The noise that denoising removes, and where on the path it is."""
    sigma = settings.sigma
    if sigma is None:
        raise ConfigError("--sigma is missing: the std of the picture's noise, where black to white is 2")
    low, high = (float(flow_map.path.noise_level(t)) for t in (flow_map.t_min, flow_map.t_max))
    if not low <= sigma <= high:
        raise ConfigError(f"--sigma={sigma}: must lie in [{low:.4g}, {high:.4g}]")
    return sigma, flow_map.path.time_at(sigma)


def _mask(settings: TaskSettings, task: str) -> np.ndarray:
    if settings.mask is None:
        raise ConfigError(f"--mask is missing: --task={task} keeps its white pixels")
    return settings.mask
