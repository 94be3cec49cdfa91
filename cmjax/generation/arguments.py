"""Reads times, images, masks and classes of the command line, and checks them against the model."""

import logging
from collections.abc import Sequence

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.samples import EDIT_STEPS, parse_times
from cmjax.runs.classes import class_of, in_words
from cmjax.runs.trained import Trained
from cmjax.system.files import to_path

log = logging.getLogger(__name__)


def edit_times(text: str | None, trained: Trained) -> tuple[float, ...]:
    """Gives the noise levels of an edit, descending: those of --times, or all of a grid."""
    return parse_times(text, trained.model) if text else tuple(trained.model.grid(EDIT_STEPS)[::-1].tolist())


def read_label(label: str | int | None, trained: Trained) -> int | None:
    """Parses --label, the number or the name of a class."""
    if label is not None and not trained.num_classes:
        raise ConfigError(f"--label={label}: the model has no classes")
    return None if label is None else class_of(label, trained.class_names)


def edit_labels(labels: Sequence[str | int], num: int, trained: Trained) -> dict[str, np.ndarray]:
    """Makes the conditions of `num` edits, whose class is required where the model has classes: one, or one for
    each."""
    chosen = [read_label(label, trained) for label in labels]
    if not trained.num_classes:
        return {}
    if not chosen:
        known = in_words(trained.class_names)
        raise ConfigError(f"--label is missing: the model has {trained.num_classes} classes, numbered from 0: {known}")
    # repeats one class for all results
    return {"label": np.resize(np.array(chosen, np.int32), num)}


Size = tuple[int, int]  # (height, width)


def image_size(file: str) -> Size:
    """Reads the size of an image, upright. Raises: ConfigError where it cannot be read."""
    return _read_image("image", file, (1, 1, 1), fits=False)[1]


def read_images(
    files: list[str] | None, shape: tuple[int, ...], needed: int, *, whose: str = "the model's "
) -> tuple[np.ndarray, list[Size]]:
    """Reads images, (n, h, w, c) uint8 of the model's shape, and their sizes. The log says how they were fitted, to
    `whose` size."""
    from cmjax.data.checks import say_if_dark  # samplers read no images

    if not files or len(files) != needed:
        raise ConfigError(f"--image={','.join(files or [])}: {needed} image{'s' if needed > 1 else ''} must be given")
    images, sizes = zip(*(_read_image("image", file, shape, whose=whose) for file in files), strict=True)
    for file, image in zip(files, images, strict=True):
        say_if_dark(image, file)
    return np.stack(images), list(sizes)


def read_mask(file: str, shape: tuple[int, ...], sizes: Sequence[Size], *, whose: str = "the model's ") -> np.ndarray:
    """Reads a mask, (1, h, w, 1): 1 where it is white. Transparent pixels count as black. whose: `shape` is.

    Raises: ConfigError where its size is neither one of `sizes`, those of the images, nor the model's, or nothing is
            left to be kept or made.
    """
    image, size = _read_image("mask", file, (*shape[:2], 1), background="black", whose=whose)
    # without repeats: images of one size are named once
    of_images, model = dict.fromkeys(map(_as_text, sizes)), _as_text((shape[0], shape[1]))
    if _as_text(size) not in (*of_images, model):
        raise ConfigError(
            f"--mask={file}: {_as_text(size)} pixels; it must have the size of the image, {' or '.join(of_images)}, "
            f"or of {whose or 'the edited '}images, {model}"
        )
    # a mask that was resized has greys along its edges
    kept = image >= 128
    if kept.all() or not kept.any():
        colour = "white" if kept.all() else "black"
        raise ConfigError(f"--mask={file}: what the model sees of it is all {colour}; white pixels are kept")
    return kept.astype(np.float32)[None]


def _read_image(
    flag: str, file: str, shape: tuple[int, ...], *, background: str = "white", whose: str = "", fits: bool = True
) -> tuple[np.ndarray, Size]:
    """Reads an image; where it `fits`, the log says how it was fitted."""
    from cmjax.data.base import DataError
    from cmjax.data.folder import read_image

    try:
        image, size = read_image(to_path(file), (shape[0], shape[1], shape[2]), background=background)
    except DataError as error:
        raise ConfigError(f"--{flag}={file} cannot be read: {error}") from error
    if fits and (how := how_fitted(size, (shape[0], shape[1]), whose=whose)):
        log.info("%s: %s pixels, %s", file, _as_text(size), how)
    return image, size


def how_fitted(size: Size, model: Size, *, whose: str = "the model's ") -> str:
    """Says how `read_image` fits an image of this size to the model's: it crops and resizes, and never stretches."""
    # the larger of the two factors covers the model's size; what sticks out is cropped
    scale = max(new / old for new, old in zip(model, size, strict=True))
    middle = (round(model[0] / scale), round(model[1] / scale))
    done = [f"cropped to its middle {_as_text(middle)}"] * (middle != size)
    done += [f"resized to {whose}{_as_text(model)}"] * (middle != model)
    return " and ".join(done)


def _as_text(size: Size) -> str:
    """Writes a size with the width first, as people do."""
    return f"{size[1]}x{size[0]}"
