"""Opens the sources that need no further library: the embedded digits, TFDS, a folder of image files, an .npz of
arrays of images, signals or points."""

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cmjax.data.base import ArraySource, DataError, Source, Subset, check_split, shuffled
from cmjax.data.folder import folder
from cmjax.data.labels import Numbering, number_labels
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES
from cmjax.data.tfds import tfds
from cmjax.data.values import fitting, fitting_values, read_npz
from cmjax.system.files import AnyPath, to_path

log = logging.getLogger(__name__)

OF_SAMPLES = {"images": "arr_0", "labels": "arr_1"}
"""The names of arrays in files of samples that `numpy.savez` numbered."""

__all__ = ["ArraySource", "DataError", "Source", "arrays", "digits", "folder", "tfds"]


def digits(split: str) -> ArraySource:
    """Scikit-learn's handwritten digits: 8x8x1 uint8, 10 classes, 1500 in "train" and 297 in "test". No download.

    The 17 grey levels 0..16 become round(level·255/16). A fixed permutation decides the split.

    Raises: DataError for another split, or without scikit-learn.
    """
    check_split(split)
    # Importing scikit-learn, whose file this is, would take longer than the whole start of a small run.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits are a file of scikit-learn's: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=int)  # (1797, 65): 64 levels and the label
    order = shuffled(len(table), seed=0)
    # in the file's order: the permutation only chooses
    chosen = table[np.sort(order[:1500] if split == "train" else order[1500:])]
    images = np.rint(chosen[:, :-1].reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    return ArraySource(images, chosen[:, -1], 10)


def arrays(
    path: str | AnyPath, split: str, *, kind: str = "images", memory_limit_bytes: int = MEMORY_LIMIT_BYTES
) -> Source:
    """Opens images, or latents, of an .npz file; or signals or points.

    Files of samples, and ADM's reference batches, have "arr_0" in place of "images", and "arr_1" in place of "labels".

    Args:   path: holds "images" (n, h, w, c), images or latents as `fitting` reads them, and optionally "labels"
            (n,), whole numbers, with "class_names", a text for each from 0 on. split: "train" or "test". "test" is
            "test_images" with "test_labels" where the file has them, else a tenth of "images" that a fixed permutation
            takes out of "train". kind: "signals" (n, length, channels) or "points" (n, features) in place of "images",
            in the names of the arrays, too. memory_limit_bytes: arrays of a larger file stay in it, mapped into memory,
            where it is not compressed.
    Raises: DataError naming the file, the array and what is wrong with it.
    """
    check_split(split)
    contents = read_npz(to_path(path).expanduser(), memory_limit_bytes=memory_limit_bytes)
    if kind == "images" and kind not in contents and OF_SAMPLES["images"] in contents:
        contents = {name: contents[there] for name, there in OF_SAMPLES.items() if there in contents}
    if kind not in contents:
        raise DataError(f'{path}: has no array "{kind}"; it has {", ".join(contents) or "none"}')
    apart = f"test_{kind}" in contents
    if apart and ("labels" in contents) != ("test_labels" in contents):
        raise DataError(f'{path}: needs both "labels" and "test_labels", or neither')
    images, labels = _read_pair(path, contents, kind, warn=split == "train")
    if not apart and len(images) < 2:
        one = f'"{kind}" holds one {kind[:-1]}'
        raise DataError(f"{path}: {one}; training needs several, and a tenth of them is held out")
    train, test = _tenth(labels, len(images))
    classes = None
    if labels is not None:
        names, to_train_on = contents.get("class_names"), labels if apart else labels[train]
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(np.unique(names)) < len(names)):
            raise DataError(f'{path}: "class_names" must be one text for each class, all of them different')
        listed = None if names is None else names.tolist()
        classes = number_labels(to_train_on, f'{path}: "labels"', names=listed, say=split == "train")
    if not apart:
        return _rows_of(path, images, labels, train if split == "train" else test, classes)
    others, other_labels = _read_pair(path, contents, kind, "test_", warn=False)
    if images.shape[1:] != others.shape[1:]:
        raise DataError(f'{path}: "{kind}" of {images.shape} and "test_{kind}" of {others.shape} differ')
    if split == "test":
        images, labels = others, other_labels
    return _rows_of(path, images, labels, np.arange(len(images)), classes)


def _read_pair(
    path: str | AnyPath, contents: dict[str, np.ndarray], kind: str, prefix: str = "", *, warn: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    labels, where = f"{prefix}labels", f'{path}: "{prefix}{kind}"'
    array, written = contents[prefix + kind], contents.get(labels)
    fitted = fitting(array, where, warn=warn) if kind == "images" else fitting_values(array, where, kind)
    if written is None:
        return fitted, None
    if written.shape != (len(fitted),) or written.dtype.kind not in "iu":
        raise DataError(
            f'{path}: "{labels}": labels must be one integer for each of the {len(fitted)} {kind}, '
            f"got shape {written.shape} and {written.dtype}"
        )
    return fitted, np.asarray(written)


def _tenth(labels: np.ndarray | None, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the rows to train on and those held out: a tenth, but never all of a class."""
    order = shuffled(length, seed=0)
    held = np.zeros(length, bool)
    held[order[: max(1, length // 10)]] = True
    if labels is not None:
        held &= np.isin(labels, labels[~held])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _rows_of(
    path: str | AnyPath, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray, classes: Numbering | None
) -> Source:
    """Takes the rows of the arrays, without those of labels that are no class."""
    numbers = None
    if labels is not None and classes is not None:
        numbers = classes.numbers(labels)
        unknown = np.unique(labels[rows][numbers[rows] < 0])
        if len(unknown):
            what = ", ".join(map(str, unknown[:8].tolist()))
            log.warning("%s: left out, for there is nothing of these labels to train on: %s", path, what)
        rows = rows[numbers[rows] >= 0]
    if not len(rows):
        raise DataError(f"{path}: holds no examples to compare with of the classes that are trained on")
    names = None if classes is None else classes.names
    count = None if names is None else len(names)
    if isinstance(images, np.memmap):
        # examples of no class are not among `rows`: any number serves them
        known = None if numbers is None else np.maximum(numbers, 0)
        return Subset(ArraySource(images, known, count, names), rows)
    # no copy where all rows are taken
    whole = len(rows) == len(images)
    return ArraySource(images if whole else images[rows], None if numbers is None else numbers[rows], count, names)
