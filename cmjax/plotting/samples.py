"""Shows samples of any kind in one image: images in a grid, signals as lines in a grid, points as dots."""

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from cmjax.plotting.plots import COLOURS, PALE, cell_size, dot_plot, image_grid

CELL = (72, 144)
"""Height and width of the cell of a signal, in screen pixels."""
FINER = 3  # lines are drawn so many times as large, and then made smaller: they are smooth
HEAD = 24  # pixels above the cells, for a line of words


def image_of(samples: Num[np.ndarray, "n ..."]) -> UInt8[np.ndarray, "rows cols 3"]:
    """Shows images (n, h, w, c) by `image_grid`, signals (n, length, channels) by `signal_grid`, and points
    (n, features) by `dot_plot`."""
    if samples.ndim == 4:
        return image_grid(samples)
    return signal_grid(samples) if samples.ndim == 3 else dot_plot(samples)


def cell_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Gives the height and the width of what a sample of this shape takes of `image_of`, in screen pixels."""
    if len(shape) == 3:
        return cell_size(shape[:2])
    return cell_size(CELL) if len(shape) == 2 else (1, 1)


def signal_grid(signals: Num[np.ndarray, "n length channels"]) -> UInt8[np.ndarray, "rows cols 3"]:
    """Plots each signal in a cell of its own, a line for each channel; all cells have one scale, which stands above.

    Values that are not finite are left out. A pale line is at zero.
    """
    finite = signals[np.isfinite(signals)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    # one value has no range
    span = (low, high) if high > low else (low - 0.5, low + 0.5)
    grid = image_grid(np.stack([_cell(signal, *span) for signal in signals]))
    n, length, channels = signals.shape
    of = f" in {channels} channels" if channels > 1 else ""
    words = f"{n} signals of {length} values{of}; the height of each is from {low:.3g} to {high:.3g}"
    head = Image.new("RGB", (grid.shape[1], HEAD), "white")
    ImageDraw.Draw(head).text((6, 4), words, fill="black", font=ImageFont.load_default(size=13))
    return np.concatenate([np.asarray(head), grid])


def _cell(signal: np.ndarray, low: float, high: float) -> np.ndarray:
    height, width = (FINER * side for side in CELL)
    cell = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(cell)

    def y_of(value: float) -> float:
        # a margin above and below, and rows count downwards
        return height * (0.95 - 0.9 * (value - low) / (high - low))

    if low < 0 < high:
        draw.line([(0, y_of(0)), (width, y_of(0))], fill=PALE, width=FINER)
    if len(signal) == 1:  # a level line
        signal = np.repeat(signal, 2, axis=0)
    places = np.linspace(0.03, 0.97, len(signal)) * width
    for i, channel in enumerate(signal.T):
        points = [(x, y_of(value)) for x, value in zip(places, channel, strict=True) if np.isfinite(value)]
        draw.line(points, fill=COLOURS[i % len(COLOURS)], width=FINER, joint="curve")
    return np.asarray(cell.resize((CELL[1], CELL[0]), Image.Resampling.LANCZOS))
