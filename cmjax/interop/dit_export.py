"""Writes a `dit` under the names of SiT's PyTorch class, as a file that its `load_state_dict` takes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.dit import PEERS, flipped_time, source_of
from cmjax.interop.keys import ForeignError, Path, refuse
from cmjax.nets.dit import DiT
from cmjax.nets.dit_blocks import positions
from cmjax.system.files import to_json, write_atomically
from cmjax.system.libraries import require

SIT = DiT(time_scale=1.0)
FREE = ("patch", "width", "depth", "heads", "mlp_ratio", "num_classes", "learned_positions")
"""Fields that an argument of SiT's class, or one of its arrays, has."""
OF_COMPUTATION = ("parent", "name", "dtype", "dropout", "attention", "remat", "rounded_frequencies")


def write_sit(path: FilePath, network: Any, params: Any, shape: tuple[int, ...], model: Mapping[str, Any]) -> str:
    """Writes a .safetensors with SiT's keys: its time is 1 − ours, and its velocity data − noise.

    The last layer has the rows of a variance too, zeros that SiT leaves out of its output. A network without classes
    has one of SiT's, class 0, whose embedding is zero.

    Args:    model: its kind, path and preconditioning. shape: (h, w, c) of a sample.
    Returns: the call of SiT's class that makes the network.
    Raises:  ForeignError with all that SiT lacks.
    """
    if not isinstance(network, DiT):
        raise ForeignError(f"net.name: SiT is no {type(network).__name__} network; only dit can be exported")
    refuse(_problems(network, shape, model))
    require("safetensors", f"writing {path}")
    from safetensors.numpy import save

    arrays = {"pos_embed": positions(shape[0] // network.patch, shape[1] // network.patch, network.width)[None]}
    if not network.num_classes:
        arrays["y_embedder.embedding_table.weight"] = np.zeros((1, network.width))
    for place, value in flatten_dict(params).items():
        (key,) = source_of(place, network, shape[-1], PEERS["sit"]).keys
        arrays[key] = _theirs(place, np.asarray(value), network, shape[-1])
    arguments = {
        "input_size": shape[0],
        "patch_size": network.patch,
        "in_channels": shape[-1],
        "hidden_size": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "num_classes": network.num_classes,
    }
    content = {key: np.ascontiguousarray(array, np.float32) for key, array in arrays.items()}
    write_atomically(path, save(content, {"format": "pt", "SiT": to_json(arguments)}))
    return f"SiT({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _problems(network: DiT, shape: tuple[int, ...], model: Mapping[str, Any]) -> list[str]:
    """Lists the fields and settings that SiT lacks."""
    wanted = {"kind": PEERS["sit"].kind, **PEERS["sit"].model}
    others = {name: value for name, value in wanted.items() if model[name] != value}
    problems = [f"model.{name}={model[name]}; SiT's is {value}" for name, value in others.items()]
    for field in dataclasses.fields(network):
        value, theirs = getattr(network, field.name), getattr(SIT, field.name)
        if field.name not in (*FREE, *OF_COMPUTATION) and value != theirs:
            problems.append(f"net.{field.name}={value!r}; SiT has {theirs!r}")
    if shape[0] != shape[1]:
        problems.append(f"images of {shape[0]}x{shape[1]}; SiT's are square")
    return problems


def _theirs(path: Path, array: np.ndarray, network: DiT, channels: int) -> np.ndarray:
    """Gives the array under SiT's key: the inverse of `FromKeys.read`."""
    *modules, leaf = path
    if leaf == "positions":
        return array[None]
    if modules[0] == "label":
        return array
    if path == ("patches", "kernel"):
        return array.reshape(network.patch, network.patch, channels, -1).transpose(3, 2, 0, 1)
    if modules[0] == "out":
        # SiT predicts data − noise; the rows of its variance are zeros
        rows = -array.T.reshape(network.patch**2, channels, *array.shape[:-1])
        return np.concatenate([rows, np.zeros_like(rows)], axis=1).reshape(-1, *array.shape[:-1])
    if path == ("time", "dense_0", "kernel"):
        return flipped_time(array.T).T
    return array.T
