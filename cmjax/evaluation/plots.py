"""Pictures of samples."""

import math
import os
from io import BytesIO

import numpy as np
from jaxtyping import Num, UInt8

from cmjax.files import write_atomically

GREY = 128  # of gaps and empty cells: neither the black of digits nor the white of paper


def image_grid(
    images: Num[np.ndarray, "_ _ _ _"], *, columns: int | None = None, gap: int = 2, min_side: int = 64
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Images side by side, row by row, apart by a grey gap; small ones enlarged by a whole factor, without blur.

    Args:    images: (n, h, w, c), uint8 for c = 1 or 3. With another c (latents) any real dtype: the first three
             channels are shown, each scaled from its smallest value to its largest over all images.
             columns: images a row; None makes the picture about as high as wide. gap: screen pixels.
             min_side: the least shorter side of an image, in screen pixels.
    Returns: one RGB picture.
    Raises:  ValueError naming the argument that is out of range.
    """
    for name, value, least in (("columns", columns, 1), ("gap", gap, 0), ("min_side", min_side, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be (n, h, w, c) with n >= 1, got shape {images.shape}")
    rgb = _rgb(images)
    factor = math.ceil(min_side / min(rgb.shape[1:3]))
    rgb = rgb.repeat(factor, axis=1).repeat(factor, axis=2)

    n, height, width, _ = rgb.shape
    height, width = height + gap, width + gap
    across = min(n, math.ceil(math.sqrt(n * height / width)) if columns is None else columns)
    rows = math.ceil(n / across)
    cells = np.full((rows * across, height, width, 3), GREY, np.uint8)
    cells[:n, gap:, gap:] = rgb
    picture = cells.reshape(rows, across, height, width, 3).swapaxes(1, 2).reshape(rows * height, across * width, 3)
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=GREY)


def _rgb(images: np.ndarray) -> np.ndarray:
    channels = images.shape[3]
    if channels in (1, 3):
        if images.dtype != np.uint8:
            raise ValueError(f"images with {channels} channels must be uint8, got {images.dtype}")
        return np.broadcast_to(images, (*images.shape[:3], 3))
    shown = np.asarray(images[..., :3], np.float64)
    if not np.all(np.isfinite(shown)):
        raise ValueError(f"images must be finite, got {int(np.sum(~np.isfinite(shown)))} values that are not")
    low, high = shown.min(axis=(0, 1, 2)), shown.max(axis=(0, 1, 2))
    scaled = (shown - low) / np.where(high > low, high - low, 1)
    padded = np.pad(scaled, ((0, 0), (0, 0), (0, 0), (0, 3 - shown.shape[3])))
    return np.rint(255 * padded).astype(np.uint8)


def with_captions(grid: UInt8[np.ndarray, "h w 3"], captions: list[str]) -> UInt8[np.ndarray, "h w2 3"]:
    """The grid with a caption left of each of its rows, which are equally high."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    width = 16 + math.ceil(max(font.getlength(caption) for caption in captions))
    margin = Image.new("RGB", (width, grid.shape[0]), "white")
    draw = ImageDraw.Draw(margin)
    for i, caption in enumerate(captions):
        draw.text((8, (i + 0.5) * grid.shape[0] / len(captions)), caption, fill="black", font=font, anchor="lm")
    return np.concatenate([np.asarray(margin), grid], axis=1)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB picture; its folder is made where missing, and no reader ever sees half a file."""
    from PIL import Image

    encoded = BytesIO()
    Image.fromarray(image).save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())
