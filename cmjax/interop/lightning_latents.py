"""Latents of LightningDiT's files: safetensors of samples and of the mirrored images' samples, beside their
statistics."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cmjax.data.base import DataError
from cmjax.data.latents import LatentSource, check_latents
from cmjax.data.on_demand import Damage
from cmjax.data.values import SAMPLED, spread
from cmjax.interop.autoencoder import STATISTICS, read_statistics
from cmjax.interop.keys import ForeignError
from cmjax.system.content import content_key, files_key

TYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": jnp.bfloat16,
    "I32": np.int32,
    "I64": np.int64,
}
FARTHEST = 5.0
"""The std of standardised latents differs from 1 by this factor at most: else the statistics are of other latents."""


def lightning_latents(folder: Path) -> LatentSource:
    """Opens the safetensors files of a folder, which are mapped and read by index: "latents" and "latents_flip"
    (n, c, h, w), "labels" (n,). `latents_stats.pt` beside them has mean and std of each channel.

    Latents are given as (z − mean)/std. They are samples already: a source of them has no "std".

    Raises: DataError naming the file where it is not whole, or cannot be of such latents.
    """
    paths = sorted(folder.glob("*.safetensors"))
    places = [_places(path) for path in paths]
    if not (folder / STATISTICS).is_file():
        raise DataError(f"{folder}: has no {STATISTICS}, the mean and std of each channel, which scale its latents")
    try:
        scale, shift = (np.asarray(numbers, np.float32) for numbers in read_statistics(folder / STATISTICS))
    except ForeignError as error:
        raise DataError(str(error)) from error
    optional = [name for name in ("latents_flip", "labels") if name in places[0]]
    shapes = [_checked(path, arrays, len(scale), optional) for path, arrays in zip(paths, places, strict=True)]
    if len(set(shape[1:] for shape in shapes)) > 1:
        raise DataError(f"{folder}: its files have latents of several shapes: {sorted({s[1:] for s in shapes})}")
    channels, height, width = shapes[0][1:]
    # file i ends before example ends[i]
    ends = np.cumsum([shape[0] for shape in shapes])
    labels = None
    if "labels" in optional:
        parts = [_mapped(path, arrays["labels"]) for path, arrays in zip(paths, places, strict=True)]
        labels = np.concatenate(parts).astype(np.int32)
        if labels.min() < 0:
            raise DataError(f"{folder}: labels must be numbered from 0, got {labels.min()}")
    source = LightningSource(
        shape=(height, width, channels),
        length=int(ends[-1]),
        damage=Damage(str(folder), 0),
        class_names=None if labels is None else tuple(map(str, range(labels.max() + 1))),
        labels=labels,
        paths=paths,
        places=places,
        ends=ends,
        scale=scale,
        shift=shift,
        encoding={"scale": scale.tolist(), "shift": shift.tolist()},
    )
    # statistics of other latents would not give a std near 1; the test reads a few examples, evenly spaced
    std = source.gather(spread(len(source), SAMPLED))["image"].std()
    if not 1 / FARTHEST <= std <= FARTHEST:
        raise DataError(f"{folder}: by {STATISTICS} its latents have std {std:.3g}, and not about 1: it is of others")
    check_latents(source, str(folder))
    return source


def _checked(path: Path, places: dict[str, "Place"], channels: int, optional: list[str]) -> tuple[int, ...]:
    """Gives the shape of a file's latents. Raises: DataError where its arrays do not fit together."""
    shapes = {name: shape for name, (_, shape, _) in places.items()}
    shape = shapes.get("latents", ())
    if len(shape) != 4 or not shape[0]:
        raise DataError(f'{path}: "latents" must be (n, c, h, w), got {shape or "none"}')
    if shape[1] != channels:
        last = "; its channels are last, and must be first" if shape[3] == channels else ""
        raise DataError(f'{path}: "latents" have shape {shape}, and {STATISTICS} is of {channels} channels{last}')
    for name in optional:
        wanted, there = shape if name == "latents_flip" else shape[:1], shapes.get(name)
        if there != wanted:
            raise DataError(f'{path}: "{name}" must have the shape {wanted}, got {there or "none"}')
    return shape


Place = tuple[str, tuple[int, ...], int]
"""The type, the shape and the first byte of an array in its file."""


def _places(path: Path) -> dict[str, Place]:
    """Says where a file's arrays are.   [safetensors' format]   Raises: DataError where the file is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        places, end = {}, 8 + length
        for name, fields in header.items():
            if name != "__metadata__":
                places[name] = (fields["dtype"], tuple(fields["shape"]), 8 + length + fields["data_offsets"][0])
                end = max(end, 8 + length + fields["data_offsets"][1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: is no whole safetensors file: {error}") from error
    if not places or end != size:
        raise DataError(f"{path}: is no whole safetensors file: it has {size:,} bytes, and its arrays end at {end:,}")
    for name in ("latents", "latents_flip", "labels"):
        if name in places and places[name][0] not in TYPES:
            raise DataError(f'{path}: "{name}" is {places[name][0]}; {", ".join(TYPES)} are read')
    return places


def _mapped(path: Path, place: Place) -> np.ndarray:
    kind, shape, start = place
    dtype = np.dtype(TYPES[kind])
    return np.memmap(path, np.uint8, "r", start, (dtype.itemsize * math.prod(shape),)).view(dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class LightningSource(LatentSource):
    """Latents of safetensors files, which are opened anew for each batch: maps are not sent to other processes."""

    paths: list[Path]
    places: list[dict[str, Place]]
    ends: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    def key(self) -> str:
        """Computes a key of the files' content and of what scales it."""
        return content_key(files_key(self.paths), self.scale, self.shift)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        batch = {"image": self._scaled("latents", indices)}
        if "latents_flip" in self.places[0]:
            batch["mirrored"] = self._scaled("latents_flip", indices)
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch

    def _scaled(self, name: str, indices: np.ndarray) -> np.ndarray:
        kind, shape, _ = self.places[0][name]
        rows = np.empty((len(indices), *shape[1:]), np.dtype(TYPES[kind]))
        # the file of each index, and the index at which each file begins
        files, starts = np.searchsorted(self.ends, indices, side="right"), np.concatenate([[0], self.ends])
        for file in np.unique(files):  # each is mapped once
            here = files == file
            rows[here] = _mapped(self.paths[file], self.places[file][name])[indices[here] - starts[file]]
        return (rows.astype(np.float32).transpose(0, 2, 3, 1) - self.shift) * self.scale
