"""A figure of images in named rows, under headings."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cmjax.plotting.plots import GREY, image_grid, with_captions

BETWEEN_GROUPS = 14
"""Pixels that are added between two groups of a row."""


def sheet(
    rows: Sequence[UInt8[np.ndarray, "n h w c"]], captions: Sequence[str], *, headings: Sequence[str], title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of images, each with a caption at its left, under a title and headings.

    Args: rows: each has a whole number of groups, of an image for each of the headings. A wider gap sets groups apart.
    """
    size, groups = len(headings), []
    for start in range(0, len(rows[0]), size):
        group = np.concatenate([row[start : start + size] for row in rows])
        groups.append(image_grid(group, columns=size))
    height, width, _ = groups[0].shape
    gap = np.full((height, BETWEEN_GROUPS, 3), GREY, np.uint8)
    grid = np.concatenate([part for group in groups for part in (gap, group)][1:], axis=1)
    captioned = with_captions(grid, list(captions))
    left, cell = captioned.shape[1] - grid.shape[1], (width - 2) / size
    starts = [left + 1 + i * (width + BETWEEN_GROUPS) for i in range(len(groups))]
    places = {start + (j + 0.5) * cell: heading for start in starts for j, heading in enumerate(headings)}
    return np.concatenate([_head(captioned.shape[1], title, places), captioned])


def _head(width: int, title: str, headings: dict[float, str]) -> UInt8[np.ndarray, "height width 3"]:
    """A white strip with a title, and headings around these places from the left."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (width, 58), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((8, 8), title, fill="black", font=ImageFont.load_default(size=17))
    for place, heading in headings.items():
        draw.text((place, 52), heading, fill="black", font=ImageFont.load_default(size=13), anchor="ms")
    return np.asarray(strip)
