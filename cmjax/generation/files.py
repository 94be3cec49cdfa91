"""Writes samples and edits: grids, arrays that are continued after a kill, strips with each result beside them."""

import io
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.data.base import is_image, noun_of
from cmjax.data.batches import to_uint8
from cmjax.generation.sampling import SampleSequence
from cmjax.plotting.plots import image_grid, save_png
from cmjax.plotting.samples import cell_of, image_of
from cmjax.runs.workdir import writing
from cmjax.system.files import is_bucket, remove_folder, to_json, to_path, write_atomically
from cmjax.system.memory import GIB, free_on_host
from cmjax.system.npz import npz_bytes
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

PART = 1024  # samples of a part: a number that no device count changes, so that another machine can continue
RECORD = "settings.json"
VERSION = 1  # of how samples are made: parts of a lower one are not continued
MOST_IN_A_GRID = 10_000
MOST_PIXELS = 100_000_000
"""The most pixels of a grid that viewers open; a larger grid is refused."""


def check_size(path: Path, num: int, shape: tuple[int, ...]) -> None:
    """Raises ConfigError for a grid of more images than anyone can look at, or an array larger than the memory."""
    if path.suffix == ".png":
        pixels = num * math.prod(cell_of(shape))
        if num > MOST_IN_A_GRID or pixels > MOST_PIXELS:
            raise ConfigError(
                f"--num={num}: a grid of {pixels:,} pixels, where at most {MOST_IN_A_GRID:,} images and "
                f"{MOST_PIXELS:,} pixels are shown; write an array, as --out=x.npz"
            )
        return
    # twice: the samples, and the bytes of the file
    needed, free = 2 * num * math.prod(shape) * (1 if is_image(shape) else 4), free_on_host()
    if free is not None and needed > free:
        raise ConfigError(
            f"--num={num}: they take {needed / GIB:,.1f} GiB when they are put together, of {free / GIB:,.1f} free: "
            "ask for fewer at a time, with another --seed each"
        )


def write_samples(path: Path, num: int, sequence: SampleSequence, settings: Mapping[str, Any]) -> None:
    """Writes samples 0 … num − 1 as a grid, x.png, or as an array, x.npz, by `write_array`."""
    with progress("sampling", num) as update, writing(path):
        if path.suffix == ".png":
            images = sequence.images(0, num, update)
            on_first_process(lambda: save_png(path, image_of(images)))
        else:
            write_array(path, num, lambda start, stop: sequence.images(start, stop, update), settings=settings)


def write_array(path: Path, num: int, sample: Callable[[int, int], np.ndarray], *, settings: Mapping[str, Any]) -> None:
    """Writes samples 0 … num − 1 to the .npz `path`, as `images`, `signals` or `points`; sample(start, stop) makes
    some of them.

    Until all are there, the finished parts lie in a folder beside it, `<path>.parts`: the same call continues from
    them after a kill, and no sample is lost or made twice.

    Args:   settings: what the samples depend on. Parts of other settings are removed, and the log says so.
    Raises: ConfigError where they cannot be removed.
    """
    folder = path.with_name(f"{path.name}.parts")
    settings = dict(settings) | {"num": num, "part": PART, "version": VERSION}
    # a single part would be written twice
    if num <= PART:
        on_first_process(lambda: _remove_others(folder, settings))
        images = sample(0, num)
        on_first_process(lambda: _write_npz(path, images))
        return

    def claim() -> list[int]:
        """Makes the folder of the parts, or continues one of the same settings. Returns: the parts to be made."""
        if _settings(folder) == json.loads(to_json(settings)):
            log.info("continuing from the parts in %s", folder)
        else:
            _remove_others(folder, settings)
            write_atomically(folder / RECORD, to_json(settings))
        return [start for start, file in files.items() if not file.exists()]

    def add(start: int, images: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, images, allow_pickle=False)
        write_atomically(files[start], content.getvalue())

    def join() -> None:
        _write_npz(path, np.concatenate([_read_npy(file) for file in files.values()]))
        # last: until the array is there, a kill leaves the parts to go on from
        remove_folder(folder)

    files = {start: folder / f"{start:08d}.npy" for start in range(0, num, PART)}
    # every process makes its rows of each part, and the first one writes it
    for start in on_first_process(claim):
        images = sample(start, min(start + PART, num))
        on_first_process(partial(add, start, images))
    on_first_process(join)


def _remove_others(folder: Path, settings: dict[str, Any]) -> None:
    """Removes parts of other settings; the log names what differs."""
    if not folder.exists():
        return
    old, new = _settings(folder), json.loads(to_json(settings))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changes = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in differing)
    changes = changes if old else "its settings are not known"
    log.warning("%s has parts of other samples (%s), which are removed", folder, changes)
    remove_folder(folder)
    if folder.exists():
        raise ConfigError(f"{folder} has parts of other samples ({changes}) and cannot be removed; name another --out")


def _settings(folder: Path) -> dict[str, Any]:
    """Reads the settings of the parts; empty where that is not known, as after a removal that was cut short."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path} is damaged: remove it, and the same command makes this part anew") from error


def _write_npz(path: Path, images: np.ndarray) -> None:
    write_atomically(path, npz_bytes({noun_of(images.shape[1:]): images}))


def check_results(path: Path, files: Sequence[str], num: int) -> list[Path]:
    """Checks and gives the files that an edit is made from.

    Raises: ConfigError where the strip `path` is no .png, or it or one of `num` results would be written over a file.
    """
    if path.suffix != ".png":
        raise ConfigError(f"--out={path}: must end in .png")
    inputs = [to_path(file) for file in files]
    # compared by place: an input may have another name, as by a link
    if written := {_place(file) for file in inputs} & {_place(file) for file in (path, *result_files(path, num))}:
        raise ConfigError(f"--out={path}: it would write over {min(written)}, its own image; name another")
    return inputs


def write_strip(
    path: Path, columns: Mapping[str, np.ndarray], results: np.ndarray, inputs: Sequence[Path], **words: str
) -> None:
    """Writes the columns' images side by side, and each result alone beside them; prints the files.

    columns, results: (n, h, w, c) in [-1, 1]; empty columns are left out. inputs: files that stay. words: text that
    all files hold, by name.
    """
    columns, files = {name: images for name, images in columns.items() if len(images)}, result_files(path, len(results))
    strip = np.concatenate(list(columns.values()))

    def write() -> None:
        # the results of an earlier edit of more images would look like results of this one
        of_results = re.compile(re.escape(path.stem) + r"-result(-(0|[1-9]\d*))?\.png")
        kept = set(map(_place, [*files, *inputs]))
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        stale = [file for file in beside if of_results.fullmatch(file.name) and _place(file) not in kept]
        for file in stale:
            file.unlink()
        if stale:
            log.info("removed %d results of an earlier edit beside %s", len(stale), path)
        save_png(path, image_grid(to_uint8(strip), columns=len(strip)), **words)
        for file, result in zip(files, to_uint8(results), strict=True):
            # grey results are written as RGB, as every grid is
            save_png(file, np.broadcast_to(result, (*result.shape[:2], 3)), **words)

    with writing(path):
        on_first_process(write)
    alone = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    say(f"{path}: {' | '.join(columns)}; results alone: {alone} beside it")


def result_files(path: Path, num: int) -> list[Path]:
    """Says where each result alone is written, beside the strip `path`."""
    numbers = [f"-{i}" for i in range(num)] if num > 1 else [""]
    return [path.with_name(f"{path.stem}-result{number}.png") for number in numbers]


def _place(file: Path) -> Path:
    # the same for each name of a file, as of a link
    return file if is_bucket(file) else file.resolve()
