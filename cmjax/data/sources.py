"""Every source of images: the embedded digits, TFDS, a folder of image files, an .npz of arrays."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cmjax.data.base import ArraySource, DataError, Source, Subset, shuffled
from cmjax.data.checks import check_labels, check_pictures
from cmjax.data.folder import folder
from cmjax.data.npz import read_npz
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES
from cmjax.data.tfds import tfds
from cmjax.machine.files import AnyPath, to_path

__all__ = ["ArraySource", "DataError", "Source", "arrays", "digits", "folder", "tfds"]


def digits(split: str) -> ArraySource:
    """Scikit-learn's handwritten digits: 8x8x1 uint8, 10 classes, 1500 in "train" and 297 in "test". No download.

    The 17 grey levels 0..16 become round(level·255/16). A fixed permutation decides the split.

    Raises: DataError for another split, or without scikit-learn.
    """
    _check_split(split)
    table = _digits_table()
    order = shuffled(len(table), seed=0)
    chosen = table[np.sort(order[:1500] if split == "train" else order[1500:])]
    images = np.rint(chosen[:, :-1].reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    return ArraySource(images, chosen[:, -1], 10)


def _digits_table() -> np.ndarray:
    """A row for each digit: 64 levels and the label (1797, 65). Importing scikit-learn, whose file this is, would take
    longer than the whole start of a small run."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits are a file of scikit-learn's: pip install scikit-learn")
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=int)


def arrays(path: str | AnyPath, split: str, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> Source:
    """Images, or latents, from an .npz file.

    Args:   path: holds "images" (n, h, w, c), uint8 or float32 (used as they are), and optionally "labels" (n,).
            split: "train" or "test". "test" is "test_images" with "test_labels" where the file has them, else a tenth
            of "images" that a fixed permutation takes out of "train". memory_limit_bytes: arrays of a larger file
            stay in it, mapped into memory, where it is not compressed.
    Raises: DataError naming the file, the array and what is wrong with it: see `checks` for what pictures must be.
    """
    _check_split(split)
    contents = read_npz(to_path(path).expanduser(), memory_limit_bytes=memory_limit_bytes)
    if "images" not in contents:
        raise DataError(f'{path}: has no array "images"; it has {", ".join(contents) or "none"}')
    if "test_images" in contents:
        if ("labels" in contents) != ("test_labels" in contents):
            raise DataError(f'{path}: needs both "labels" and "test_labels", or neither')
        named = {"train": ("images", "labels"), "test": ("test_images", "test_labels")}
        sources = {key: _npz_source(path, contents, *names, split) for key, names in named.items()}
        if sources["train"].shape != sources["test"].shape:
            raise DataError(
                f'{path}: "images" of {sources["train"].shape} and "test_images" of {sources["test"].shape} differ'
            )
        num_classes = max((source.num_classes or 0) for source in sources.values()) or None
        return ArraySource(sources[split].images, sources[split].labels, num_classes)
    whole = _npz_source(path, contents, "images", "labels", split)
    if len(whole) < 2:
        raise DataError(f'{path}: "images" holds one picture; training needs several, and a tenth of them is held out')
    order = shuffled(len(whole), seed=0)
    held_out = max(1, len(whole) // 10)
    rows = np.sort(order[held_out:] if split == "train" else order[:held_out])
    if isinstance(whole.images, np.memmap):
        return Subset(whole, rows)
    return ArraySource(whole.images[rows], None if whole.labels is None else whole.labels[rows], whole.num_classes)


def _npz_source(
    path: str | AnyPath, contents: dict[str, np.ndarray], images: str, labels: str, split: str
) -> ArraySource:
    try:
        source = ArraySource(contents[images], contents.get(labels))
    except DataError as error:
        named = f'"{images}" and "{labels}"' if labels in contents else f'"{images}"'
        raise DataError(f"{path}: {named}: {error}") from error
    check_pictures(source.images, f'{path}: "{images}"', warn=split == "train" and images == "images")
    if source.labels is not None:
        check_labels(source.labels, f'{path}: "{labels}"')
    return source


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test", got "{split}"')
