"""Opens tables of images as a source: parquet files, and the Arrow files that Hugging Face's `datasets` writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cmjax.data.base import DataError, Source, check_split
from cmjax.data.captions import KEYS, caption_of
from cmjax.data.folder import ImageSource, check_images
from cmjax.data.labels import Numbering, held_out, number_labels
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES, Damage, kept_if_small
from cmjax.data.shards import find_shards
from cmjax.data.table_files import TableFiles
from cmjax.system.content import content_key, files_key
from cmjax.system.files import AnyPath, is_bucket, to_path
from cmjax.system.libraries import require

SUFFIXES = {"parquet": (".parquet",), "huggingface": (".arrow", ".parquet")}
"""The files that are read, by the name of the data."""
WANTED = {"parquet": "a folder of parquet files", "huggingface": "a folder that datasets' save_to_disk wrote"}
IMAGES = ("image", "img", "jpg", "png", "jpeg", "pixels")
LABELS = ("label", "labels", "class")
"""The names of columns that are taken where several could be."""


class Columns(NamedTuple):
    """Names the columns of images, labels and captions; "" for none."""

    image: str
    label: str
    caption: str


def tables(
    data_dir: str | AnyPath,
    split: str,
    *,
    kind: str = "parquet",
    image_column: str = "",
    label_column: str = "",
    caption_column: str = "",
    image_size: int | tuple[int, int],
    channels: int = 3,
    crop: str = "lanczos",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
    captions: bool = False,
) -> Source:
    """Opens the rows of tables: an encoded image each, as bytes or as `datasets` has it, and a label if there is one.

    Splits are in the names of files or folders, see `shards`, else about a tenth is held out, by a hash of the place.

    Args:   data_dir: the folder, or one file. kind: of `SUFFIXES`. image_column, …: "" for those that are
            found by their type and name. captions: whether the examples have captions too, see `ImageSource`. The
            others: as of `folder.folder`.
    Raises: DataError naming the folder or file, where nothing can be read from it; MissingLibrary without pyarrow.
    """
    check_split(split)
    shape = check_images(image_size, channels)
    root = to_path(data_dir).expanduser()
    train, held = find_tables(root, kind)
    files = TableFiles(train, memory_limit_bytes)
    columns = _found(files, Columns(image_column, label_column, caption_column), captions=captions)
    labels = files.column(columns.label) if columns.label else None
    classes = None if labels is None else _classes(files, columns.label, labels, say=split == "train")
    if split == "test" and held:
        files, labels = _held_out(held, columns, memory_limit_bytes)
    rows, numbers = _rows(len(files), labels, classes, None if held else split)
    if not len(rows):
        raise DataError(f'{root}: none of its {len(files)} rows falls into split "{split}"')
    source = TableSource(
        shape=shape,
        length=len(rows),
        damage=Damage(str(root), max_corrupt),
        class_names=None if classes is None else classes.names,
        labels=numbers,
        files=files,
        rows=rows,
        columns=columns,
        crop=crop,
        captions=columns.caption if captions else None,
    )
    if split == "train":
        files.say_if_slow(columns.image)
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def _rows(
    length: int, labels: np.ndarray | None, classes: Numbering | None, split: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Chooses the rows of a split with known classes, and numbers these. split: None where all rows are of it."""
    rows = np.arange(length)
    if split is not None:
        rows = np.flatnonzero(held_out([str(row) for row in range(length)], labels) == (split == "test"))
    if labels is None or classes is None:
        return rows, None
    numbers = classes.numbers(labels[rows])
    return rows[numbers >= 0], numbers[numbers >= 0]


def find_tables(root: AnyPath, kind: str) -> tuple[list[AnyPath], list[list[AnyPath]]]:
    """Finds the files to train on, and those that may be held out. Raises: DataError where there are none, and
    MissingLibrary without pyarrow."""
    require("pyarrow", f"config.data.name={kind!r}")
    if is_bucket(root):
        raise DataError(f"{root}: tables are read from a disk; copy them to one")
    if kind == "huggingface":
        _check_saved(root)
    suffixes = SUFFIXES[kind]
    try:
        return find_shards(root, suffixes, WANTED[kind])
    except DataError as error:
        if kind == "parquet" and any(root.rglob("*.arrow")):
            raise DataError(f'{root}: holds .arrow files, which config.data.name="huggingface" reads') from error
        raise


