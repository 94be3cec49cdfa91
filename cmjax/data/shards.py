"""Finds the files of a data set that is split into many of one kind, and which of them are held out."""

from collections.abc import Iterable, Sequence

from cmjax.data.base import DataError
from cmjax.data.layout import list_files
from cmjax.data.splits import split_of
from cmjax.system.files import AnyPath


def find_shards(root: AnyPath, suffixes: Sequence[str], what: str) -> tuple[list[AnyPath], list[list[AnyPath]]]:
    """Finds the files to train on, and those that may be held out, the better choice first; sorted.

    A file is held out where its name, or that of a folder of it, names such a split: val/00000.tar, test-00000.parquet.
    `test` comes before `val`. Where some names say train, the others that say nothing are an error.

    Args:   root: a folder, or one such file. what: is needed, for messages.
    Raises: DataError where there is none, or none is to train on.
    """
    ends = " or ".join(suffixes)
    if root.is_file() and root.suffix in suffixes:
        return [root], []
    if not root.is_dir():
        problem = f"is a file that does not end in {ends}" if root.is_file() else "no such folder"
        raise DataError(f"{root}: {problem}; {what} is needed")
    files, others = [], []
    for listed in list_files(root):
        for file in listed:
            (files if file.path.suffix in suffixes else others).append(file)
    if not files:
        there = f"; it has {'/'.join(others[0].parts)}" if others else ""
        raise DataError(f"{root}: has no {ends} files{there}; {what} is needed")
    named = {file.path: _split_of_parts(file.parts) for file in files}
    train = [path for path, split in named.items() if split == "train"]
    unnamed = [path for path, split in named.items() if split is None]
    if train and unnamed:
        raise DataError(f"{root}: {train[0].name} is of a split by its name, and {unnamed[0].name} of none; move one")
    if not (train or unnamed):
        raise DataError(f"{root}: all its {ends} files are of splits that are held out, by their names")
    # "test" and "val" both, where both are there
    held = [[path for path, split in named.items() if split == name] for name in ("test", "val")]
    return sorted(train or unnamed, key=str), [sorted(paths, key=str) for paths in held if paths]


def _split_of_parts(parts: Iterable[str]) -> str | None:
    """Finds the split that the parts of a path name, "train", "test" or "val"; None where they name none."""
    *folders, name = parts
    for part in (*folders, name.partition(".")[0]):
        if found := split_of(part):
            return found[0] if found[0] == "train" or "test" in part.casefold() or "tst" in part.casefold() else "val"
    return None
