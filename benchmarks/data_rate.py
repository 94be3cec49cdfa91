"""How fast every source gives its images, beside how fast train steps take them: a table on standard output.

    python benchmarks/data_rate.py                                        # the digits, and files made of noise
    python benchmarks/data_rate.py --data-dir=~/tensorflow_datasets       # TFDS's data sets there as well

A source's rate is that of `Batches.stream` at 256 images, as a run reads them, with nothing else to do, from the median
time of a batch; "to open" is the time until its first batch is there. Kept: each image was decoded before and is in
memory. On demand: each is decoded, as in a data set's first pass, and in every pass where the data set is too large to
keep. Mapped: from an .npz on the disk. A step's rate is that of the compiled train step of a recipe, alone;
augmentations are measured on the device, alone.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from benchmarks.accelerator_programs import seconds_of
from cmjax.config.recipes import load_recipe
from cmjax.config.run import read_run
from cmjax.data import augment, sources
from cmjax.data.base import Source
from cmjax.data.batches import Batches
from cmjax.data.on_demand import KeptSource
from cmjax.data.tfds import names_in
from cmjax.runs.setup import set_up
from cmjax.runs.train_step import train_step_of
from cmjax.system.environment import prefer_fast_convolutions
from cmjax.training.step import compile_train_step

BATCH = 256
BATCHES = 40
NUM_IMAGES = 2048
STEPS = ("digits_ct", "digits_edm")
"""Recipes whose steps take the most images a second."""
MEMORY = {"kept": 10**12, "on demand": 0}


class Row(NamedTuple):
    """What gives or takes images of a shape, (h, w, c), how many a second, and the seconds to open it."""

    name: str
    shape: tuple[int, ...]
    images_per_second: float
    seconds_to_open: float = 0.0


def measured(name: str, open_source: Callable[[], Source]) -> Row:
    """A source, from its opening on."""
    start = time.perf_counter()
    source = open_source()
    stream = Batches(source, BATCH, seed=0).stream(0)
    jax.block_until_ready(next(stream))
    seconds_to_open, times = time.perf_counter() - start, []
    if isinstance(source, KeptSource):
        source.gather(np.arange(len(source)))
    for batch in islice(stream, BATCHES):
        jax.block_until_ready(batch)
        times.append(time.perf_counter())
    stream.close()
    return Row(name, source.shape, BATCH / float(np.median(np.diff(times))), seconds_to_open)


def of_files(folder: Path) -> Iterator[Row]:
    """Folders of small and large images, and arrays."""
    random = np.random.default_rng(0)
    for size, suffix in ((32, "png"), (32, "jpg"), (64, "jpg"), (256, "jpg")):
        files = folder / f"{size}{suffix}"
        files.mkdir()
        for number in range(NUM_IMAGES):
            coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(files / f"{number}.{suffix}")
        for where, limit in MEMORY.items():
            opened = partial(sources.folder, files, "train", image_size=min(size, 64), memory_limit_bytes=limit)
            yield measured(f"folder of {suffix}, {size}×{size}, {where}", opened)
    np.savez(folder / "x.npz", images=random.integers(0, 256, (20 * NUM_IMAGES, 32, 32, 3), np.uint8))
    for where, limit in (("in memory", MEMORY["kept"]), ("mapped", 0)):
        yield measured(f"arrays, {where}", partial(sources.arrays, folder / "x.npz", "train", memory_limit_bytes=limit))


def of_tfds(data_dir: Path) -> Iterator[Row]:
    """What TFDS has prepared in its folder."""
    for name in names_in(data_dir):
        for where, limit in MEMORY.items():
            opened = partial(sources.tfds, name, "train", data_dir=data_dir, memory_limit_bytes=limit)
            yield measured(f"{name}, {where}", opened)


def of_augmentation(shape: tuple[int, int, int] = (32, 32, 3), probability: float = 0.12) -> Row:
    """EDM's augmentations on the device."""
    images = jax.numpy.zeros((BATCH, *shape))
    augmented = jax.jit(partial(augment.augment, probabilities=augment.edm(probability=probability)))
    seconds = seconds_of(lambda: augmented(images, jax.random.key(0)))
    return Row("EDM's augmentations, on the device", shape, BATCH / seconds)


def of_step(recipe: str) -> Row:
    """The train step of a recipe, on one batch again and again."""
    run = read_run(load_recipe(recipe).to_dict())
    setup = set_up(run, run.data.open)
    state = setup.first_state()
    batch = Batches(setup.source, run.batch_size, run.seed).at(0)
    step = compile_train_step(
        train_step_of(run, setup.model, setup.teacher, setup.mesh), state, setup.frozen, batch, setup.mesh
    )
    states = [state]

    def advance() -> jax.Array:
        states[0], metrics = step(states[0], setup.frozen, batch)
        return metrics["loss"]

    speed = run.batch_size / seconds_of(advance)
    return Row(f"the step of {recipe}, {run.batch_size} images", setup.source.shape, speed)


def rows(data_dir: Path | None) -> Iterator[Row]:
    yield from map(of_step, STEPS)
    yield measured("digits", partial(sources.digits, "train"))
    if data_dir is not None:
        yield from of_tfds(data_dir)
    with tempfile.TemporaryDirectory() as folder:
        yield from of_files(Path(folder))
    yield of_augmentation()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=lambda path: Path(path).expanduser(), help="TFDS's folder")
    options = parser.parse_args()
    prefer_fast_convolutions()
    print("| what | shape | images/s | to open, s |\n|---|---|---:|---:|")
    for name, shape, speed, opened in rows(options.data_dir):
        cells = name, "×".join(map(str, shape)), f"{speed:,.0f}", f"{opened:.1f}" if opened else ""
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
