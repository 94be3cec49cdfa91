"""Edits images by the tasks of consistency models: inpainting, colorization, super-resolution, …"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.core.editing import (
    LUMA,
    EditStep,
    Operator,
    colorization,
    edit_step,
    edit_steps,
    inpainting,
    nothing_known,
    super_resolution,
)
from cmjax.core.model import BoundModel
from cmjax.core.paths import Path, ve
from cmjax.core.sampling import gaussian
from cmjax.data.batches import preprocess
from cmjax.generation.keys import keys_of
from cmjax.generation.sampling import over_devices, rows_in_chunks
from cmjax.system.progress import ProgressBar, no_progress

STROKE_LEVELS = (5.38, 2.24)  # noise levels of stroke-guided editing, as published.   [Song et al. 2023, app. D]
LEAST_HEIGHT = 64  # smaller images take less noise in proportion: their structures have fewer pixels to average it over


@dataclass(frozen=True)
class TaskSettings:
    """Holds the settings of the tasks, beside the image."""

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
    """Holds the images of an edit, each (n, h, w, c) in [-1, 1]."""

    originals: np.ndarray  # two for each result of blending
    degraded: np.ndarray  # the originals without what the task takes away, one for each result, or none
    results: np.ndarray

    def columns(self, each: int) -> dict[str, np.ndarray]:
        """Gives the columns of a strip where all results are of the same images, `each` of them."""
        return {"original": self.originals[:each], "degraded": self.degraded[:1], "result": self.results}


@dataclass(frozen=True)
class Edit:
    """Holds the arguments of `core.editing.edit` for a batch of images in [-1, 1], and the images shown as degraded."""

    images: jax.Array
    operator: Operator
    times: tuple[float, ...]
    start: jax.Array | None = None
    degraded: jax.Array | None = None


def _inpainting(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    operator = inpainting(jnp.asarray(_mask(settings, "inpainting")))
    # the missing pixels are shown as 0, the middle grey of [-1, 1]
    return Edit(images, operator, grid, degraded=operator.combine(images, jnp.zeros_like(images)))


def _outpainting(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    b, h, w, c = images.shape
    if not 0 < settings.margin < 0.5:
        raise ConfigError(f"--margin={settings.margin:g}: must be above 0 and below 0.5")
    # the margin is taken off both sides
    rows, columns = (max(1, round(n * (1 - 2 * settings.margin))) for n in (h, w))
    if (rows, columns) == (h, w):
        raise ConfigError(f"--margin={settings.margin:g}: adds no pixel to the model's {w}x{h}; name a larger fraction")
    top, left = (h - rows) // 2, (w - columns) // 2
    # lanczos3 overshoots at edges
    smaller = jnp.clip(jax.image.resize(images, (b, rows, columns, c), "lanczos3"), -1, 1)
    within = ((0, 0), (top, h - rows - top), (left, w - columns - left), (0, 0))
    known = jnp.pad(jnp.ones((1, rows, columns, 1)), within)
    framed = jnp.pad(smaller, within)
    return Edit(framed, inpainting(known), grid, degraded=framed)


def _colorization(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    if images.shape[-1] != 3:
        raise ConfigError("--task=colorization: the model's images have no color")
    luma = jnp.asarray(LUMA) / sum(LUMA)  # white stays white, for the eye
    grey = jnp.broadcast_to(jnp.sum(images * luma[None, None, None], axis=-1, keepdims=True), images.shape)
    return Edit(images, colorization(), grid, degraded=grey)


def _super_resolution(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    _, h, w, _ = images.shape
    if settings.patch < 2 or h % settings.patch or w % settings.patch:
        raise ConfigError(f"--patch={settings.patch}: must be at least 2, and divide the model's {w}x{h} pixels")
    operator = super_resolution(settings.patch)
    return Edit(images, operator, grid, degraded=operator.degrade(images))


def _strokes(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    # SDEdit: no coordinate is known for sure, so the strokes only set the start, and later steps may change them all
    return Edit(images, nothing_known(), _stroke_times(images, settings.path), start=images)


def _stroke_times(images: jax.Array, path: Path) -> tuple[float, ...]:
    fraction = min(images.shape[1] / LEAST_HEIGHT, 1)
    return tuple(float(path.time_at(fraction * level)) for level in STROKE_LEVELS)


def _blending(images: jax.Array, grid: tuple[float, ...], settings: TaskSettings) -> Edit:
    operator = inpainting(jnp.asarray(_mask(settings, "blending")))
    # images come in pairs: the first is kept where the mask is white, the second fills the rest
    pasted = operator.combine(images[0::2], images[1::2])
    highest = _stroke_times(images, settings.path)[0]
    # the pasted image starts at the level of the strokes; above it nothing of it would be left
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
OF_PIXELS = ("outpainting", "colorization", "super_resolution")  # whose operator makes no sense of latents
IMAGES_NEEDED = {"blending": 2}  # how many images an edit takes; one of any other task


def edit_images(
    flow_map: BoundModel,
    images: np.ndarray,
    task: str,
    settings: TaskSettings,
    grid: tuple[float, ...],
    show_progress: ProgressBar = no_progress,
) -> Edited:
    """Edits each of the images, or for blending each pair of them, by one compiled function.

    images: (n, h, w, c) uint8, or float32 latents in the model's units. settings.label: as long as the results.
    grid: the model's descending noise levels.
    show_progress: counts the evaluations of each result.
    """
    originals = preprocess(jnp.asarray(images), jax.random.key(0), horizontal_flip=False)
    keys = keys_of(settings.seed, np.arange(len(images) // IMAGES_NEEDED.get(task, 1)))
    rows = {"keys": keys, "labels": settings.label}
    if task == "denoising":
        sigma = settings.sigma
        if sigma is None:
            raise ConfigError("--sigma is missing: the std of the image's noise, where black to white is 2")
        low, high = (float(flow_map.path.noise_level(t)) for t in (flow_map.t_min, flow_map.t_max))
        if not low <= sigma <= high:
            raise ConfigError(f"--sigma={sigma}: must lie in [{low:.4g}, {high:.4g}]")
        noise = gaussian(jax.random.wrap_key_data(jnp.asarray(keys)), originals.shape)
        noisy = originals + sigma * noise if settings.add_noise else originals

        def denoise(model, rows):
            flow_map, t = model
            # x_t = a·x0 + b·z = a·(x0 + σ·z): the noisy image, scaled to the model's path
            return flow_map(flow_map.path.a(t) * rows["x"], t, **rows["labels"])

        time = np.asarray(flow_map.path.time_at(sigma), np.float32)
        results = _evaluate(denoise, flow_map, rows | {"x": noisy}, [time], show_progress)
        return Edited(*map(np.asarray, (originals, noisy if settings.add_noise else originals[:0], results)))
    edit = TASKS[task](originals, grid, settings)
    operator = edit.operator

    def complete(model, rows):
        (flow_map, step), key = model, jax.random.wrap_key_data(rows["keys"])
        return edit_step(
            flow_map, key, rows["images"], operator, rows["x"], step, clip=settings.clip, **rows["labels"]
        )  # fmt: skip

    # inpainting starts from the known pixels alone, and strokes or blending from an image
    start = operator.degrade(edit.images) if edit.start is None else edit.start
    steps = jax.device_get(edit_steps(flow_map.path, settings.times or edit.times, flow_map.t_min))
    each = [EditStep(*values) for values in zip(*steps, strict=True)]
    results = _evaluate(complete, flow_map, rows | {"images": edit.images, "x": start}, each, show_progress)
    degraded = originals[:0] if edit.degraded is None else edit.degraded
    return Edited(*map(np.asarray, (originals, degraded, results)))


def _evaluate(
    function: Callable, flow_map: BoundModel, rows: dict, steps: Sequence[Any], show_progress: ProgressBar
) -> np.ndarray:
    """Repeats x ← function((flow_map, step), rows), x = rows["x"], for each of the steps."""
    # a step is an argument of what is compiled: a loop inside would compile anew for every number of steps
    compiled, number, finished = over_devices(function), len(rows["keys"]), []
    with show_progress(number * len(steps)) as update:
        for part in rows_in_chunks(rows, flow_map.shape):
            before = len(finished) * len(part["keys"])
            # rows repeated to fill the last part do not count in the bar
            here = min(len(part["keys"]), number - before)
            for i, step in enumerate(steps):
                part["x"] = compiled((flow_map, step), part)
                update(before * len(steps) + here * (i + 1), "")
            finished.append(part["x"])
    return np.concatenate(finished)[:number]


def _mask(settings: TaskSettings, task: str) -> np.ndarray:
    if settings.mask is None:
        raise ConfigError(f"--mask is missing: --task={task} keeps its white pixels")
    return settings.mask
