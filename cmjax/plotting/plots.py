"""Images of samples, and curves."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from cmjax.system.files import write_atomically

GREY = 128  # of gaps and empty cells: neither the black of digits nor the white of paper

Curve = tuple[Sequence[float], Sequence[float | None]]
"""The points' x and y."""


def image_grid(
    images: Num[np.ndarray, "_ _ _ _"], *, columns: int | None = None, gap: int = 2, min_side: int = 64
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Images side by side, row by row, apart by a grey gap; small ones enlarged by a whole factor, without blur.

    Args:    images: (n, h, w, c), uint8 for c = 1 or 3. With another c (latents) any real dtype: the first three
             channels are shown, each scaled from its smallest value to its largest over all images.
             columns: images a row; None makes the image about as high as wide. gap: screen pixels.
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
    cells = np.full((rows * across, height, width, 3), GREY, np.uint8)
    cells[:n, gap:, gap:] = rgb
    picture = cells.reshape(rows, across, height, width, 3).swapaxes(1, 2).reshape(rows * height, across * width, 3)
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=GREY)


def cell_size(size: Sequence[int], *, gap: int = 2, min_side: int = 64) -> tuple[int, int]:
    """Height and width, in screen pixels, of the cell of an image of `size` (h, w) in `image_grid`, gap included."""
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
    scaled = (shown - low) / np.where(high > low, high - low, 1)
    padded = np.pad(scaled, ((0, 0), (0, 0), (0, 0), (0, 3 - shown.shape[3])))
    return np.rint(255 * padded).astype(np.uint8)


def with_captions(grid: UInt8[np.ndarray, "h w 3"], captions: list[str]) -> UInt8[np.ndarray, "h w2 3"]:
    """The grid with a caption, of one line or more, left of each of its rows, which are equally high."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    width = 16 + math.ceil(max(font.getlength(line) for caption in captions for line in caption.split("\n")))
    margin = Image.new("RGB", (width, grid.shape[0]), "white")
    draw = ImageDraw.Draw(margin)
    for i, caption in enumerate(captions):
        draw.text((8, (i + 0.5) * grid.shape[0] / len(captions)), caption, fill="black", font=font, anchor="lm")
    return np.concatenate([np.asarray(margin), grid], axis=1)


def line_plot(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = True,
    log_y: bool = True,
    faint: Collection[str] = (),
    width: int = 960,
    height: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """Curves over one pair of axes, named at their right.

    Args:   curves: name -> (x, y), equally long. A point whose y is None or not finite, or without a logarithm where
            one is asked for, is left out; the axis of x covers it all the same. A curve of one point is a ring, to mark
            a place. Of more curves than there are colours all are shades, in their order. A single curve has no name.
            faint: names of curves that lie pale behind the others.
            width, height: of the image, in pixels.
    Raises: ValueError where no point is left.
    """
    points = {name: _finite(curve, log_x, log_y) for name, curve in curves.items()}
    every = np.concatenate(list(points.values()))
    if not len(every):
        raise ValueError(f"{title}: no point of the curves can be drawn")
    across = np.concatenate([np.asarray(x, np.float64) for x, _ in curves.values()])
    across = across[np.isfinite(across) & (across > 0 if log_x else True)]
    right = 230 if len(points) > 1 else 30
    canvas = _Canvas((width, height), right, _Axis.over(across, log_x), _Axis.over(every[:, 1], log_y))
    canvas.axes(title, x_label, y_label)
    colours = {name: PALE if name in faint else _colour(i, len(points)) for i, name in enumerate(points)}
    for name in sorted(points, key=lambda name: name not in faint):
        canvas.curve(points[name], colours[name])
    for i, (name, xy) in enumerate(points.items() if len(points) > 1 else ()):
        canvas.name(name, i, colours[name], ring=len(xy) == 1)
    return canvas.picture()


def _finite(curve: Curve, log_x: bool, log_y: bool) -> np.ndarray:
    """The points that can be drawn, (n, 2)."""
    xy = np.array([(x, np.nan if y is None else y) for x, y in zip(*curve, strict=True)], np.float64).reshape(-1, 2)
    drawn = np.isfinite(xy).all(axis=1) & ((xy > 0) | ~np.array([log_x, log_y])).all(axis=1)
    return xy[drawn]


Colour = tuple[int, int, int]
COLOURS = ((0, 90, 160), (214, 94, 0), (0, 145, 110), (190, 80, 150), (110, 110, 110))
PALE = (185, 205, 228)
SHADES = ((60, 20, 110), (40, 110, 165), (45, 160, 120), (225, 160, 20), (205, 60, 30))


def _colour(i: int, n: int) -> Colour:
    if n <= len(COLOURS):
        return COLOURS[i]
    place = i / (n - 1) * (len(SHADES) - 1)
    r, g, b = (round(np.interp(place, range(len(SHADES)), channel)) for channel in zip(*SHADES, strict=True))
    return r, g, b


@dataclass(frozen=True)
class _Axis:
    """From values to places in [0, 1], and the values where marks stand."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: np.ndarray, log: bool) -> "_Axis":
        """An axis a little longer than the values reach."""
        scaled = np.log10(values) if log else values
        spread = np.ptp(scaled)
        if spread <= 1e-6 * np.max(np.abs(scaled)):  # one value, or one but for rounding
            spread = 1.0 if log else np.max(np.abs(scaled)) or 1.0
        margin = 0.04 * spread
        low, high = scaled.min() - margin, scaled.max() + margin
        return cls(low, high, log, tuple(_ticks(low, high, log).tolist()))

    def place(self, values: Any) -> Any:
        scaled = np.log10(values) if self.log else np.asarray(values)
        return (scaled - self.low) / (self.high - self.low)


