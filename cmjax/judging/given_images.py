"""Images that another program drew, from an .npz or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.data.base import DataError
from cmjax.data.folder import read_image
from cmjax.data.layout import SUFFIXES
from cmjax.data.npz import read_npz
from cmjax.judging.tallying import ImagesOf
from cmjax.machine.content import content_key, files_key
from cmjax.machine.files import files_below, to_path

LARGEST_IN_MEMORY = 2**30
"""Bytes of an .npz from which on its images stay in the file."""

NAMES = ("images", "arr_0", "samples")
"""What their array is called; any other name does where it is the only one of images."""


@dataclass(frozen=True)
class Images:
    """A numbered set of images. key: gives a key of their content."""

    of: ImagesOf
    num: int
    shape: tuple[int, ...]
    key: Callable[[], str]


def images_in(path: str, shape: tuple[int, ...] | None, to_pixels: Callable[..., np.ndarray]) -> Images:
    """The images at `path`.

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
        raise ConfigError(f"--images={path}: {error}") from error
    found = [arrays[name] for name in NAMES if name in arrays] or [a for a in arrays.values() if a.ndim == 4]
    if len(found) != 1 or found[0].ndim != 4:
        names = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ConfigError(f"--images={path}: must have one array of images (n, h, w, c), and has {names}")
    images = found[0]
    if shape is not None and images.shape[1:] != tuple(shape):
        raise ConfigError(f"--images={path}: the images are {images.shape[1:]}; those of the data {tuple(shape)}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ConfigError(f"--images={path}: must be uint8, or floats in [-1, 1], not {images.dtype}")

    def images_of(start: int, stop: int) -> np.ndarray:
        part = np.asarray(images[start:stop])
        if part.dtype == np.uint8:
            return part
        if not np.all(np.abs(part) <= 1.5):
            raise ConfigError(f"--images={path}: floats must be in [-1, 1], got up to {np.max(np.abs(part)):g}")
        return to_pixels(part)

    return Images(images_of, len(images), images.shape[1:], lambda: content_key(images))


def _in_folder(folder: Path, shape: tuple[int, ...] | None) -> Images:
    files = [file for file in files_below(folder) if file.suffix.lower() in SUFFIXES and file.name[0] != "."]
    if not files:
        raise ConfigError(f"--images={folder}: holds no image files ({', '.join(SUFFIXES)})")
    try:
        height, width, channels = shape or (*read_image(files[0], (1, 1, 3))[1], 3)

        def images_of(start: int, stop: int) -> np.ndarray:
            return np.stack([_read(file, (height, width, channels)) for file in files[start:stop]])

        return Images(images_of, len(files), (height, width, channels), lambda: files_key(files))
    except DataError as error:
        raise ConfigError(f"--images={folder}: {files[0].name}: {error}") from error


def _read(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        return read_image(file, shape)[0]
    except DataError as error:
        raise ConfigError(f"--images: {file} cannot be read: {error}") from error
