"""Checks of data as they are opened: what cannot be trained on is refused, and what looks wrong is a warning."""

import logging
import math
from collections.abc import Iterator

import numpy as np

from cmjax.data.base import ArraySource, DataError, Source
from cmjax.data.on_demand import KeptSource

log = logging.getLogger(__name__)

BLOCK_VALUES = 2**22
"""Values that are looked at together: they stay in a processor's cache."""

SAMPLED = 64
"""Pictures that are checked of an array that stays in its file."""

DECODED = 16
"""Pictures that are decoded, or read, to see whether they differ."""

LARGEST_LATENT = 30
"""Largest |value| of latents in 1 or 3 channels. Those of published autoencoders are a few units."""

ROUNDING = 1e-3
"""Pictures in [-1, 1] may leave it by so much."""

USUAL_CLASSES = 1000
"""So many classes are allowed, however few of them a file holds."""


def check_pictures(images: np.ndarray, where: str, *, warn: bool = True) -> None:
    """Raise DataError unless an array (n, h, w, c) can hold pictures or latents.

    float32 values must be finite. With 1 or 3 channels they must be pictures in [-1, 1], or latents: some values below
    0, and all within ±30. Of an array that is mapped from its file, some pictures are checked.

    Args: where: the file and the array, for messages. warn: whether what looks wrong is said in a warning.
    """
    height, width, channels = images.shape[1:]
    if warn and height in (1, 3) and width == channels > 4:
        log.warning("%s: pictures of %s have channels first; they must come last", where, images.shape[1:])
    (low, low_at), (high, high_at) = _extremes(images, where)
    if images.dtype == np.uint8:
        if warn and high == 1:
            log.warning("%s: no value is above 1, so the pictures are nearly black; uint8 goes from 0 to 255", where)
        return
    if channels not in (1, 3):
        return
    if low >= 0 and high > 1 + ROUNDING:
        raise DataError(
            f"{where}[{high_at}] reaches {high:.4g} and no picture has a value below 0, but float pictures lie "
            "in [-1, 1]; save them as uint8 from 0 to 255, or scaled to [-1, 1]"
        )
    if max(-low, high) > LARGEST_LATENT:
        value, place = (low, low_at) if -low > high else (high, high_at)
        raise DataError(
            f"{where}[{place}] reaches {value:.4g}, which is neither a picture in [-1, 1] nor latents of a few "
            "units; scale the array"
        )
    if not warn:
        return
    if low >= 0:
        log.warning(
            "%s: all values lie in [0, 1], so the dark half is missing: float pictures are expected in [-1, 1]; give "
            "uint8 from 0 to 255, or 2 * images - 1",
            where,
        )
    elif max(-low, high) > 1 + ROUNDING:
        log.warning("%s: values from %.4g to %.4g leave [-1, 1]: they are taken as latents", where, low, high)


def check_labels(labels: np.ndarray, where: str) -> None:
    """Raise DataError where labels (n,), integers from 0, make far more classes than there are different labels."""
    different, classes = len(np.unique(labels)), int(labels.max()) + 1
    if classes > max(USUAL_CLASSES, 10 * different):
        raise DataError(
            f"{where}[{int(np.argmax(labels))}] is {classes - 1}, which makes {classes} classes, but only "
            f"{different} labels are different; number the classes from 0, as np.unique(labels, return_inverse=True)[1]"
        )


def check_varied(source: Source, where: str) -> None:
    """Raise DataError unless a source holds pictures that differ. Of data that are not kept, some are read."""
    if len(source) == 1:
        raise DataError(f"{where}: holds one picture to train on; add pictures")
    in_memory = isinstance(source, KeptSource) or (
        isinstance(source, ArraySource) and not isinstance(source.images, np.memmap)
    )
    rows = spread(len(source), DECODED)
    images = source.gather(rows)["image"]
    first = images[0]
    if (images != first).any() or (in_memory and any((part != first).any() for part in _parts(source))):
        return
    how_many = f"all {len(source)} pictures" if in_memory else f"the {len(rows)} pictures looked at"
    if (first == first.flat[0]).all():
        raise DataError(f"{where}: every pixel of {how_many} is {first.flat[0]}; there is nothing to learn")
    raise DataError(f"{where}: {how_many} are the same; there is nothing to learn")


def _parts(source: Source) -> Iterator[np.ndarray]:
    """All images, some at a time."""
    size = max(1, BLOCK_VALUES // math.prod(source.shape))
    for start in range(0, len(source), size):
        yield source.gather(np.arange(start, min(start + size, len(source))))["image"]


def _extremes(images: np.ndarray, where: str) -> tuple[tuple[float, int], tuple[float, int]]:
    """The least and the greatest value, each with its picture's index. Raises: DataError where one is not finite."""
    low, high = (np.inf, -1), (-np.inf, -1)
    for rows, block in _blocks(images):
        with np.errstate(invalid="ignore"):
            least, most = float(block.min()), float(block.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            finite = np.isfinite(block).all(axis=(1, 2, 3))
            raise DataError(f"{where}[{rows[np.argmin(finite)]}] holds NaN or infinity; remove it, or make it anew")
        if least < low[0]:
            low = least, int(rows[_row_of(block.argmin(), block)])
        if most > high[0]:
            high = most, int(rows[_row_of(block.argmax(), block)])
        if images.dtype == np.uint8 and most > 1:  # its other values make no difference
            break
    return low, high


def _row_of(place: np.intp, block: np.ndarray) -> int:
    return int(place) // block[0].size


def _blocks(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices (m,) and the pictures there (m, h, w, c): of all, or of some where the array is mapped from its file."""
    if isinstance(images, np.memmap):
        rows = spread(len(images), SAMPLED)
        yield rows, np.asarray(images[rows])
        return
    size = max(1, BLOCK_VALUES // max(1, images[0].size))
    for start in range(0, len(images), size):
        block = images[start : start + size]
        yield np.arange(start, start + len(block)), block


def spread(length: int, most: int) -> np.ndarray:
    """At most `most` indices of range(length), evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64))
