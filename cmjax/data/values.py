"""Reads arrays and checks each that enters: its axes, its kind of numbers and their range.

What cannot be right is refused with what to do; what looks wrong is a warning. `checks` looks at whole data sets.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cmjax.data.base import DataError
from cmjax.system.files import AnyPath
from cmjax.system.npz import load_npz

log = logging.getLogger(__name__)

BLOCK_VALUES = 2**22
"""Values that are looked at together: they stay in a processor's cache."""

SAMPLED = 64
"""Images that are checked of an array that stays in its file."""

LARGEST_LATENT = 30
"""Largest |value| of latents in 1 or 3 channels. Those of published autoencoders are a few units."""

ROUNDING = 1e-3
"""Images in [-1, 1] may leave it by so much."""

OVERSHOOT = 0.5
"""Samples, which are clipped, may leave it by so much."""

DARK, BLACK = 63, 15
"""Grey levels of 255: a warning is logged where no pixel is above `DARK`, and images are refused where none is above
`BLACK`, which 12 bits in a file of 16 reach."""

AXES = {"signals": ("n", "length", "channels"), "points": ("n", "features")}
"""The axes of arrays that hold no images, by the name of the array."""

BITS = (8, 10, 12, 14, 16)
"""Bits of the whole numbers that cameras, scanners and microscopes give."""


@dataclass(frozen=True)
class Range:
    """Holds the least and the greatest value of an array, and the images that have them."""

    low: float
    low_at: int
    high: float
    high_at: int

    @property
    def unit(self) -> bool:
        """Whether all lie in [0, 1]."""
        return self.low >= 0 and self.high <= 1 + ROUNDING


