"""`--mode=edit`: a picture, edited by a consistency model that was trained for no such thing."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.core.grids import path_grid
from cmjax.core.sampling import FlowMap
from cmjax.data.base import DataError
from cmjax.data.batches import to_uint8
from cmjax.data.folder import read_image
from cmjax.drawing.draw import class_labels, guided_as_trained
from cmjax.drawing.interpolation import Ends, find_ends, interpolate, seeded_ends
from cmjax.drawing.tasks import ALL_TASKS, PICTURES, Options, edit_pictures
from cmjax.evaluation.plots import image_grid, save_png
from cmjax.machine.files import to_path
from cmjax.machine.mesh import make_mesh
from cmjax.machine.processes import first_does, say
from cmjax.runs.load import load
from cmjax.runs.record import read_record

log = logging.getLogger(__name__)


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
    path = to_path(out or workdir / "edits" / f"{task}.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    flow_map, record = load(workdir, mesh=make_mesh()), read_record(workdir)
    if flow_map.kind == "denoiser":
        raise ConfigError(f"--workdir={workdir}: it is a diffusion teacher; editing needs a consistency model")
    if flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: its samples, {flow_map.shape}, are no pictures")
    grid = read_times(times, flow_map, record["config"]["model"]["rho"])
    flow_map, conditions = guided_as_trained(flow_map, _labels(record, num, label), record["config"])
    if task == "interpolation":
        ends = _latents(images, seeds, flow_map, grid[0], conditions, options["seed"])
        results = interpolate(flow_map, ends.latents, num, time=grid[0], conditions=conditions)
        columns = {"picture": ends.pictures[:1], "on the way": results, "other picture": ends.pictures[1:]}
        _write(path, columns, results, flow_map)
        return
    pictures = read_pictures(images, flow_map.shape, PICTURES.get(task, 1))
    known = None if mask is None else _read_mask(mask, flow_map.shape)
    settings = Options(times=grid if times else None, mask=known, label=conditions, path=flow_map.path, **options)
    made = edit_pictures(flow_map, np.tile(pictures, (num, 1, 1, 1)), task, settings, grid)
    columns = {"original": made.originals[: len(pictures)], "degraded": made.degraded[:1], "result": made.results}
    _write(path, columns, made.results, flow_map)


def _latents(
    images: list[str] | None,
    seeds: list[str] | None,
    flow_map: FlowMap,
    time: float,
    conditions: dict[str, np.ndarray],
    seed: int,
) -> Ends:
    """What interpolation goes between: the latents of two seeds, or those found for two pictures."""
    if images and seeds:
        raise ConfigError("--seeds and --image: interpolation goes between two seeds or two pictures, not both")
    if not images:
        return seeded_ends(flow_map, _two_seeds(seeds))
    pictures = read_pictures(images, flow_map.shape, 2)
    ends = find_ends(flow_map, pictures, time=time, seed=seed, conditions=conditions)
    for file, error in zip(images, ends.errors, strict=True):
        say(f"{file}: found again with an error of {error:.3f} (RMS; black to white is 2)")
    return ends


def read_times(texts: list[str] | None, flow_map: FlowMap, rho: float, steps: int = 40) -> tuple[float, ...]:
    """The noise levels of an edit: those given, or all of a grid of `steps` points, descending."""
    from cmjax.modes.sample import parse_times

    if texts:
        return parse_times(texts, flow_map, rho)
    grid = path_grid(steps, path=flow_map.path, t_min=flow_map.t_min, t_max=flow_map.t_max, rho=rho)
    return tuple(grid[::-1].tolist())


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
        picture, (height, width) = read_image(to_path(file), (shape[0], shape[1], shape[2]))
    except DataError as error:
        raise ConfigError(f"--{flag}={file} cannot be read: {error}") from error
    if (height, width) != tuple(shape[:2]):
        log.info("%s: %dx%d pixels, fitted to the model's %dx%d", file, height, width, shape[0], shape[1])
    return picture


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


def _write(path: Path, columns: dict[str, np.ndarray], results: np.ndarray, flow_map: FlowMap) -> None:
    """The strip of the columns that have pictures, and each result alone."""
    columns = {name: pictures for name, pictures in columns.items() if len(pictures)}
    strip = np.concatenate(list(columns.values()))

    def write() -> None:
        save_png(path, image_grid(to_uint8(strip), columns=len(strip)))
        for i, result in enumerate(to_uint8(results)):
            number = f"-{i}" if len(results) > 1 else ""
            pixels = np.broadcast_to(result, (*flow_map.shape[:2], 3))
            save_png(path.with_name(f"{path.stem}-result{number}.png"), pixels)

    try:
        first_does(write)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    say(f"{path}: {' | '.join(columns)}; results alone: {path.stem}-result*.png beside it")