def _check_saved(root: AnyPath) -> None:
    """Raises DataError where `datasets` says that its files hold more than the data set, or one is missing."""
    for path in root.rglob("state.json") if root.is_dir() else ():
        try:
            state = json.loads(path.read_text())
            indices, files = state.get("_indices_data_files"), [file["filename"] for file in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is not as datasets' save_to_disk writes it: {error!r}") from error
        if indices:
            raise DataError(f"{path}: its rows are chosen by a file of indices; save flatten_indices() of the data set")
        if missing := [name for name in files if not (path.parent / name).is_file()]:
            raise DataError(f"{path.parent / missing[0]}: is missing; copy it again")


def _found(files: TableFiles, columns: Columns, *, captions: bool) -> Columns:
    """Finds the columns that are read. Raises: DataError naming the file, and the columns that it has."""
    where, types = files.paths[0], files.types()
    there = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    for name, column in columns._asdict().items():
        if column and column not in types:
            raise DataError(f"{where}: has no column {column!r}, config.data.{name}_column; it has {there}")

    def find(chosen: str, kind: str, usual: Sequence[str]) -> str:
        those = [name for name, its in types.items() if its == kind]
        if chosen or not those:
            return chosen
        named = [name for name in usual if name in those]
        return named[0] if named else those[0] if len(those) == 1 else ""

    image = find(columns.image, "image", IMAGES)
    if not image or types[image] != "image":
        problem = f"the column {image!r} holds no encoded images, but {types[image]}" if image else "has no images"
        raise DataError(f"{where}: {problem}; config.data.image_column names one of bytes. It has {there}")
    usual = [name for name in LABELS if types.get(name) == "integer"]
    label = columns.label or find("", "class", LABELS) or (usual[0] if usual else "")
    if label and types[label] not in ("class", "integer"):
        raise DataError(f"{where}: the column {label!r} holds no whole numbers, but {types[label]}: no labels")
    caption = columns.caption or next((name for name in KEYS if types.get(name) == "text"), "")
    if captions and (not caption or types[caption] != "text"):
        problem = f"the column {caption!r} holds {types[caption]}, and no text" if caption else "has no captions"
        raise DataError(f"{where}: {problem}; config.data.caption_column names one of texts. It has {there}")
    return Columns(image, label, caption)


def _classes(files: TableFiles, column: str, labels: np.ndarray, *, say: bool) -> Numbering:
    return number_labels(labels, f'{files.paths[0].parent}: "{column}"', names=files.class_names(column), say=say)


def _held_out(held: Sequence[Sequence[AnyPath]], columns: Columns, limit: int) -> tuple[TableFiles, np.ndarray | None]:
    """Finds the first split whose labels are known: benchmarks publish those of "test" as −1."""
    for paths in held:
        files = TableFiles(paths, limit)
        if missing := [column for column in columns if column and column not in files.types()]:
            raise DataError(f"{paths[0]}: has no column {missing[0]!r}, which the data to train on have")
        labels = files.column(columns.label) if columns.label else None
        if labels is None or (labels >= 0).any():
            return files, labels
    raise DataError(f"{held[0][0]}: the labels of the held-out data are not known, for all are negative")


@dataclass(frozen=True, kw_only=True)
class TableSource(ImageSource):
    """Examples of rows of tables."""

    files: TableFiles
    rows: np.ndarray
    columns: Columns

    def key(self) -> str:
        """Computes a key of the files' content and of the rows and columns that are read."""
        return content_key(files_key(self.files.paths), self.rows, self.columns, self.labels, self.crop)

    def name(self, index: int) -> str:
        """Gives the file's name, and the row in it."""
        path, row = self.files.place(int(self.rows[index]))
        return f"{path.name}: row {row}"

    def file(self, index: int) -> bytes:
        """See `ImageSource`."""
        cell = self.files.cell(int(self.rows[index]), self.columns.image)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            path = cell.get("path") if isinstance(cell, dict) else None
            raise DataError(f"its image is the file {path}, and its bytes are not here" if path else "it has no image")
        return content

    def caption(self, index: int) -> str:
        """See `ImageSource`."""
        return caption_of(self.files.cell(int(self.rows[index]), self.columns.caption))
