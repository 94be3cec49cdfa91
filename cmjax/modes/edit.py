"""`--mode=edit`: a picture, edited by a consistency model that was trained for no such thing."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.core.editing import (
    Operator,
    colorization,
    edit,
    inpainting,
    nothing_known,
    slerp,
    super_resolution,
)
from cmjax.core.grids import karras_grid
from cmjax.core.sampling import FlowMap, gaussian
from cmjax.data.base import DataError
from cmjax.data.batches import preprocess, to_uint8
from cmjax.data.folder import read_image
from cmjax.evaluation.plots import image_grid, save_png
from cmjax.fields import ConfigError
from cmjax.modes.draw import class_labels
from cmjax.workdir import load, read_record

log = logging.getLogger(__name__)

STROKE_TIMES = (5.38, 2.24)
"""Of stroke-guided editing, as published.   [Song et al. 2023, app. D]"""


@dataclass(frozen=True)
class Options:
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


@dataclass(frozen=True)
class Edit:
    """What a task makes of a batch of pictures in [-1, 1]: the loop's arguments, and what is shown as degraded."""

    images: jax.Array
    operator: Operator
    times: tuple[float, ...]
    start: jax.Array | None = None
    degraded: jax.Array | None = None


def _inpainting(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    operator = inpainting(jnp.asarray(_mask(options, "inpainting")))
    return Edit(images, operator, grid, degraded=operator.combine(images, jnp.zeros_like(images)))


def _outpainting(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    b, h, w, c = images.shape
    rows, columns = (max(1, round(n * (1 - 2 * options.margin))) for n in (h, w))
    top, left = (h - rows) // 2, (w - columns) // 2
    smaller = jnp.clip(jax.image.resize(images, (b, rows, columns, c), "lanczos3"), -1, 1)
    within = ((0, 0), (top, h - rows - top), (left, w - columns - left), (0, 0))
    known = jnp.pad(jnp.ones((1, rows, columns, 1)), within)
    framed = jnp.pad(smaller, within)
    return Edit(framed, inpainting(known), grid, degraded=framed)


def _colorization(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    if images.shape[-1] != 3:
        raise ConfigError("--task=colorization: the model's images have no color")
    operator = colorization()
    grey = jnp.broadcast_to(operator.forward(images)[..., :1] / 3**0.5, images.shape)  # for the eye
    return Edit(images, operator, grid, degraded=grey)


def _super_resolution(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    try:
        operator = super_resolution(options.patch)
        return Edit(images, operator, grid, degraded=operator.degrade(images))
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _strokes(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    return Edit(images, nothing_known(), STROKE_TIMES, start=images)


def _blending(images: jax.Array, grid: tuple[float, ...], options: Options) -> Edit:
    operator = inpainting(jnp.asarray(_mask(options, "blending")))
    pasted = operator.combine(images[0::2], images[1::2])
    below = tuple(t for t in grid if t <= STROKE_TIMES[0])
    return Edit(images[0::2], operator, below, start=pasted, degraded=pasted)


TASKS: dict[str, Callable[[jax.Array, tuple[float, ...], Options], Edit]] = {
    "inpainting": _inpainting,
    "outpainting": _outpainting,
    "colorization": _colorization,
    "super_resolution": _super_resolution,
    "strokes": _strokes,
    "blending": _blending,
}
"""The tasks that are loops of `edit`; denoising is one evaluation, and interpolation needs no picture."""

ALL_TASKS = (*TASKS, "denoising", "interpolation")
PICTURES = {"blending": 2}
"""How many pictures a task takes; one unless said here."""


def run(
    workdir: Path,
    *,
    task: str | None,
    images: list[str] | None,
    mask: str | None,
    out: str | None,
    times: list[str] | None,
    num: int,
    seeds: list[str] | None,
    label: int | None,
    **options: Any,
) -> None:
    """Edit a picture with the newest checkpoint of `workdir`; write the strip original | degraded | results to `out`,
    and each result alone beside it."""
    if task not in ALL_TASKS:
        raise ConfigError(f"--task={task}: must be one of {', '.join(ALL_TASKS)}")
    path = Path(out or workdir / "edits" / f"{task}.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    flow_map, record = load(workdir), read_record(workdir)
    if flow_map.kind != "consistency":
        raise ConfigError(f"--workdir={workdir}: it is a diffusion teacher; editing needs a consistency model")
    if flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: its samples, {flow_map.shape}, are no pictures")
    grid = read_times(times, flow_map, record["config"]["model"]["rho"])
    conditions = _labels(record, num, label)
    if task == "interpolation":
        strip = results = interpolate(flow_map, _two_seeds(seeds), num, time=grid[0], conditions=conditions)
        _write(path, strip, results, flow_map)
        return
    pictures = read_pictures(images, flow_map.shape, PICTURES.get(task, 1))
    known = None if mask is None else _read_mask(mask, flow_map.shape)
    settings = Options(times=grid if times else None, mask=known, label=conditions, **options)
    shown, results = edit_pictures(flow_map, pictures, task, settings, num, grid)
    _write(path, np.concatenate([*shown, results]), results, flow_map)


def edit_pictures(
    flow_map: FlowMap, pictures: np.ndarray, task: str, options: Options, num: int, grid: tuple[float, ...]
) -> tuple[list[np.ndarray], np.ndarray]:
    """What is shown before the results (the pictures, and what was left of them), and `num` results, in [-1, 1].

    pictures: (n, h, w, c) uint8, those of one edit. grid: the model's descending noise levels.
    """
    images = preprocess(jnp.asarray(pictures), jax.random.key(0), horizontal_flip=False)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), jnp.arange(num))
    if task == "denoising":
        noisy, result = _denoise(flow_map, images, keys, options)
        return [np.asarray(images)] + ([] if noisy is None else [np.asarray(noisy)]), np.asarray(result)
    plan = TASKS[task](images, grid, options)
    labels = jax.tree.map(jnp.asarray, options.label)
    times = options.times or plan.times
    start = None if plan.start is None else _repeated(plan.start, num)

    def results(flow_map, keys, images, start):
        return edit(flow_map, keys, images, plan.operator, times=times, start=start, clip=options.clip, **labels)

    made = jax.jit(results)(flow_map, keys, _repeated(plan.images, num), start)
    shown = [np.asarray(images)] + ([] if plan.degraded is None else [np.asarray(plan.degraded)])
    return shown, np.asarray(made)


def _denoise(flow_map: FlowMap, images: jax.Array, keys: Any, options: Options):
    """f(x, σ) of a picture that bears noise of std σ, and that picture where the noise was added here."""
    sigma = options.sigma
    if sigma is None:
        raise ConfigError("--sigma is missing: the std of the picture's noise, where black to white is 2")
    if not flow_map.t_min <= sigma <= flow_map.t_max:
        raise ConfigError(f"--sigma={sigma}: must lie in [{flow_map.t_min}, {flow_map.t_max}]")
    x = _repeated(images, len(keys))
    if options.add_noise:
        x = x + sigma * gaussian(keys, x.shape)
    labels = jax.tree.map(jnp.asarray, options.label)
    result = jax.jit(lambda f, x: f(x, sigma, **labels))(flow_map, x)
    return (x[:1] if options.add_noise else None), result


def interpolate(
    flow_map: FlowMap, seeds: tuple[int, int], num: int, *, time: float, conditions: dict[str, np.ndarray]
) -> np.ndarray:
    """`num` pictures on the way from the sample of one seed to that of another, (num, h, w, c) in [-1, 1]."""
    shape, labels = (num, *flow_map.shape), jax.tree.map(jnp.asarray, conditions)
    first, last = (gaussian(jax.random.key(seed), (1, *flow_map.shape)) for seed in seeds)
    latents = slerp(jnp.broadcast_to(first, shape), jnp.broadcast_to(last, shape), jnp.linspace(0, 1, num))
    return np.asarray(jax.jit(lambda f, x: f(x, time, **labels))(flow_map, time * latents))


def read_times(texts: list[str] | None, flow_map: FlowMap, rho: float, steps: int = 40) -> tuple[float, ...]:
    """The noise levels of an edit: those given, or all of the Karras grid of `steps` points, descending."""
    from cmjax.modes.sample import parse_times

    if texts:
        return parse_times(texts, flow_map, rho)
    return tuple(map(float, karras_grid(steps, t_min=flow_map.t_min, t_max=flow_map.t_max, rho=rho)[::-1]))


def read_pictures(files: list[str] | None, shape: tuple[int, ...], needed: int) -> np.ndarray:
    """The pictures fitted to the model's shape, said aloud, (n, h, w, c) uint8."""
    if not files or len(files) != needed:
        raise ConfigError(f"--image={','.join(files or [])}: {needed} picture{'s' if needed > 1 else ''} must be given")
    return np.stack([_read_picture("image", file, shape) for file in files])


def _read_mask(file: str, shape: tuple[int, ...]) -> np.ndarray:
    kept = _read_picture("mask", file, (*shape[:2], 1)) >= 128
    if kept.all() or not kept.any():
        raise ConfigError(f"--mask={file}: it is all {'white' if kept.all() else 'black'}; white pixels are kept")
    return kept.astype(np.float32)[None]


def _read_picture(flag: str, file: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        picture, (height, width) = read_image(Path(file), (shape[0], shape[1], shape[2]))
    except DataError as error:
        raise ConfigError(f"--{flag}={file} cannot be read: {error}") from error
    if (height, width) != tuple(shape[:2]):
        log.info("%s: %dx%d pixels, fitted to the model's %dx%d", file, height, width, shape[0], shape[1])
    return picture


def _mask(options: Options, task: str) -> np.ndarray:
    if options.mask is None:
        raise ConfigError(f"--mask is missing: --task={task} keeps its white pixels")
    return options.mask


def _labels(record: dict[str, Any], num: int, label: int | None) -> dict[str, np.ndarray]:
    num_classes = record["num_classes"] if record["config"]["net"]["class_conditional"] else None
    if label is not None and not 0 <= label < (num_classes or 0):
        raise ConfigError(f"--label={label}: the model has {num_classes or 'no'} classes, numbered from 0")
    if num_classes and label is None:
        raise ConfigError(f"--label is missing: the model has {num_classes} classes, numbered from 0")
    return class_labels(num, num_classes, label)


def _two_seeds(seeds: list[str] | None) -> tuple[int, int]:
    try:
        first, last = map(int, seeds or ("0", "1"))
    except ValueError:
        raise ConfigError(f"--seeds={','.join(seeds or [])}: must be two whole numbers, as 3,8") from None
    return first, last


def _repeated(images: jax.Array, num: int) -> jax.Array:
    return jnp.broadcast_to(images[:1], (num, *images.shape[1:]))


def _write(path: Path, strip: np.ndarray, results: np.ndarray, flow_map: FlowMap) -> None:
    try:
        save_png(path, image_grid(to_uint8(strip), columns=len(strip)))
        for i, result in enumerate(to_uint8(results)):
            number = f"-{i}" if len(results) > 1 else ""
            pixels = np.broadcast_to(result, (*flow_map.shape[:2], 3))
            save_png(path.with_name(f"{path.stem}-result{number}.png"), pixels)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    print(f"{path}: original | degraded | result; results alone: {path.stem}-result*.png beside it")
