"""Reads images that another program sampled, from an .npz or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmjax.config.fields import ConfigError, about
from cmjax.data.base import DataError
from cmjax.data.checks import say_if_dark
from cmjax.data.folder import read_image
from cmjax.data.layout import list_files, without_images
from cmjax.data.values import OVERSHOOT, check_samples, read_npz, spread
from cmjax.evaluation.accumulation import ImagesOf
from cmjax.system.content import content_key, files_key
from cmjax.system.files import to_path

LARGEST_IN_MEMORY = 2**30  # bytes of an .npz from which on its images stay in the file
LOOKED_AT = 16  # files that are read, to see whether they are dark

NAMES = ("images", "arr_0", "samples")
"""Usual names of the array of images; any other name is accepted where it is the only array of images."""


@dataclass(frozen=True)
class Images:
    """Holds a numbered set of images. key: gives a key of their content."""

    of: ImagesOf
    num: int
    shape: tuple[int, ...]
    key: Callable[[], str]


def images_in(path: str, shape: tuple[int, ...] | None, to_pixels: Callable[..., np.ndarray]) -> Images:
    """Reads the images at `path`.

    Args:   path: an .npz, as of --mode=sample or ADM's evaluation, of uint8 or of floats in [-1, 1], or a folder of PNG
            and JPEG files. shape: (h, w, c) that they must have, to which files are fitted; None: the first one's.
            to_pixels: the rule for floats.
    Raises: ConfigError saying what is wrong with them.
    """
    where = to_path(path).expanduser()
    if where.is_dir():
        return _in_folder(where, shape)
    try:
        arrays = read_npz(where, memory_limit_bytes=LARGEST_IN_MEMORY)
    except DataError as error:
        raise ConfigError(about("--images", path, error)) from error
    # names that other programs use come first; an .npz may hold labels beside the images
    candidates = [arrays[name] for name in NAMES if name in arrays] or [a for a in arrays.values() if a.ndim == 4]
    if len(candidates) != 1:
        names = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ConfigError(f"--images={path}: must have one array of images (n, h, w, c), and has {names}")
    images = candidates[0]
    try:
        check_samples(images, f"--images={path}")
    except DataError as error:
        raise ConfigError(str(error)) from error
    if shape is not None and images.shape[1:] != tuple(shape):
        raise ConfigError(f"--images={path}: the images are {images.shape[1:]}; those of the data {tuple(shape)}")

    def images_of(start: int, stop: int) -> np.ndarray:
        part = np.asarray(images[start:stop])
        if part.dtype.kind == "f":
            if not np.all(np.abs(part) <= 1 + OVERSHOOT):  # of a file that is not read whole before
                raise ConfigError(f"--images={path}: floats must be in [-1, 1], got up to {np.max(np.abs(part)):g}")
            return to_pixels(part)
        if part.min() < 0 or part.max() > 255:
            raise ConfigError(f"--images={path}: must be from 0 to 255, got {part.min()} to {part.max()}")
        return part.astype(np.uint8)

    return Images(images_of, len(images), images.shape[1:], lambda: content_key(images))


def _in_folder(folder: Path, shape: tuple[int, ...] | None) -> Images:
    try:
        listed, others = list_files(folder)
        if not listed:
            raise ConfigError(f"--images={without_images(folder, others)}")
        files = [file.path for file in listed]
        # the second result is the file's own size, whatever it is fitted to
        height, width, channels = shape or (*read_image(files[0], (1, 1, 3))[1], 3)

        def images_of(start: int, stop: int) -> np.ndarray:
            return np.stack([_read(file, (height, width, channels)) for file in files[start:stop]])

        # over the whole folder, since neighbouring files may be alike
        some = [_read(files[i], (height, width, channels)) for i in spread(len(files), LOOKED_AT)]
        say_if_dark(np.stack(some), f"--images={folder}")
        return Images(images_of, len(files), (height, width, channels), lambda: files_key(files))
    except DataError as error:
        raise ConfigError(f"--images={folder}: {error}") from error


def _read(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        return read_image(file, shape)[0]
    except DataError as error:
        raise ConfigError(f"--images: {file} cannot be read: {error}") from error
