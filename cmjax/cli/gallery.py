"""`--mode=gallery`: one figure of everything that a consistency model does to images it has not seen.

cmjax gallery --workdir=runs/mnist_ct
cmjax gallery --workdir=runs/mnist_ct --image=1.png,2.png,3.png,4.png --out=gallery.png
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.data.base import DataError
from cmjax.data.batches import to_uint8
from cmjax.generation.arguments import edit_times, read_images
from cmjax.generation.editing import ALL_TASKS, TaskSettings, edit_images
from cmjax.generation.interpolation import interpolate, seeded_ends
from cmjax.generation.sampling import class_labels, guided_as_trained
from cmjax.plotting.plots import save_png, sheet
from cmjax.runs.classes import check_classes
from cmjax.runs.setup import open_for_sampling
from cmjax.runs.stale import CHECKPOINT
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import output
from cmjax.system.files import to_path
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

COLUMNS = 4
"""Images in a row, each under these headings."""

HEADINGS = ("original", "degraded", "result")
LEFT_TO_RIGHT = "interpolation,\nleft to right"
"""The caption of the row whose images are not what the headings say."""


def declare(flags: Flags) -> None:
    flags.group("The figure")
    flags.checkpoint()
    flags.texts("image", "Images to begin with. Default: some of the run's held-out data.")
    flags.integer("seed", 0, "The same seed gives the same images.", at_least=0)
    flags.texts("times", "Noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40.")
    flags.text("out", None, "x.png. Default: <workdir>/gallery.png.")


def start(options: Options) -> None:
    names = {"out": options.out, "seed": options.seed, "times": options.times, "data_dir": options.data_dir}
    run(options.model, images=options.image, **names)


def run(
    workdir: Path,
    *,
    images: list[str] | None,
    out: str | None,
    seed: int,
    times: list[str] | None,
    data_dir: str | None = None,
) -> None:
    """Draw the gallery of a checkpoint, `workdir` or the newest of that folder, into `out`, from held-out or given
    images."""
    trained = open_for_sampling(workdir, data_dir=data_dir)
    path = to_path(out or trained.folder / f"{trained.named}gallery.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    output(path)
    flow_map = trained.load(mesh=make_mesh())
    if flow_map.kind == "denoiser" or flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: a gallery needs a consistency model of images")
    pictures, labels = _pictures(trained, images, seed)
    grid = edit_times(times, trained)
    rows, names = [], []
    with progress("gallery", len(ALL_TASKS)) as update:
        for i, (name, row) in enumerate(_rows(flow_map, trained, pictures, labels, seed, grid)):
            rows.append(row)
            names.append(name)
            update(i + 1, name)
    captions = [LEFT_TO_RIGHT if name == "interpolation" else name for name in names]
    title = f"{trained.title}: edits"
    picture = sheet([to_uint8(row) for row in rows], captions, headings=HEADINGS, title=title)
    try:
        on_first_process(lambda: save_png(path, picture, **{CHECKPOINT: str(trained.used_step)}))
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    say(f"{path}: a row for each of {', '.join(names)}, of {trained.title}; {' | '.join(HEADINGS)}")


def _rows(
    flow_map: BoundModel,
    trained: Trained,
    pictures: np.ndarray,
    labels: np.ndarray | None,
    seed: int,
    grid: tuple[float, ...],
) -> Iterator[tuple[str, np.ndarray]]:
    """A task's name and its row, (3·COLUMNS, h, w, c) in [-1, 1]; tasks that the images do not allow are left out."""
    h, w, c = flow_map.shape
    hole, half = np.ones((1, h, w, 1), np.float32), np.ones((1, h, w, 1), np.float32)
    hole[:, h // 4 : -(h // 4), w // 4 : -(w // 4)] = 0
    half[:, :, w // 2 :] = 0
    fitting = [p for p in (4, 2, 7, 3) if h % p == 0 and w % p == 0 and p < h // 2]
    patch = next((p for p in fitting if h // p >= 12), min(fitting, default=0))
    model, known = guided_as_trained(flow_map, {} if labels is None else {"label": labels}, trained)
    base = TaskSettings(seed=seed, patch=patch, sigma=0.5, add_noise=True, mask=hole, label=known, path=flow_map.path)
    for task in ALL_TASKS:
        if (task == "colorization" and c != 3) or (task == "super_resolution" and not patch):
            log.info("%s: left out, the images are %dx%d in %s", task, w, h, "colour" if c == 3 else "grey")
            continue
        if task == "interpolation":
            shown = class_labels(2, trained.num_classes, 0)
            chosen, shown = guided_as_trained(flow_map, shown, trained)
            ends = seeded_ends(chosen, (seed, seed + 1))
            yield task, interpolate(chosen, ends.latents, 3 * COLUMNS, time=grid[0], conditions=shown)
            continue
        taken, settings = pictures, base
        if task == "blending":
            taken = np.stack([pictures, np.roll(pictures, -1, axis=0)], axis=1).reshape(-1, h, w, c)
            settings = replace(base, mask=half)
        made = edit_images(model, taken, task, settings, grid)
        originals = made.originals[:: len(taken) // COLUMNS]
        # Three cells for each: what a task takes nothing away from is shown twice.
        cells = (originals, made.degraded if len(made.degraded) else originals, made.results)
        yield task, np.stack(cells, axis=1).reshape(3 * COLUMNS, h, w, c)


def _pictures(trained: Trained, files: list[str] | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """COLUMNS images, uint8, given or held out from the run's data, and their labels where the model has classes."""
    conditional = trained.model.class_conditional
    if files:
        given, _ = read_images(files, trained.shape, len(files))
        chosen = given[np.arange(COLUMNS) % len(given)]
        return chosen, np.zeros(COLUMNS, np.int32) if conditional else None
    if not trained.recorded.has_data:
        raise ConfigError("--image is missing: an imported model has no held-out images; name some, as --image=a.png")
    source = trained.run().open_source("test")
    if len(source) < COLUMNS:
        raise DataError(f"the run's data hold out {len(source)} images; {COLUMNS} are needed: give them by --image")
    check_classes(trained, source, f"--workdir={trained.folder}")
    batch = source.gather(np.random.default_rng(seed).choice(len(source), COLUMNS, replace=False))
    return batch["image"], batch["label"] if conditional else None