def read_npz(path: AnyPath, *, memory_limit_bytes: int) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file, as `load_npz`, with errors of data.

    Raises: DataError where there is no such file, or it cannot be read.
    """
    check_is_file(path)
    try:
        return load_npz(path, memory_limit_bytes=memory_limit_bytes)
    except MemoryError as error:
        raise DataError(f"{path}: {error}; lower config.data.memory_limit_gb") from error
    except ValueError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_is_file(path: AnyPath, array: str = "images") -> None:
    """Raises DataError where there is no file at `path`. array: what it should hold."""
    if path.is_dir():
        raise DataError(f'{path}: is a folder; give the path of an .npz with an array "{array}"')
    if not path.is_file():
        raise DataError(f'{path}: no such file; give the path of an .npz with an array "{array}"')


def fitting(images: np.ndarray, where: str, *, warn: bool = True) -> np.ndarray:
    """Converts an array (n, h, w, c) to what can be trained on: uint8 images, or float32 images and latents.

    Whole numbers in 0..255 of another type become uint8, floats of another precision float32. With 1 or 3 channels
    floats must be images in [-1, 1], or latents: some values below 0, and all within ±30. Of an array that is mapped
    from its file, some images are checked.

    Args:   where: the file and the array, for messages. warn: whether what looks wrong is logged.
    Raises: DataError with what is wrong, and what to do.
    """
    check_axes(images, where, warn=warn)
    if warn and images.dtype == np.uint8 and images.shape[-1] in (2, 4):
        log.warning("%s: %d channels, as of images with alpha, are taken as latents; images have 1 or 3, as "
                    "images[..., :%d]", where, images.shape[-1], images.shape[-1] - 1)  # fmt: skip
    if images.dtype == np.uint8:
        return images
    there = range_of(images, where)
    if images.dtype.kind in "iu":
        _check_levels(there, where)
        return _converted(images, np.uint8, where)
    if images.shape[-1] in (1, 3):
        _check_float_images(there, where, warn=warn)
    elif there.low >= 0 and there.high > LARGEST_LATENT:
        # the first block is enough to distinguish pixels from latents
        _, block = next(_blocks(images))
        if (block == np.rint(block)).all():
            raise DataError(
                f"{where}: whole numbers from {there.low:.4g} to {there.high:.4g}, as pixels are, in "
                f"{images.shape[-1]} channels, which have 1 or 3: save images[..., :3].astype(np.uint8), or latents of "
                "about 1"
            )
    return images if images.dtype == np.float32 else _converted(images, np.float32, where)


def fitting_values(values: np.ndarray, where: str, kind: str) -> np.ndarray:
    """Converts an array of signals or points, with the axes of `AXES`, to float32; any numbers that are finite do.

    Args:   where: the file and the array, for messages. kind: "signals" or "points".
    Raises: DataError with what is wrong, and what to do.
    """
    axes, shape = AXES[kind], values.shape
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where}: {kind} must be numbers, got {values.dtype}")
    if len(shape) != len(axes):
        remedy = f"; save {kind}[..., None]" if len(shape) == len(axes) - 1 else ""
        raise DataError(f"{where}: {kind} must be ({', '.join(axes)}), got shape {shape}{remedy}")
    if 0 in shape:
        raise DataError(f"{where}: {kind} must hold at least one example, got shape {shape}")
    range_of(values, where)
    return values if values.dtype == np.float32 else _converted(values, np.float32, where, kind)


def check_samples(images: np.ndarray, where: str) -> None:
    """Raises DataError unless these can be samples (n, h, w, c) of any program: whole numbers from 0 to 255, or floats
    in [-1, 1], which they may leave a little."""
    check_axes(images, where)
    there = range_of(images, where)
    if images.dtype.kind in "iu":
        _check_levels(there, where)
        if there.high <= DARK:
            log.warning("%s: nearly black: no pixel is above %d of 255", where, there.high)
    elif there.unit:
        raise DataError(
            f"{where}: all values lie in [0, 1], and floats are expected in [-1, 1]: save 2 * images - 1, or "
            "np.rint(images * 255).astype(np.uint8)"
        )
    elif there.low >= 0:
        raise DataError(f"{where}{_no_floats(there)}")
    elif max(-there.low, there.high) > 1 + OVERSHOOT:
        raise DataError(f"{where}: floats must be in [-1, 1], got {there.low:.4g} to {there.high:.4g}")


def check_axes(images: np.ndarray, where: str, *, warn: bool = True) -> None:
    """Raises DataError unless an array of numbers can be (n, h, w, c). Axes that look like others are a warning."""
    shape, wanted = images.shape, f"{where}: images must be (n, h, w, c)"
    if images.dtype.kind == "b":
        raise DataError(f"{where}: images must be uint8 or float32, got bool; save images.astype(np.uint8) * 255")
    if images.dtype.kind not in "iuf":
        raise DataError(f"{where}: images must be uint8 or float32, got {images.dtype}")
    if len(shape) == 3:
        remedy = "images[None], if it is one image" if shape[2] in (1, 3) else "images[..., None]"
        raise DataError(f"{wanted}, got shape {shape}; save {remedy}")
    if len(shape) != 4:
        remedy = "; save images.reshape(-1, height, width, channels)" if len(shape) == 2 else ""
        raise DataError(f"{wanted}, got shape {shape}{remedy}")
    if 0 in shape:
        raise DataError(f"{where}: images must hold at least one example, got shape {shape}")
    height, width, channels = shape[1:]
    # (n, c, h, w) read as (n, h, w, c): a "height" of 1 or 3 and many "channels"
    if height in (1, 3) and channels > 4 and (width == channels or images.dtype.kind != "f"):
        raise DataError(f"{wanted}: {shape} have channels first; save images.transpose(0, 2, 3, 1)")
    # latents may have such axes too, so this is only a warning
    if warn and channels > 4 and width > 1 and (width == channels != height or height <= 4 < min(width, channels)):
        log.warning("%s: has %s channels first? They must be last, as images.transpose(0, 2, 3, 1)", where, shape)


def _check_levels(there: Range, where: str) -> None:
    if there.low < 0:
        raise DataError(f"{where}[{there.low_at}] has the value {there.low:.0f}; images are uint8 from 0 to 255")
    if there.high > 255:
        raise DataError(f"{where}[{there.high_at}] reaches {there.high:.0f}; {_to_bytes(there)}")


def _to_bytes(there: Range) -> str:
    bits = next((bits for bits in BITS if there.high < 2**bits), None)
    if bits is None:
        return "images are uint8 from 0 to 255"
    top = 2**bits - 1
    scaled = "images" if bits == 8 else f"images * (255 / {top})"
    return f"values of {bits} bits, 0 to {top}, become images by np.rint({scaled}).astype(np.uint8)"


def _no_floats(there: Range) -> str:
    return (
        f"[{there.high_at}] reaches {there.high:.4g} and no image has a value below 0, but float images lie in "
        f"[-1, 1]; {_to_bytes(there)}"
    )


def _check_float_images(there: Range, where: str, *, warn: bool) -> None:
    """Raises DataError unless floats of 1 or 3 channels can be images in [-1, 1], or latents."""
    if there.low >= 0 and not there.unit:
        raise DataError(f"{where}{_no_floats(there)}")
    if max(-there.low, there.high) > LARGEST_LATENT:
        value, place = (there.low, there.low_at) if -there.low > there.high else (there.high, there.high_at)
        raise DataError(
            f"{where}[{place}] reaches {value:.4g}, which is neither an image in [-1, 1] nor latents of a few "
            "units; scale the array"
        )
    if not warn:
        return
    if there.unit:
        log.warning(
            "%s: all values lie in [0, 1], so the dark half is missing: float images are expected in [-1, 1]; give "
            "uint8 from 0 to 255, or 2 * images - 1",
            where,
        )
    elif max(-there.low, there.high) > 1 + ROUNDING:
        span = f"values from {there.low:.4g} to {there.high:.4g}"
        log.warning("%s: %s leave [-1, 1]: they are taken as latents", where, span)


def _converted(images: np.ndarray, dtype: type, where: str, kind: str = "images") -> np.ndarray:
    if isinstance(images, np.memmap):  # it stays in its file, for it is larger than the memory that it may take
        raise DataError(
            f"{where}: is {images.dtype}, and larger than config.data.memory_limit_gb; save "
            f"{kind}.astype(np.{dtype.__name__})"
        )
    return images.astype(dtype)


def range_of(images: np.ndarray, where: str) -> Range:
    """Gives the range of an array (n, ...) of numbers. Raises: DataError where one is not finite."""
    low, high = (np.inf, -1), (-np.inf, -1)
    for rows, block in _blocks(images):
        # NaN in a minimum warns; it is reported below, with its place
        with np.errstate(invalid="ignore"):
            least, most = float(block.min()), float(block.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            finite = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
            raise DataError(f"{where}[{rows[np.argmin(finite)]}] holds NaN or infinity; remove it, or make it anew")
        if least < low[0]:
            # a flat index in the block, as the number of its image
            low = least, int(rows[block.argmin() // block[0].size])
        if most > high[0]:
            high = most, int(rows[block.argmax() // block[0].size])
    return Range(*low, *high)


def _blocks(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices (m,) and the examples there (m, ...): all, or some where the array is mapped from its file."""
    if isinstance(images, np.memmap):
        rows = spread(len(images), SAMPLED)
        yield rows, np.asarray(images[rows])
        return
    size = max(1, BLOCK_VALUES // max(1, images[0].size))
    for start in range(0, len(images), size):
        block = images[start : start + size]
        yield np.arange(start, start + len(block)), block


def spread(length: int, most: int) -> np.ndarray:
    """Gives at most `most` indices of range(length), evenly spaced, the first and the last among them."""
    # in a short range several places fall on one index
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64))
