"""Flax's checkpoints as data: msgpack files, Orbax's folders and zips of either. Of each the averaged parameters."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.keys import ForeignError

AVERAGES = ("params_ema", "ema_params", "ema")
"""The entries of a checkpoint that hold averages; one of them is read in place of the last parameters."""
OF_TRAINING = {"step", "opt_state", "optimizer"}
"""Entries of a training checkpoint: one that has them and no average is not what its authors sample with."""
MARKS = ("_METADATA", "manifest.ocdbt")
"""Files at the top of Orbax's folders."""
MSGPACK = re.compile(r"(^|/)(checkpoint_\d+|[^/]+\.msgpack)$")
Tree = dict[str, Any]


def is_flax_folder(path: Path) -> bool:
    """Checks whether the folder is a checkpoint of Orbax, or holds some."""
    return bool(_folders(path))


def is_flax_zip(path: Path) -> bool:
    """Checks whether the file is a zip of a Flax checkpoint. Raises: ForeignError for a .zip that is none or is cut."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] in MARKS or MSGPACK.search(name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        if path.suffix == ".zip":
            raise ForeignError(f"{path} is no whole zip archive: {error}") from error
        return False


def read_flax(path: Path, average: str | None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the averaged parameters of a msgpack file, an Orbax folder, or a zip of one.

    Args:    average: which, where the checkpoint holds several, by its name there; None for the first.
    Returns: the arrays, by their keys joined by slashes, and the names of the averages where there are several.
    Raises:  ForeignError saying in one line what the file is not, or what it lacks.
    """
    if path.is_dir():
        return _of_orbax(path, path, average)
    if not is_zip_archive(path):
        return _of_msgpack(path.read_bytes(), path, average)
    with tempfile.TemporaryDirectory(prefix="cmjax-import-", ignore_cleanup_errors=True) as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                return _of_zip(archive, path, Path(folder), average)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
            raise ForeignError(f"{path} is no whole zip archive: {error}") from error


def is_zip_archive(path: Path) -> bool:
    """Checks by its first bytes whether a file is a zip archive."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _of_zip(archive: zipfile.ZipFile, path: Path, folder: Path, average: str | None) -> Any:
    names = archive.namelist()
    if not any(name.rpartition("/")[2] in MARKS for name in names):
        files = [name for name in names if MSGPACK.search(name)]
        if len(files) > 1:
            raise ForeignError(f"{path} holds several checkpoints, {', '.join(files)}: unpack it and name one")
        return _of_msgpack(archive.read(files[0]), path, average)
    size, room = sum(info.file_size for info in archive.infolist()), shutil.disk_usage(folder).free
    if size > room:
        raise ForeignError(f"{path} unpacks to {size:,} bytes, and {folder.parent} has room for {room:,}")
    archive.extractall(folder)
    # the folder is a temporary one: errors name the zip
    return _of_orbax(folder, path, average)


def _folders(path: Path) -> list[Path]:
    """Finds the Orbax checkpoints at the folder, or the nearest ones below it."""
    # the nearest depth that has some: folders below a checkpoint are parts of it
    for depth in range(4):
        below = {mark.parent for name in MARKS for mark in path.glob("*/" * depth + name)}
        if below:
            return sorted(below)
    return []


def _of_orbax(folder: Path, path: Path, average: str | None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    import jax
    import orbax.checkpoint as ocp

    folders = _folders(folder)
    if len(folders) != 1:
        names = ", ".join(each.name for each in folders)
        raise ForeignError(f"{path} holds several checkpoints, {names}: name one of them")
    with ocp.PyTreeCheckpointer() as reader:
        try:
            tree = reader.metadata(folders[0]).item_metadata.tree
        except Exception as error:  # orbax and tensorstore raise many kinds for what is damaged
            raise ForeignError(f"{path} is no whole Orbax checkpoint: {_short(error)}") from error
        chosen, names = _chosen(tree, path, average)
        # these leaves alone are read, and neither the optimizer's nor other averages
        part = unflatten_dict({keys: _at(tree, keys) for keys in chosen})
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part)
        restore = ocp.args.PyTreeRestore(item=part, restore_args=arguments, partial_restore=True)
        try:
            content = reader.restore(folders[0], args=restore)
        except Exception as error:
            raise ForeignError(f"{path} is no whole Orbax checkpoint: {_short(error)}") from error
    return {key: _at(content, keys) for keys, key in chosen.items()}, names


def _of_msgpack(content: bytes, path: Path, average: str | None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(content)
    except Exception as error:  # msgpack raises many kinds for what is no msgpack
        others = "a PyTorch file, nor a pickle of NVIDIA's"
        raise ForeignError(f"{path} is neither {others}, nor a whole Flax checkpoint: {_short(error)}") from error
    chosen, names = _chosen(tree, path, average)
    return {key: _at(tree, keys) for keys, key in chosen.items()}, names


def _chosen(tree: Any, path: Path, average: str | None) -> tuple[dict[tuple[Any, ...], str], tuple[str, ...]]:
    """Finds the average's leaves, path in the tree -> key, and the names of the averages where there are several.

    pMF's checkpoints have a tree for each half-life, ema_params/1000.   [its released code]
    """
    if not isinstance(tree, Mapping):
        raise ForeignError(f"{path} is a Flax file without parameters")
    entry = next((name for name in AVERAGES if name in tree), None)
    if entry is None and OF_TRAINING & tree.keys():
        raise ForeignError(
            f"{path} has no average of the parameters (ema_params), only {', '.join(sorted(map(str, tree)))}"
        )
    if entry is None:
        start: tuple[Any, ...] = ("params",) if isinstance(tree.get("params"), Mapping) else ()
    else:
        start = (entry,)
    below = _at(tree, start)
    below = below if isinstance(below, Mapping) else {}
    names = tuple(sorted(map(str, below), key=float)) if below and all(map(_is_number, below)) else ()
    if average is not None and average not in names:
        has = f"has the averages {', '.join(names)}" if names else "has one average"
        raise ForeignError(f"--arch-average={average}: {path} {has}")
    if names:
        start = (*start, next(name for name in below if str(name) == (average or names[0])))
    leaves: Mapping[tuple[Any, ...], Any] = flatten_dict(dict(below if not names else below[start[-1]]))
    if not leaves:
        raise ForeignError(f"{path} is a Flax file without parameters" + (f" in {entry}" if entry else ""))
    return {(*start, *keys): "/".join(map(str, keys)) for keys in leaves}, names if len(names) > 1 else ()


def _is_number(name: Any) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", str(name)) is not None


def _at(tree: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
