"""What a user gives to a drawing: times, pictures, a mask, a class; each is checked against the model."""

import logging
from collections.abc import Sequence

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.samples import EDIT_STEPS, parse_times
from cmjax.data.base import DataError
from cmjax.data.folder import read_image
from cmjax.drawing.draw import class_labels
from cmjax.machine.files import to_path
from cmjax.runs.trained import Trained

log = logging.getLogger(__name__)


def given_times(texts: Sequence[str], trained: Trained) -> tuple[float, ...]:
    """The noise levels that --times names for this model, as `parse_times`."""
    model = trained.model
    t_min, t_max, rho = (model.constants[name] for name in ("t_min", "t_max", "rho"))
    try:
        return parse_times(",".join(texts), t_min=t_min, t_max=t_max, rho=rho, path=model.path)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from error


def edit_times(texts: Sequence[str] | None, trained: Trained) -> tuple[float, ...]:
    """The noise levels of an edit: those given, or all of a grid, descending."""
    return given_times(texts, trained) if texts else tuple(trained.model.grid(EDIT_STEPS)[::-1].tolist())


def given_label(label: int | None, trained: Trained) -> int | None:
    """The class that --label names, checked."""
    classes = trained.num_classes
    if label is not None and not 0 <= label < (classes or 0):
        raise ConfigError(f"--label={label}: the model has {classes or 'no'} classes, numbered from 0")
    return label


def labels_of_edit(label: int | None, num: int, trained: Trained) -> dict[str, np.ndarray]:
    """The conditions of `num` edits, whose class must be told where the model has classes."""
    if trained.num_classes and given_label(label, trained) is None:
        raise ConfigError(f"--label is missing: the model has {trained.num_classes} classes, numbered from 0")
    return class_labels(num, trained.num_classes, given_label(label, trained))


def read_pictures(files: list[str] | None, shape: tuple[int, ...], needed: int) -> np.ndarray:
    """The pictures fitted to the model's shape, said aloud, (n, h, w, c) uint8."""
    if not files or len(files) != needed:
        raise ConfigError(f"--image={','.join(files or [])}: {needed} picture{'s' if needed > 1 else ''} must be given")
    return np.stack([_read_picture("image", file, shape) for file in files])


def read_mask(file: str, shape: tuple[int, ...]) -> np.ndarray:
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
