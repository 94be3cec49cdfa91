"""`--mode=gallery`: one figure of everything that a consistency model does to pictures it has not seen."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core.sampling import FlowMap
from cmjax.data.base import DataError
from cmjax.data.batches import to_uint8
from cmjax.drawing.draw import class_labels, guided_as_trained
from cmjax.drawing.interpolation import interpolate, seeded_ends
from cmjax.drawing.tasks import ALL_TASKS, Options, edit_pictures
from cmjax.evaluation.plots import image_grid, save_png, with_captions
from cmjax.machine.files import to_path
from cmjax.machine.mesh import make_mesh
from cmjax.machine.processes import first_does, say
from cmjax.machine.progress import progress
from cmjax.modes.edit import read_pictures, read_times
from cmjax.runs.load import load
from cmjax.runs.record import read_record

log = logging.getLogger(__name__)

COLUMNS = 4
"""Pictures in a row, each as original, degraded and result."""


def run(workdir: Path, *, images: list[str] | None, out: str | None, seed: int, times: list[str] | None) -> None:
    """Draw the gallery of the newest checkpoint of `workdir` into `out`, from held-out or given pictures."""
    path = to_path(out or workdir / "gallery.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    flow_map, record = load(workdir, mesh=make_mesh()), read_record(workdir)
    if flow_map.kind == "denoiser" or flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: a gallery needs a consistency model of pictures")
    pictures, labels = _pictures(record, images, flow_map, seed)
    grid = read_times(times, flow_map, record["config"]["model"]["rho"])
    rows, names = [], []
    with progress("gallery", len(ALL_TASKS)) as update:
        for i, (name, row) in enumerate(_rows(flow_map, record, pictures, labels, seed, grid)):
            rows.append(row)
            names.append(name)
            update(i + 1, name)
    picture = image_grid(to_uint8(np.concatenate(rows)), columns=3 * COLUMNS)
    try:
        first_does(lambda: save_png(path, with_captions(picture, names)))
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    say(f"{path}: a row for each of {', '.join(names)}; original | degraded | result")


def _rows(
    flow_map: FlowMap,
    record: dict[str, Any],
    pictures: np.ndarray,
    labels: np.ndarray | None,
    seed: int,
    grid: tuple[float, ...],
) -> Iterator[tuple[str, np.ndarray]]:
    """A task's name and its row, (3·COLUMNS, h, w, c) in [-1, 1]; tasks that the pictures do not allow are left out."""
    h, w, c = flow_map.shape
    hole, half = np.ones((1, h, w, 1), np.float32), np.ones((1, h, w, 1), np.float32)
    hole[:, h // 4 : -(h // 4), w // 4 : -(w // 4)] = 0
    half[:, :, w // 2 :] = 0
    fitting = [p for p in (4, 2, 7, 3) if h % p == 0 and w % p == 0 and p < h // 2]
    patch = next((p for p in fitting if h // p >= 12), min(fitting, default=0))
    model, known = guided_as_trained(flow_map, {} if labels is None else {"label": labels}, record["config"])
    base = Options(seed=seed, patch=patch, sigma=0.5, add_noise=True, mask=hole, label=known, path=flow_map.path)
    for task in ALL_TASKS:
        if (task == "colorization" and c != 3) or (task == "super_resolution" and not patch):
            log.info("%s: left out, the pictures are %dx%dx%d", task, h, w, c)
            continue
        if task == "interpolation":
            shown = class_labels(3 * COLUMNS, record["num_classes"], 0) if labels is not None else {}
            chosen, shown = guided_as_trained(flow_map, shown, record["config"])
            ends = seeded_ends(chosen, (seed, seed + 1))
            yield task, interpolate(chosen, ends.latents, 3 * COLUMNS, time=grid[0], conditions=shown)
            continue
        taken, options = pictures, base
        if task == "blending":
            taken = np.stack([pictures, np.roll(pictures, -1, axis=0)], axis=1).reshape(-1, h, w, c)
            options = replace(base, mask=half)
        made = edit_pictures(model, taken, task, options, grid)
        originals = made.originals[:: len(taken) // COLUMNS]
        # Three cells for each: what a task takes nothing away from is shown twice.
        cells = (originals, made.degraded if len(made.degraded) else originals, made.results)
        yield task, np.stack(cells, axis=1).reshape(3 * COLUMNS, h, w, c)


def _pictures(
    record: dict[str, Any], files: list[str] | None, flow_map: FlowMap, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """COLUMNS pictures, uint8, given or held out from the run's data, and their labels where the model has classes."""
    conditional = record["config"]["net"]["class_conditional"]
    if files:
        given = read_pictures(files, flow_map.shape, len(files))
        chosen = given[np.arange(COLUMNS) % len(given)]
        return chosen, np.zeros(COLUMNS, np.int32) if conditional else None
    if "data" not in record["config"]:
        raise ConfigError("--image is missing: an imported model has no held-out pictures; name some, as --image=a.png")
    source = read_run(record["config"]).open_source("test")
    if len(source) < COLUMNS:
        raise DataError(f"the run's data hold out {len(source)} pictures; {COLUMNS} are needed: give them by --image")
    batch = source.gather(np.random.default_rng(seed).choice(len(source), COLUMNS, replace=False))
    return batch["image"], batch["label"] if conditional else None
