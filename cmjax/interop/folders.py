"""Finds and reads the weights in a folder of diffusers or transformers: a file, in half precision, or shards."""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from cmjax.interop.fields import read_config
from cmjax.interop.keys import ForeignError
from cmjax.interop.safetensors_files import read_safetensors
from cmjax.interop.torch_files import read_torch

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
INDEX = re.compile(r"\.index(\.\w+)?\.json$")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Beginnings of the names of files of weights: diffusers', and the two of transformers."""


def weights_file(folder: FilePath, *, beside: tuple[str, ...] = ()) -> FilePath | None:
    """Finds the file of the weights in a folder, or the index of several.

    Where there is none of the known names, it is the only file of weights there. None where that is not one file.

    Args:   beside: names of files that hold no weights of the network.
    """
    for variant in ("", ".fp16"):
        for suffix in SUFFIXES[:2]:
            ends = (f"{variant}{suffix}", f"{variant}{suffix}.index.json", f"{suffix}.index{variant}.json")
            for name in (f"{stem}{end}" for end in ends for stem in STEMS):
                if (folder / name).is_file():
                    return folder / name
    others = [file for file in sorted(folder.iterdir()) if file.name.endswith(SUFFIXES) and file.name not in beside]
    return others[0] if len(others) == 1 else None


def content_of(file: FilePath) -> Mapping[str, Any]:
    """Reads the content of a file of weights by key, or of all files that an index names.

    Raises: ForeignError where a file is damaged, or one that an index names is missing.
    """
    if INDEX.search(file.name):
        return {key: array for name in shards_of(file) for key, array in content_of(file.parent / name).items()}
    if file.suffix == ".safetensors":
        return read_safetensors(file)[0]
    try:
        content = read_torch(file)
    except (ValueError, OSError) as error:
        raise ForeignError(str(error)) from error
    return content if isinstance(content, dict) else {}


def part_weights(folder: FilePath) -> tuple[FilePath, Mapping[str, Any]]:
    """Reads the weights of a part of a pipeline. Returns: their file and the arrays by key.

    Raises: ForeignError naming what the folder has instead; and as `content_of`.
    """
    file = weights_file(folder)
    if file is None:
        there = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
        raise ForeignError(
            f"{folder} has no weights, {STEMS[0]}{SUFFIXES[0]} or {STEMS[1]}{SUFFIXES[0]}; it has {there}"
        )
    return file, content_of(file)


def part_files(folder: FilePath) -> list[FilePath]:
    """Lists the files of a part of a pipeline: its configs and vocabulary, and its weights, where it has any.

    Raises: ForeignError as `content_of`.
    """
    texts = [file for file in sorted(folder.iterdir()) if file.suffix in (".json", ".txt")]
    files = [file for file in texts if not INDEX.search(file.name)]
    weights = weights_file(folder)
    if weights is None:
        return files
    return [*files, weights, *(folder / name for name in shards_of(weights))]


def shards_of(file: FilePath) -> list[str]:
    """Reads the names of the files that an index names; none of a file of weights. Raises: ForeignError."""
    if not INDEX.search(file.name):
        return []
    names = read_config(file).get("weight_map")
    if not isinstance(names, dict) or not all(type(name) is str and "/" not in name for name in names.values()):
        raise ForeignError(f"{file} is no index of files: it has no weight_map")
    shards = sorted(set(names.values()))
    if missing := [name for name in shards if not (file.parent / name).is_file()]:
        raise ForeignError(f"{file} names files that are missing: {', '.join(missing)}")
    return shards
