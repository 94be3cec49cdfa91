"""What a user gives to a drawing: times, images, a mask, a class; each is checked against the model."""

import logging
from collections.abc import Sequence

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.samples import EDIT_STEPS, parse_times
from cmjax.data.base import DataError
from cmjax.data.checks import say_if_dark
from cmjax.data.folder import read_image
from cmjax.runs.classes import class_of, in_words
from cmjax.runs.trained import Trained
from cmjax.system.files import to_path

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


def given_label(label: str | int | None, trained: Trained) -> int | None:
    """The class that --label names, by its number or its name."""
    if label is not None and not trained.num_classes:
        raise ConfigError(f"--label={label}: the model has no classes")
    return None if label is None else class_of(label, trained.class_names)


def labels_of_edit(labels: Sequence[str | int], num: int, trained: Trained) -> dict[str, np.ndarray]:
    """The conditions of `num` edits, whose class must be named where the model has classes: one, or one for each."""
    chosen = [given_label(label, trained) for label in labels]
    if not trained.num_classes:
        return {}
    if not chosen:
        known = in_words(trained.class_names)
        raise ConfigError(f"--label is missing: the model has {trained.num_classes} classes, numbered from 0: {known}")
    return {"label": np.resize(np.array(chosen, np.int32), num)}


Size = tuple[int, int]
"""(height, width)."""


def read_images(files: list[str] | None, shape: tuple[int, ...], needed: int) -> tuple[np.ndarray, list[Size]]:
    """The images fitted to the model's shape, (n, h, w, c) uint8, and the sizes that they had. The log says how."""
    if not files or len(files) != needed:
        raise ConfigError(f"--image={','.join(files or [])}: {needed} image{'s' if needed > 1 else ''} must be given")
    read = [_read_picture("image", file, shape) for file in files]
    for file, (picture, size) in zip(files, read, strict=True):
        _say_how(file, size, shape)
        say_if_dark(picture, file)
    return np.stack([picture for picture, _ in read]), [size for _, size in read]


def read_mask(file: str, shape: tuple[int, ...], sizes: Sequence[Size]) -> np.ndarray:
    """1 where the mask is white, (1, h, w, 1). What is transparent counts as black.

    Raises: ConfigError where its size is neither one of `sizes`, the images' own, nor the model's, or nothing is left
            to be kept or made.
    """
    picture, size = _read_picture("mask", file, (*shape[:2], 1), background="black")
    own, model = dict.fromkeys(map(_told, sizes)), _told((shape[0], shape[1]))
    if _told(size) not in (*own, model):
        raise ConfigError(
            f"--mask={file}: {_told(size)} pixels; it must have the size of the image, {' or '.join(own)}, or of "
            f"the model's images, {model}"
        )
    _say_how(file, size, shape)
    kept = picture >= 128
    if kept.all() or not kept.any():
        colour = "white" if kept.all() else "black"
        raise ConfigError(f"--mask={file}: what the model sees of it is all {colour}; white pixels are kept")
    return kept.astype(np.float32)[None]


def _read_picture(
    flag: str, file: str, shape: tuple[int, ...], *, background: str = "white"
) -> tuple[np.ndarray, Size]:
    try:
        return read_image(to_path(file), (shape[0], shape[1], shape[2]), background=background)
    except DataError as error:
        raise ConfigError(f"--{flag}={file} cannot be read: {error}") from error


def _say_how(file: str, size: Size, shape: tuple[int, ...]) -> None:
    if how := how_fitted(size, (shape[0], shape[1])):
        log.info("%s: %s pixels, %s", file, _told(size), how)


def how_fitted(size: Size, model: Size) -> str:
    """What `read_image` does to an image of this size: it crops and resizes, and stretches nothing."""
    scale = max(new / old for new, old in zip(model, size, strict=True))
    middle = (round(model[0] / scale), round(model[1] / scale))
    done = [f"cropped to its middle {_told(middle)}"] * (middle != size)
    done += [f"resized to the model's {_told(model)}"] * (middle != model)
    return " and ".join(done)


def _told(size: Size) -> str:
    """Width before height, as people write it."""
    return f"{size[1]}x{size[0]}"
