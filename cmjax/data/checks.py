"""Checks data sets as they are opened: whether their images differ, are bright enough, and spread as expected."""

import logging
import math
from collections.abc import Iterator

import numpy as np

from cmjax.data.base import ArraySource, DataError, Source, is_image, noun_of
from cmjax.data.on_demand import KeptSource
from cmjax.data.values import BLACK, BLOCK_VALUES, DARK, ROUNDING, SAMPLED, spread

log = logging.getLogger(__name__)

DECODED = 16
"""Images that are decoded, or read, to see whether they differ."""

USUAL_SPREAD = 2.5
"""A warning is logged where the std of latents differs from the expected one by more than this factor."""


def check_source(source: Source, where: str) -> None:
    """Raises DataError unless a source holds images that differ, and that are not black. Of data that are not kept,
    some are read."""
    what = noun_of(source.shape)
    if len(source) == 1:
        raise DataError(f"{where}: holds one {what[:-1]} to train on; add {what}")
    in_memory = isinstance(source, KeptSource) or (
        isinstance(source, ArraySource) and not isinstance(source.images, np.memmap)
    )
    rows = spread(len(source), DECODED)
    images = source.gather(rows)["image"]
    first, bright = images[0], images.dtype != np.uint8 or images.max() > DARK
    # a few first: almost always these differ, and all need not be compared
    if not (images != first).any() and not (in_memory and any((part != first).any() for part in _parts(source))):
        how_many = f"all {len(source)} {what}" if in_memory else f"the {len(rows)} {what} looked at"
        if (first == first.flat[0]).all():
            part = "pixel" if len(source.shape) == 3 else "value"
            raise DataError(f"{where}: every {part} of {how_many} is {first.flat[0]}; there is nothing to learn")
        raise DataError(f"{where}: {how_many} are the same; there is nothing to learn")
    if not bright:
        _check_bright(source, where, in_memory=in_memory)


def _check_bright(source: Source, where: str, *, in_memory: bool) -> None:
    """Raises DataError where no pixel is above `BLACK`, and warn where none is above `DARK`."""
    rows = np.arange(len(source)) if in_memory else spread(len(source), SAMPLED)
    parts = _parts(source) if in_memory else iter([source.gather(rows)["image"]])
    brightest, looked_at = 0, f"{'all' if in_memory else 'the'} {len(rows)} images{'' if in_memory else ' looked at'}"
    for part in parts:
        brightest = max(brightest, int(part.max()))
        if brightest > DARK:
            return
    problem = (
        f"{where}: {looked_at} are nearly black: no pixel is above {brightest} of 255. Values from 0 to 1, and 10 or "
        "12 bits in files of 16, look so"
    )
    if brightest <= BLACK:
        raise DataError(f"{problem}: scale them to 0 to 255, as images * (255 / their largest value)")
    log.warning("%s", problem)


def say_if_dark(images: np.ndarray, where: str) -> None:
    """Warns where no pixel of uint8 images is above `DARK`."""
    if images.max() <= DARK:
        log.warning("%s: is nearly black: no pixel is above %d of 255; 10 or 12 bits in a file of 16 look so", where,
                    images.max())  # fmt: skip


def check_spread(source: Source, where: str, expected: float, field: str) -> None:
    """Warns where some examples, floats, have another mean and std than a model expects, or a constant channel.

    Args: expected: the std; field: what says so, for the message.
    """
    images = source.gather(spread(len(source), SAMPLED))["image"]
    if images.dtype == np.uint8:
        return
    values = images.astype(np.float64)
    mean, std, channels = values.mean(), values.std(), values.std(axis=tuple(range(values.ndim - 1)))
    factor, are_images = USUAL_SPREAD, is_image(source.shape) and np.abs(values).max() <= 1 + ROUNDING
    # images may be low in contrast, and have more room below
    least = expected / (4 * factor if are_images else factor)
    if not least <= std <= expected * factor or abs(mean) > 2 * max(std, expected):
        log.warning(
            "%s: floats of std %.3g and mean %.3g, where %s expects about %.3g and 0: is a scaling factor left out? "
            "Save (%s - %.4g) * %.4g",
            where, std, mean, field, expected, noun_of(source.shape), mean, expected / std if std else 1,
        )  # fmt: skip
    elif len(channels) > 1 and channels.min() < std / 100:
        log.warning("%s: channel %d of %d is constant", where, channels.argmin(), len(channels))


def _parts(source: Source) -> Iterator[np.ndarray]:
    """Yields all images, some at a time."""
    size = max(1, BLOCK_VALUES // math.prod(source.shape))
    for start in range(0, len(source), size):
        yield source.gather(np.arange(start, min(start + size, len(source))))["image"]
