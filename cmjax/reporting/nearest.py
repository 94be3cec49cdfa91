"""Finds the training images nearest to a run's samples, which show whether it memorised some."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cmjax.data.base import DataError, Source, is_image
from cmjax.plotting.plots import GREY, cell_size, image_grid
from cmjax.reporting.images import EmbeddedImage, exact, grids_of

SHOWN = 8
MOST_SEARCHED = 10_000  # training images that are searched, evenly chosen where there are more
PIXELS_AT_ONCE = 2**22
GAP = 2  # of `image_grid`, as a run's grids of samples are made
Images = UInt8[np.ndarray, "_ _ _ _"]


@dataclass(frozen=True)
class Nearest:
    """Samples beside their nearest training images.

    pairs: each sample with the image, and their distance: the RMS of the differences of their pixels' values, 0 to 255.
    usual: the mean of the same distance, from so many training images to the nearest other. searched: training images
    that were searched, of `total`.
    """

    step: int
    sampler: str
    pairs: list[tuple[EmbeddedImage, float]]
    usual: float
    searched: int
    total: int


def nearest_of(workdir: Path, source: Source) -> Nearest:
    """Pairs the newest samples of the most evaluations with their nearest training images.

    Raises: OSError where a grid cannot be read; DataError where the data cannot, or there is nothing to compare.
    """
    grids = grids_of(workdir)
    if not grids:
        raise DataError("the run has no samples")
    if not is_image(source.shape) or source.gather(np.zeros(1, np.int64))["image"].dtype != np.uint8:
        raise DataError("the data are no uint8 images")
    # samplers are sorted by their evaluations: of those with the newest step, the one with the most
    sampler, steps = max(reversed(grids.items()), key=lambda item: max(item[1]))
    samples = images_of_grid(steps[max(steps)].read_bytes(), source.shape, SHOWN)
    if samples is None:
        raise DataError(f"{steps[max(steps)].name} is not a grid of the run's images")
    total = len(source)
    rows = np.unique(np.linspace(0, total - 1, min(total, MOST_SEARCHED)).astype(np.int64))
    # some training images are searched for too, each without itself: their distances are the usual ones
    others = rows[np.unique(np.linspace(0, len(rows) - 1, SHOWN).astype(np.int64))]
    queries = np.concatenate([samples, source.gather(others)["image"]])
    excluded = np.concatenate([np.full(len(samples), -1), others])
    places, distances = search(queries, excluded, source, rows)
    images = source.gather(places[: len(samples)])["image"]
    pairs = [
        (exact(image_grid(np.stack(pair), columns=2)), float(distance))
        for *pair, distance in zip(samples, images, distances, strict=False)  # distances of the others follow
    ]
    return Nearest(max(steps), sampler, pairs, float(distances[len(samples) :].mean()), len(rows), total)


def search(queries: Images, excluded: np.ndarray, source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each query (n, h, w, c) the nearest of the source's images `rows`, and their distance as in `Nearest`.

    excluded: (n,) a row that does not count for the query; -1 for none.
    """
    # in float64 sums of whole numbers are exact, and a copy is at distance 0
    wanted = queries.reshape(len(queries), -1).astype(np.float64)
    best, place = np.full(len(wanted), np.inf), np.zeros(len(wanted), np.int64)
    at_once = max(1, PIXELS_AT_ONCE // wanted.shape[1])
    for start in range(0, len(rows), at_once):
        here = rows[start : start + at_once]
        images = source.gather(here)["image"].reshape(len(here), -1).astype(np.float64)
        # ‖a − b‖² by one matrix product
        squares = np.sum(wanted**2, 1)[:, None] - 2 * wanted @ images.T + np.sum(images**2, 1)
        # an image is not its own neighbour
        squares[excluded[:, None] == here] = np.inf
        nearest = squares.argmin(1)
        value = squares[np.arange(len(wanted)), nearest]
        place = np.where(value < best, here[nearest], place)
        best = np.minimum(best, value)
    return place, np.sqrt(best / wanted.shape[1])


def images_of_grid(grid: bytes, shape: tuple[int, ...], most: int) -> Images | None:
    """Cuts the first images, (n, h, w, c), from a grid of `image_grid` of images of that shape; None if it is another.

    Raises: OSError where it is no image.
    """
    with Image.open(BytesIO(grid)) as opened:
        image = np.asarray(opened.convert("RGB"))
    h, w, c = shape
    height, width = cell_size((h, w), gap=GAP)
    factor = (height - GAP) // h
    if image.shape[0] % height != GAP or image.shape[1] % width != GAP or not np.all(image[:GAP] == GREY):
        return None
    across, down = image.shape[1] // width, image.shape[0] // height
    places = [(i // across * height + GAP, i % across * width + GAP) for i in range(min(most, across * down))]
    cells = [image[y : y + factor * h : factor, x : x + factor * w : factor, :c] for y, x in places]
    return np.stack(cells)
