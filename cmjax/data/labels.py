"""Numbers labels from 0 without gaps, with a name for each, so that each has something to train on."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmjax.data.base import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numbering:
    """Numbers the classes of a data set. values: the labels as the data have them, ascending; names: of each."""

    values: np.ndarray
    names: tuple[str, ...]

    def numbers(self, labels: np.ndarray) -> np.ndarray:
        """Gives the class of each label (n,), from 0; -1 where the label is of no class."""
        # a label above all others would have its place beyond the end
        places = np.minimum(np.searchsorted(self.values, labels), len(self.values) - 1)
        return np.where(self.values[places] == labels, places, -1).astype(np.int32)


def number_labels(labels: np.ndarray, where: str, *, names: Sequence[str] | None = None, say: bool = True) -> Numbering:
    """Numbers the classes of labels (n,), integers from 0 on, of the examples to train on.

    A label that none of them has would be a class of which nothing is learned: the classes are those that there are.

    Args:   names: of all labels from 0 on, where the data have them. say: whether gaps are logged.
    Raises: DataError where a label is negative, or has no name.
    """
    values = np.unique(labels)
    low, high = int(values[0]), int(values[-1])
    if low < 0:
        raise DataError(f"{where}: labels must be numbered from 0, got {low}..{high}")
    if names is not None and high >= len(names):
        raise DataError(f"{where}: there are {len(names)} names of classes, and labels up to {high}")
    expected = high + 1 if names is None else len(names)
    if say and len(values) < expected:
        missing = next((i for i, value in enumerate(values.tolist()) if i != value), len(values))
        log.warning(
            "%s: has %d classes of labels from %d to %d, none of label %d: they are numbered anew from 0, and keep "
            "their names",
            where, len(values), low, high, missing,
        )  # fmt: skip
    return Numbering(values, tuple(str(value) if names is None else str(names[value]) for value in values.tolist()))


def held_out(names: Sequence[str], labels: Sequence[object] | np.ndarray | None) -> np.ndarray:
    """Chooses the examples to hold out, (n,) of bool: a tenth, by a hash of their names, never all of a class."""
    # Python's own hash of a text differs from process to process.
    digests = (hashlib.sha256(name.encode()).digest() for name in names)
    held = np.array([int.from_bytes(digest[:8], "big") % 10 == 0 for digest in digests])
    if labels is None:
        labels = np.zeros(len(names), int)
    # a class whose every example is chosen keeps them all for training
    kept = {label for label, out in zip(labels, held, strict=True) if not out}
    return held & np.array([label in kept for label in labels])