def _ticks(low: float, high: float, log: bool) -> np.ndarray:
    """Round values, some three to nine; low and high are logarithms of an axis that is logarithmic."""
    if log:
        every = 1 + int((high - low) / 8)
        decades = 10.0 ** np.arange(math.floor(low), math.ceil(high) + 1, every)
        for candidates in (decades, np.outer(decades, (1, 2, 5)).ravel()):
            within = candidates[(low <= np.log10(candidates)) & (np.log10(candidates) <= high)]
            if len(within) >= 3:
                return within
        low, high = 10**low, 10**high
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    size *= max(factor for factor in (1, 2, 5) if factor * size <= (high - low) / 4)
    return size * np.arange(math.ceil(low / size), math.floor(high / size) + 1)


class _Canvas:
    """A drawing three times as large as its image, whose edges are smooth once it is made smaller."""

    SCALE = 3
    LEFT, TOP, BOTTOM = 70, 62, 48
    """Pixels around the axes, for words."""

    def __init__(self, size: tuple[int, int], right: int, x: _Axis, y: _Axis):
        from PIL import Image, ImageDraw

        self.size, self.right, self.x, self.y = size, size[0] - right, x, y
        self.image = Image.new("RGB", (size[0] * self.SCALE, size[1] * self.SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def axes(self, title: str, x_label: str, y_label: str) -> None:
        left, top, right, bottom = self.LEFT, self.TOP, self.right, self.size[1] - self.BOTTOM
        for value in self.x.ticks:
            across = self._at(value, None)[0]
            self._line([(across, top), (across, bottom)], (228, 228, 228), 1)
            self._text((across, bottom + 6), f"{value:g}", "mt")
        for value in self.y.ticks:
            up = self._at(None, value)[1]
            self._line([(left, up), (right, up)], (228, 228, 228), 1)
            self._text((left - 7, up), f"{value:g}", "rm")
        self._line([(left, top), (left, bottom), (right, bottom)], (90, 90, 90), 1)
        self._text((left, 10), title, "lt", self._fitting(title, 17))
        self._text((left, top - 8), y_label, "ls")
        self._text(((left + right) / 2, self.size[1] - 8), x_label, "ms")

    def curve(self, xy: np.ndarray, colour: Colour) -> None:
        places = [self._at(x, y) for x, y in xy]
        if len(places) == 1:
            self._ring(places[0], colour)
        elif places:
            self._line(places, colour, 2)
            for place in places if len(places) <= 60 else []:
                self._dot(place, 2.6, colour)

    def name(self, name: str, row: int, colour: Colour, *, ring: bool) -> None:
        """The name of a curve, in that row beside the axes."""
        x, y = self.right + 18, self.TOP + 10 + 21 * row
        if ring:
            self._ring((x + 10, y), colour)
        else:
            self._line([(x, y), (x + 20, y)], colour, 2)
        self._text((x + 28, y), name, "lm")

    def picture(self) -> np.ndarray:
        from PIL import Image

        return np.asarray(self.image.resize(self.size, Image.Resampling.BOX))

    def _at(self, x: float | None, y: float | None) -> tuple[float, float]:
        """Pixels from the left and the top; None is the axis' begin."""
        width, height = self.right - self.LEFT, self.size[1] - self.TOP - self.BOTTOM
        across = 0.0 if x is None else float(self.x.place(x))
        up = 0.0 if y is None else float(self.y.place(y))
        return self.LEFT + across * width, self.TOP + (1 - up) * height

    def _line(self, places: list[tuple[float, float]], colour: Colour, width: int) -> None:
        scaled = [(x * self.SCALE, y * self.SCALE) for x, y in places]
        self.draw.line(scaled, fill=colour, width=width * self.SCALE, joint="curve")

    def _dot(self, place: tuple[float, float], radius: float, colour: Any) -> None:
        x, y, r = place[0] * self.SCALE, place[1] * self.SCALE, radius * self.SCALE
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _ring(self, place: tuple[float, float], colour: Colour) -> None:
        self._dot(place, 7, colour)
        self._dot(place, 4.5, "white")

    def _fitting(self, text: str, size: int) -> int:
        """The font's size, or a smaller one in which the text fits beside the left margin."""
        from PIL import ImageFont

        length = ImageFont.load_default(size=size).getlength(text)
        return min(size, max(8, int(size * (self.size[0] - self.LEFT - 8) / max(length, 1))))

    def _text(self, place: tuple[float, float], text: str, anchor: str, size: int = 14) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size=size * self.SCALE)
        self.draw.text(
            (place[0] * self.SCALE, place[1] * self.SCALE), text, fill=(40, 40, 40), font=font, anchor=anchor
        )


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "h w 3"], **words: str) -> None:
    """Write an RGB image; its folder is made where missing, and no reader ever sees half a file.

    words: what the file says of itself, by name.
    """
    from PIL import Image, PngImagePlugin

    encoded, said = BytesIO(), PngImagePlugin.PngInfo()
    for name, text in words.items():
        said.add_text(name, text)
    Image.fromarray(image).save(encoded, format="PNG", pnginfo=said)
    write_atomically(path, encoded.getvalue())
