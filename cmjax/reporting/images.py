"""Embeds a run's images in a page: small enough, and without files beside it."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

MOST_FRAMES = 12
"""Steps of which the page shows samples, evenly chosen among those that the run has."""

LARGE = 2.0
"""The room of a plot or a gallery, relative to a grid of samples."""

SMALLEST = 64
"""Pixels below which no side of an image is made smaller."""

NAME = re.compile(r"(\d+)-(.+)\.png")
"""Of a grid of samples: its step and its sampler."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image in a page. uri: its content. width, height: pixels. whole: whether nothing was lost in encoding."""

    uri: str
    width: int
    height: int
    whole: bool


def grids_of(workdir: Path) -> dict[str, dict[int, Path]]:
    """A run's grids of samples: sampler -> step -> file, steps ascending."""
    grids: dict[str, dict[int, Path]] = {}
    folder = workdir / "samples"
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            grids.setdefault(match[2], {})[int(match[1])] = path
    return {name: dict(sorted(steps.items())) for name, steps in sorted(grids.items(), key=_by_evaluations)}


def _by_evaluations(item: tuple[str, Mapping[int, Path]]) -> tuple[int, str]:
    """1-step before 2-step before heun-18."""
    numbers = [int(number) for number in re.findall(r"\d+", item[0])]
    return (numbers[0] if numbers else 0, item[0])


def even_choice(values: list[int], most: int) -> list[int]:
    """Chooses at most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[i] for i in np.unique(np.rint(np.linspace(0, len(values) - 1, most)).astype(int))]


def shrink(content: bytes, limit: int) -> EmbeddedImage:
    """Embeds the image in a file's content in about `limit` characters: as it is, or with losses, or smaller too.

    Raises: OSError where it is no image.
    """
    from PIL import Image

    with Image.open(BytesIO(content)) as opened:
        image = opened.convert("RGB")
    encoded = _webp(image, lossless=True)
    whole = _characters(encoded) <= limit
    while _characters(encoded) > limit:
        encoded = _webp(image, quality=80)
        if _characters(encoded) <= limit or min(image.size) * 3 // 4 < SMALLEST:
            break
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    return EmbeddedImage(_uri(encoded), image.width, image.height, whole)


def exact(image: np.ndarray) -> EmbeddedImage:
    """Embeds an RGB image, (h, w, 3) uint8, without loss."""
    from PIL import Image

    return EmbeddedImage(_uri(_webp(Image.fromarray(image), lossless=True)), image.shape[1], image.shape[0], True)


def _webp(image, **how) -> bytes:
    encoded = BytesIO()
    image.save(encoded, format="WEBP", method=2, **how)
    return encoded.getvalue()


def _characters(encoded: bytes) -> int:
    return -(-len(encoded) // 3) * 4


def _uri(encoded: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"
