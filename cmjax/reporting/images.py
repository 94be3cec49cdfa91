"""Embeds a run's images in a page: small enough, and without files beside it."""

import base64
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST_FRAMES = 12  # steps of which the page shows samples, evenly chosen among those that the run has
LARGE = 2.0  # the room of a plot or a gallery, relative to a grid of samples
SMALLEST = 64  # pixels below which no side of an image is made smaller
NAME = re.compile(r"(\d+)-(.+)\.png")  # of a grid of samples: its step and its sampler


@dataclass(frozen=True)
class EmbeddedImage:
    """Holds an image in a page. uri: its content. width, height: pixels. whole: whether nothing was lost in
    encoding."""

    uri: str
    width: int
    height: int
    whole: bool


def grids_of(workdir: Path) -> dict[str, dict[int, Path]]:
    """Lists a run's grids of samples: sampler -> step -> file, steps ascending."""
    grids: dict[str, dict[int, Path]] = {}
    folder = workdir / "samples"
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            grids.setdefault(match[2], {})[int(match[1])] = path

    def by_evaluations(name: str) -> tuple[int, str]:
        # as text, 18-step would stand before 2-step
        return int((re.findall(r"\d+", name) or [0])[0]), name

    return {name: dict(sorted(grids[name].items())) for name in sorted(grids, key=by_evaluations)}


def even_choice(values: list[int], most: int) -> list[int]:
    """Chooses at most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[i] for i in np.unique(np.rint(np.linspace(0, len(values) - 1, most)).astype(int))]


def shrink(content: bytes, limit: int) -> EmbeddedImage:
    """Embeds the image in a file's content in about `limit` characters: as it is, or with losses, or smaller too.

    Raises: OSError where it is no image.
    """
    with Image.open(BytesIO(content)) as opened:
        image = opened.convert("RGB")
    uri = _webp(image, lossless=True)
    whole = len(uri) <= limit
    while len(uri) > limit:
        uri = _webp(image, quality=80)
        if len(uri) <= limit or min(image.size) * 3 // 4 < SMALLEST:
            break
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    return EmbeddedImage(uri, image.width, image.height, whole)


def exact(image: np.ndarray) -> EmbeddedImage:
    """Embeds an RGB image, (h, w, 3) uint8, without loss."""
    return EmbeddedImage(_webp(Image.fromarray(image), lossless=True), image.shape[1], image.shape[0], True)


def _webp(image: Image.Image, **how: Any) -> str:
    encoded = BytesIO()
    image.save(encoded, format="WEBP", method=2, **how)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
