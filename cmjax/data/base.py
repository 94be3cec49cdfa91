"""The protocol of a source of images; sources in arrays, and subsets of a source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cmjax.system.errors import UserError


class DataError(UserError, ValueError):
    """Raised for data that cannot be used. The message names the path or field and says what to do."""


def kind_of(shape: Sequence[int]) -> str:
    """Says what samples of a shape are: "images" (h, w, 1 or 3), "latents" (h, w, another number), "signals" (length,
    channels) or "points" (features,)."""
    if len(shape) != 3:
        return "signals" if len(shape) == 2 else "points"
    return "images" if shape[-1] in (1, 3) else "latents"


def is_image(shape: Sequence[int]) -> bool:
    """Says whether samples of a shape are images, of 1 or 3 channels."""
    return kind_of(shape) == "images"


def noun_of(shape: Sequence[int]) -> str:
    """Names samples of a shape in messages about data: "signals", "points", or "images", of which latents are."""
    return "images" if len(shape) == 3 else kind_of(shape)


@runtime_checkable
class Source(Protocol):
    """A finite, indexed set of images of one shape; or of signals or points, under the same names."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels) of one example; (length, channels) of a signal, (features,) of a point."""
        ...

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None where the examples have no labels."""
        ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the examples at `indices` (n,), in that order: "image" (n, h, w, c) uint8, or float32 for latents that
        are used as they are, and "label" (n,) int32 where there are labels."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Examples in arrays, in memory or mapped into it.

    Args:   images: (n, h, w, c) uint8 in 0..255, or float32 used as they are; signals (n, length, channels) and points
            (n, features) float32. labels: (n,) integers from 0, or None.
            num_classes: of the labels; counted when None. class_names: of each; their numbers when None.
    Raises: DataError naming the argument that does not fit.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        images, labels = self.images, self.labels
        others = images.ndim in (2, 3) and images.dtype == np.float32
        if not others and (images.ndim != 4 or images.dtype not in (np.uint8, np.float32)):
            remedy = "; give images.astype(np.float32)" if np.issubdtype(images.dtype, np.floating) else ""
            raise DataError(
                f"images must be (n, h, w, c) and uint8 or float32, got shape {images.shape} and {images.dtype}{remedy}"
            )
        if 0 in images.shape:
            raise DataError(f"images must hold at least one example, got shape {images.shape}")
        if labels is None:
            # without labels, a number of classes would promise a condition that no batch has
            object.__setattr__(self, "num_classes", None)
            return
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"labels must be one integer for each of the {len(images)} images, "
                f"got shape {labels.shape} and {labels.dtype}"
            )
        low, high = int(labels.min()), int(labels.max())
        classes = high + 1 if self.num_classes is None else self.num_classes
        if low < 0:
            raise DataError(f"labels must be numbered from 0, got {low}..{high}")
        if high >= classes:
            raise DataError(f"labels must lie in 0..{classes - 1}, got {low}..{high}")
        # a frozen dataclass can set its fields only so; networks take int32 labels
        object.__setattr__(self, "labels", labels.astype(np.int32))
        object.__setattr__(self, "num_classes", classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Source.shape`."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        batch = {"image": self.images[indices]}
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch


@dataclass(frozen=True)
class OfAnother:
    """Takes its shape and its classes from another source, from which it is made."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Source.shape`."""
        return self.source.shape

    @property
    def num_classes(self) -> int | None:
        """The other source's."""
        return self.source.num_classes


@dataclass(frozen=True)
class Subset(OfAnother):
    """Gives the examples of another source at `rows` (n,), in that order."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        return self.source.gather(self.rows[indices])


def class_names(source: Source) -> tuple[str, ...] | None:
    """Gives the names of a source's classes, by their numbers; None where its examples have no labels."""
    if source.num_classes is None:
        return None
    while isinstance(source, OfAnother):
        source = source.source
    return getattr(source, "class_names", None) or tuple(map(str, range(source.num_classes or 0)))


def known_labels(source: Source) -> np.ndarray | None:
    """Gives the label (n,) of each example; None where there are none, or an example must be read for it."""
    if isinstance(source, Subset):
        inner = known_labels(source.source)
        return None if inner is None else inner[source.rows]
    return known_labels(source.source) if isinstance(source, OfAnother) else getattr(source, "labels", None)


def crop_of(source: Source) -> str | None:
    """Gives the name of the crop by which a source's images are resized; None where they are taken as they are."""
    while isinstance(source, OfAnother):
        source = source.source
    return getattr(source, "crop", None)


def check_split(split: str) -> None:
    """Raises DataError for another split than "train" and "test"."""
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test", got "{split}"')


def shuffled(num: int, *, seed: int, epoch: int = 0) -> np.ndarray:
    """Makes a permutation of range(num), int64, that depends on (seed, epoch) alone.

    It sorts Philox's raw bits, which numpy keeps from version to version; `Generator.permutation` is not promised.
    """
    # Philox takes seed and epoch as its key: neighbouring keys give unrelated bits
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(num)
    # a stable sort keeps equal bits, rare as they are, in the same order on every machine
    return np.argsort(bits, kind="stable")
