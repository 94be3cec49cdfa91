"""The gallery of a model: every editing task on a few images."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.data.base import DataError
from cmjax.data.batches import preprocess
from cmjax.generation.arguments import read_images
from cmjax.generation.decoding import Decoder
from cmjax.generation.editing import ALL_TASKS, OF_PIXELS, TaskSettings, edit_images
from cmjax.generation.interpolation import interpolate, seeded_ends
from cmjax.generation.sampling import class_labels, guided_by
from cmjax.runs.dependencies import check_classes
from cmjax.runs.trained import Trained

log = logging.getLogger(__name__)

COLUMNS = 4  # images in a row, each under these headings
HEADINGS = ("original", "degraded", "result")


def gallery_rows(
    flow_map: BoundModel,
    trained: Trained,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    seed: int,
    grid: tuple[float, ...],
    decoder: Decoder | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Edits the images by every task: its name and its row, (3·COLUMNS, h, w, c) in [-1, 1], under `HEADINGS`.

    Tasks that the images do not allow are left out. images, labels: as `gallery_images` gives them. decoder: of
    latents, which are edited in place of the images.
    """
    h, w, c = flow_map.shape
    originals = np.asarray(preprocess(jnp.asarray(images), jax.random.key(0), horizontal_flip=False))
    images = images if decoder is None else decoder.encode(images)
    shown = decoder or np.asarray
    hole, half = np.ones((1, h, w, 1), np.float32), np.ones((1, h, w, 1), np.float32)
    hole[:, h // 4 : -(h // 4), w // 4 : -(w // 4)] = 0
    half[:, :, w // 2 :] = 0
    fitting = [p for p in (4, 2, 7, 3) if h % p == 0 and w % p == 0 and p < h // 2]
    # so that at least twelve large pixels are left along the height, where one fits
    patch = next((p for p in fitting if h // p >= 12), min(fitting, default=0))
    guidance = trained.samples, trained.model
    model, known = guided_by(flow_map, {} if labels is None else {"label": labels}, *guidance)
    base = TaskSettings(seed=seed, patch=patch, sigma=0.5, add_noise=True, mask=hole, label=known, path=flow_map.path)
    base = replace(base, clip=decoder is None)
    for task in ALL_TASKS:
        if decoder is not None and task in OF_PIXELS:
            log.info("%s: left out, it is of pixels", task)
            continue
        if (task == "colorization" and c != 3) or (task == "super_resolution" and not patch):
            log.info("%s: left out, the images are %dx%d in %s", task, w, h, "colour" if c == 3 else "grey")
            continue
        if task == "interpolation":
            chosen, labelled = guided_by(flow_map, class_labels(2, trained.num_classes, 0), *guidance)
            ends = seeded_ends(chosen, (seed, seed + 1))
            yield task, shown(interpolate(chosen, ends.latents, 3 * COLUMNS, time=grid[0], conditions=labelled))
            continue
        edited, settings = images, base
        if task == "blending":
            # pairs (an image, the next one), one behind the other as `edit_images` takes them
            edited = np.stack([images, np.roll(images, -1, axis=0)], axis=1).reshape(-1, h, w, c)
            settings = replace(base, mask=half)
        made = edit_images(model, edited, task, settings, grid)
        # Three cells for each: what a task takes nothing away from is shown twice.
        cells = (originals, shown(made.degraded) if len(made.degraded) else originals, shown(made.results))
        yield task, np.stack(cells, axis=1).reshape(3 * COLUMNS, *originals.shape[1:])


def gallery_images(
    trained: Trained, files: list[str] | None, seed: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads COLUMNS images of `shape`, uint8, from these files or the run's held-out data, and their labels where the
    model has classes.

    Raises: ConfigError or DataError where there are none.
    """
    conditional = trained.model.class_conditional
    if files:
        read, _ = read_images(files, shape, len(files))
        # fewer files than columns: they come again in turn
        chosen = read[np.arange(COLUMNS) % len(read)]
        # files have no classes, and a class-conditional model needs one
        return chosen, np.zeros(COLUMNS, np.int32) if conditional else None
    if not trained.recorded.has_data:
        raise ConfigError("--image is missing: an imported model has no held-out images; name some, as --image=a.png")
    source = trained.open_images("test")
    if len(source) < COLUMNS:
        raise DataError(f"the run's data hold out {len(source)} images; {COLUMNS} are needed: give them by --image")
    check_classes(trained, source, f"--workdir={trained.folder}")
    batch = source.gather(np.random.default_rng(seed).choice(len(source), COLUMNS, replace=False))
    return batch["image"], batch["label"] if conditional else None
