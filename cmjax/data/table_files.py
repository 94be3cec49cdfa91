"""Reads rows of parquet and Arrow files by number. Arrow files are mapped; of parquet's a group of rows is read at a
time, and kept."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmjax.data.base import DataError
from cmjax.system.files import AnyPath

log = logging.getLogger(__name__)

LEAST_KEPT = 4
"""Groups of rows of a column that are kept, whatever they take: rows in order need two of each of two columns."""


class TableFiles:
    """Holds the files of one table, in order. A copy in another process opens them again.

    Args:   paths: of the files. memory_limit_bytes: what the groups of rows that are kept may take.
    Raises: DataError naming the file that cannot be read.
    """

    def __init__(self, paths: Sequence[AnyPath], memory_limit_bytes: int):
        self.paths, self.limit = list(paths), memory_limit_bytes
        self._opened = [_open(path) for path in self.paths]
        # group g has the rows from starts[g] on
        self._groups = [(i, group) for i, file in enumerate(self._opened) for group in range(len(file.groups))]
        counts = [count for file in self._opened for count in file.groups]
        self._starts, self._count = np.concatenate([[0], np.cumsum(counts)]), int(sum(counts))
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return TableFiles, (self.paths, self.limit)

    def __len__(self) -> int:
        return self._count

    def types(self) -> dict[str, str]:
        """Gives the type of each column in the first file: "image", "class", "text", "integer", or its Arrow type."""
        return {field.name: _kind(field, _features(self._opened[0].schema)) for field in self._opened[0].schema}

    def class_names(self, column: str) -> list[str] | None:
        """Gives the names of a column's classes, where `datasets` wrote them."""
        return _features(self._opened[0].schema).get(column, {}).get("names")

    def column(self, name: str) -> np.ndarray:
        """Reads a column of whole numbers, (n,) int64, of all files. Raises: DataError where one is missing."""
        parts = []
        for path, file in zip(self.paths, self._opened, strict=True):
            values = _read(path, file.column, name)
            if values.null_count:
                raise DataError(f"{path}: the column {name!r} lacks {values.null_count} values")
            parts.append(np.asarray(values.to_numpy(), np.int64))
        return np.concatenate(parts)

    def place(self, row: int) -> tuple[AnyPath, int]:
        """Finds the file of a row, and its number there."""
        file, _ = self._groups[self._group(row)]
        first = next(g for g, (i, _) in enumerate(self._groups) if i == file)
        return self.paths[file], row - int(self._starts[first])

    def cell(self, row: int, column: str) -> Any:
        """Reads the value of a column in a row, as a Python object."""
        group = self._group(row)
        return self._values(group, column)[row - int(self._starts[group])].as_py()

    def say_if_slow(self, column: str) -> None:
        """Warns where rows in any order would be read a group at a time again and again. A limit of 0 is that of what
        reads them once."""
        needed = sum(file.bytes_of(column) for file in self._opened)
        if 0 < self.limit < needed and any(file.is_parquet for file in self._opened):
            log.warning(
                "%s: its images take %.1f GB, more than config.data.memory_limit_gb, and parquet is read a group of "
                "rows at a time: training on it is slow. Encode it, or save it as Arrow or as tars",
                self.paths[0].parent, needed / 1e9,
            )  # fmt: skip

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _values(self, group: int, column: str) -> Any:
        file, number = self._groups[group]
        if not self._opened[file].is_parquet:
            return self._opened[file].group(number, column)
        with self._lock:
            if (values := self._kept.get((group, column))) is None:
                values = _read(self.paths[file], self._opened[file].group, number, column)
                self._kept[group, column] = values
                while sum(one.nbytes for one in self._kept.values()) > self.limit and len(self._kept) > LEAST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((group, column))
            return values


def _read(path: AnyPath, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except KeyError as error:
        raise DataError(f"{path}: has no column {error}, which the first file has") from error
    except (OSError, ValueError) as error:  # Arrow's errors are among these
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _open(path: AnyPath) -> Any:
    return _read(path, _Parquet if path.suffix == ".parquet" else _Arrow, path)


class _Parquet:
    """A parquet file. groups: how many rows each group has."""

    is_parquet = True

    def __init__(self, path: AnyPath):
        import pyarrow.parquet as parquet

        self._file = parquet.ParquetFile(path)
        self.schema, described = self._file.schema_arrow, self._file.metadata
        self.groups = [described.row_group(i).num_rows for i in range(described.num_row_groups)]

    def column(self, name: str) -> Any:
        return self._file.read(columns=[name])[name]

    def group(self, number: int, column: str) -> Any:
        return self._file.read_row_group(number, columns=[column])[column]

    def bytes_of(self, column: str) -> int:
        described, total = self._file.metadata, 0
        for group in map(described.row_group, range(described.num_row_groups)):
            chunks = (group.column(i) for i in range(group.num_columns))
            total += sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.startswith(column))
        return total


class _Arrow:
    """An Arrow file, a stream as `datasets` writes it or one with a footer, mapped into memory: one group."""

    is_parquet = False

    def __init__(self, path: AnyPath):
        import pyarrow as arrow

        mapped = arrow.memory_map(str(path))
        has_footer = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        self._table = (arrow.ipc.open_file(mapped) if has_footer else arrow.ipc.open_stream(mapped)).read_all()
        self.schema, self.groups = self._table.schema, [len(self._table)]

    def column(self, name: str) -> Any:
        return self._table[name]

    def group(self, number: int, column: str) -> Any:
        return self._table[column]

    def bytes_of(self, column: str) -> int:
        return self._table[column].nbytes


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Reads the description that `datasets` writes of each column, such as names of classes; {} in files of others."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: one for name, one in features.items() if isinstance(one, dict)}


def _kind(field: Any, features: dict[str, dict[str, Any]]) -> str:
    import pyarrow as arrow

    types, kind = arrow.types, field.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    texts = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    if types.is_string(texts) or types.is_large_string(texts):
        return "text"
    if types.is_integer(kind):
        return "class" if features.get(field.name, {}).get("_type") == "ClassLabel" else "integer"
    return str(kind)
