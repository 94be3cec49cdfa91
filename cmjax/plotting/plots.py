"""Grids and sheets of images, plots of curves, and the PNG files that hold them."""

import logging
import math
import os
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cmjax.system.files import write_atomically

GREY = 128  # of gaps and empty cells: neither the black of digits nor the white of paper
BETWEEN_GROUPS = 14  # pixels that are added between two groups of a row of a sheet
WIDTH, DPI = 960, 100
SIDE = 560  # of a plot of points, in pixels
COLOURS = ("#005aa0", "#d65e00", "#00916e", "#be5096", "#6e6e6e", "#8c564b", "#17a5c4", "#9a9a00")
PALE = "#b9cde4"
MOST_DOTS = 60  # a curve of more points has no dots
MOST_COUNTS = 6  # so many whole numbers on an axis are its ticks
Curve = tuple[Sequence[float], Sequence[float | None]]  # the points' x and y


def image_grid(
    images: Num[np.ndarray, "_ _ _ _"], *, columns: int | None = None, gap: int = 2, min_side: int = 64
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Sets images side by side, row by row, apart by a grey gap; small ones enlarged by a whole factor, without blur.

    Args:    images: (n, h, w, c), uint8 for c = 1 or 3. With another c (latents) any real dtype: the first three
             channels are shown, each scaled from its smallest value to its largest over all images.
             columns: images a row; None makes the grid about as high as wide. gap: screen pixels.
             min_side: the least shorter side of an image, in screen pixels.
    Returns: one RGB image.
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
    n, (height, width) = len(rgb), cell_size(images.shape[1:3], gap=gap, min_side=min_side)
    across = min(n, math.ceil(math.sqrt(n * height / width)) if columns is None else columns)
    rows = math.ceil(n / across)
    # the gap lies above and left of each image; the last two edges are padded
    cells = np.full((rows * across, height, width, 3), GREY, np.uint8)
    cells[:n, gap:, gap:] = rgb
    # (rows, height, across, width, 3): pixels of one line of the grid stand side by side
    grid = cells.reshape(rows, across, height, width, 3).swapaxes(1, 2).reshape(rows * height, across * width, 3)
    return np.pad(grid, ((0, gap), (0, gap), (0, 0)), constant_values=GREY)


def cell_size(size: Sequence[int], *, gap: int = 2, min_side: int = 64) -> tuple[int, int]:
    """Gives height and width, in screen pixels, of an image's cell in `image_grid`, gap included; size: its (h, w)."""
    factor = math.ceil(min_side / min(size))
    return factor * size[0] + gap, factor * size[1] + gap


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
    # a constant channel has no range, and is shown black
    scaled = (shown - low) / np.where(high > low, high - low, 1)
    padded = np.pad(scaled, ((0, 0), (0, 0), (0, 0), (0, 3 - shown.shape[3])))
    return np.rint(255 * padded).astype(np.uint8)


def with_captions(grid: UInt8[np.ndarray, "h w 3"], captions: list[str]) -> UInt8[np.ndarray, "h w2 3"]:
    """Adds a caption, of one line or more, left of each row of a grid, whose rows are equally high."""
    font = ImageFont.load_default(size=15)
    width = 16 + math.ceil(max(font.getlength(line) for caption in captions for line in caption.split("\n")))
    margin = Image.new("RGB", (width, grid.shape[0]), "white")
    draw = ImageDraw.Draw(margin)
    for i, caption in enumerate(captions):
        draw.text((8, (i + 0.5) * grid.shape[0] / len(captions)), caption, fill="black", font=font, anchor="lm")
    return np.concatenate([np.asarray(margin), grid], axis=1)


def sheet(
    rows: Sequence[UInt8[np.ndarray, "n h w c"]], captions: Sequence[str], *, headings: Sequence[str], title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Stacks rows of images, each with a caption at its left, under a title and headings.

    Args: rows: each has a whole number of groups, of an image for each of the headings. A wider gap sets groups apart.
    """
    size, groups = len(headings), []
    for start in range(0, len(rows[0]), size):
        group = np.concatenate([row[start : start + size] for row in rows])
        groups.append(image_grid(group, columns=size))
    height, width, _ = groups[0].shape
    gap = np.full((height, BETWEEN_GROUPS, 3), GREY, np.uint8)
    # no gap before the first group
    grid = np.concatenate([part for group in groups for part in (gap, group)][1:], axis=1)
    captioned = with_captions(grid, list(captions))
    # `image_grid` leaves a gap of 2 pixels at its right edge
    left, cell = captioned.shape[1] - grid.shape[1], (width - 2) / size
    starts = [left + 1 + i * (width + BETWEEN_GROUPS) for i in range(len(groups))]
    head = Image.new("RGB", (captioned.shape[1], 58), "white")
    draw = ImageDraw.Draw(head)
    draw.text((8, 8), title, fill="black", font=ImageFont.load_default(size=17))
    for start in starts:
        for j, heading in enumerate(headings):
            place = (start + (j + 0.5) * cell, 52)
            draw.text(place, heading, fill="black", font=ImageFont.load_default(size=13), anchor="ms")
    return np.concatenate([np.asarray(head), captioned])


def line_plot(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = True,
    log_y: bool = True,
    faint: Collection[str] = (),
    height: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """Plots curves over one pair of axes, named at their right.

    Args:   curves: name -> (x, y), equally long. A point whose y is None or not finite, or without a logarithm where
            one is asked for, is left out; the axis of x covers it all the same. A curve of one point is a ring, to mark
            a place. Of more curves than there are colours all are shades, in their order. A single curve has no name.
            faint: names of curves that lie pale behind the others.
            height: of the plot, in pixels; its width is `WIDTH`.
    Raises: ValueError where no point is left.
    """
    points = {}
    for name, (x, y) in curves.items():
        xy = np.array([(a, np.nan if b is None else b) for a, b in zip(x, y, strict=True)], np.float64).reshape(-1, 2)
        # (n, 2): whether x and y of a point can be placed on their axes
        visible = np.isfinite(xy) & ((xy > 0) | ~np.array([log_x, log_y]))
        points[name] = xy[visible.all(axis=1)]
    # an axis with ticks needs a point
    every = np.concatenate(list(points.values()))
    if not len(every):
        raise ValueError(f"{title}: no point of the curves can be plotted")
    right = 240 if len(points) > 1 else 30
    with _axes((WIDTH, height), right, title=title, x_label=x_label, y_label=y_label) as (axes, pixels):
        _add_curves(axes, points, faint)
        across = np.concatenate([np.asarray(x, np.float64) for x, _ in curves.values()])
        _set_axis(axes, "x", across[np.isfinite(across) & (across > 0 if log_x else True)], log_x)
        _set_axis(axes, "y", every[:, 1], log_y)
        return pixels()


def dot_plot(points: Num[np.ndarray, "n features"]) -> UInt8[np.ndarray, "h w 3"]:
    """Plots points by their first two features, or by their one feature and their number. Those that are not finite are
    left out.

    Raises: ValueError where no point is left.
    """
    n, features = points.shape
    xy = np.stack([points[:, 0], points[:, 1] if features > 1 else np.arange(n)], axis=1).astype(np.float64)
    xy = xy[np.isfinite(xy).all(axis=1)]
    if not len(xy):
        raise ValueError(f"no point of {points.shape} can be plotted")
    title = f"{n} points of {features} feature{'s' * (features > 1)}{', the first two' * (features > 2)}"
    labels = {"x_label": "feature 0", "y_label": "feature 1" if features > 1 else "number of the point"}
    with _axes((SIDE, SIDE), 30, title=title, **labels) as (axes, pixels):
        # many points are drawn paler, so that their density shows
        axes.plot(*xy.T, ".", color=COLOURS[0], alpha=min(1.0, 30 / len(xy) ** 0.5), markersize=6)
        _set_axis(axes, "x", xy[:, 0], False)
        _set_axis(axes, "y", xy[:, 1], False)
        return pixels()


@contextmanager
def _axes(
    size: tuple[int, int], right: int, *, title: str, x_label: str, y_label: str
) -> Iterator[tuple[Any, Callable[[], np.ndarray]]]:
    """Makes axes in an image of `size` (width, height), and the function that gives its pixels. right: pixels at the
    right of the axes, for words."""
    import matplotlib

    # not pyplot: it chooses a display, and keeps all its figures
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where its cache of fonts is new
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a plot does not depend on the user's matplotlibrc
        width, height = size
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        left, top, bottom = 80, 48, 54
        inside = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        axes = figure.add_axes(inside)
        axes.set(xlabel=x_label, ylabel=y_label)
        # a letter of this font is about nine pixels wide
        axes.set_title(textwrap.fill(title, width // 9), loc="left", fontsize=11)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)

        def pixels() -> np.ndarray:
            canvas.draw()
            # copied, because the buffer belongs to the canvas
            return np.array(canvas.buffer_rgba())[..., :3]

        yield axes, pixels


def _add_curves(axes: Any, points: Mapping[str, np.ndarray], faint: Collection[str]) -> None:
    import matplotlib

    many = len(points) > len(COLOURS)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(points)))  # without its yellow, pale on white
    ring = {"marker": "o", "markersize": 10, "markeredgewidth": 2, "fillstyle": "none", "clip_on": False}
    dots = {"marker": "o", "markersize": 3.5}
    for i, (name, xy) in enumerate(points.items()):
        marker = ring if len(xy) == 1 else dots if len(xy) <= MOST_DOTS else {}
        colour = PALE if name in faint else shades[i] if many else COLOURS[i]
        axes.plot(*xy.T, color=colour, label=name, zorder=2 if name in faint else 3, **marker)
    if len(points) > 1:
        # the legend stands beside the axes, where it hides no curve
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9)


def _set_axis(axes: Any, which: str, values: np.ndarray, log: bool) -> None:
    """Sets the scale, the range and the ticks of an axis over these values, labelled by plain numbers."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    scaled = np.log10(values) if log else values
    spread, middle = np.ptp(scaled), np.max(np.abs(scaled))
    if spread <= 1e-6 * middle or not spread:  # one value, or one but for rounding
        # 0.04 of this is added below: half a decade, or a tenth of the value, on each side
        spread = 12.5 if log else 2.5 * middle or 1.0
    low, high = scaled.min() - 0.04 * spread, scaled.max() + 0.04 * spread
    axis = getattr(axes, f"{which}axis")
    if log:
        getattr(axes, f"set_{which}scale")("log")
        # over more than three decades only powers of ten have labels; over fewer, 2 and 5 times them too
        axis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 3 else (1.0, 2.0, 5.0), numticks=9))
        axis.set_minor_locator(NullLocator())
        if 2 < len(counts := np.unique(values)) <= MOST_COUNTS and np.all(counts % 1 == 0):
            # ticks at 4 and 8 evaluations, where nothing was measured at 5
            axis.set_major_locator(FixedLocator(counts.tolist()))
        low, high = 10**low, 10**high
    axis.set_major_formatter("{x:g}")
    getattr(axes, f"set_{which}lim")(low, high)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "h w 3"], **words: str) -> None:
    """Writes an RGB image; its folder is made where missing, and no reader ever sees half a file.

    words: text that the file holds beside the image, by name.
    """
    encoded, metadata = BytesIO(), PngImagePlugin.PngInfo()
    for name, text in words.items():
        metadata.add_text(name, text)
    Image.fromarray(image).save(encoded, format="PNG", pnginfo=metadata)
    write_atomically(path, encoded.getvalue())
