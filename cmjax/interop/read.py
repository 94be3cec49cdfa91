"""Which peer a file is of, and its network. Files are read as data: no code in them is ever run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.diffusers import WEIGHTS, read_config, read_diffusers, with_scheduler
from cmjax.interop.edm import read_edm
from cmjax.interop.edm2 import read_edm2
from cmjax.interop.keys import Arrays, Foreign, ForeignError
from cmjax.interop.openai import read_openai
from cmjax.interop.openai_cifar import read_openai_cifar
from cmjax.interop.pickles import Module, init_arguments, read_persistent, read_torch, state_dict

READERS: dict[str, Callable[[Arrays, Mapping[str, Any]], Foreign]] = {
    "openai": read_openai,
    "openai_cifar": read_openai_cifar,
    "edm": read_edm,
    "edm2": read_edm2,
}
TELLTALES = {
    "input_blocks.0.0.weight": "openai",
    "ResnetBlockBigGANpp_0/Conv_0/kernel": "openai_cifar",
    "map_layer0.weight": "edm",
    "emb_fourier.freqs": "edm2",
}
"""A key that a peer's file has, without prefix."""

DENOISERS = {"EDMPrecond": "edm", "Precond": "edm2"}
"""NVIDIA's preconditioned networks that are the `edm` denoiser, by class."""

TOLD = {"channels_per_head": "head_channels", "resample_filter": "resample_filter"}
"""What a pickle of NVIDIA's tells of its network beside the arrays, and our fields for it."""

UNUSUAL = {
    "sigma_data": 0.5,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}
"""Arguments that arrays do not show, and their values in every released network."""


def read_foreign(path: Path, format: str, overrides: Mapping[str, Any]) -> tuple[Foreign, str]:
    """The network in a peer's file or folder, and the format it was read in.

    Args:   format: "auto", "diffusers" or a key of `READERS`. overrides: what the file does not tell, by field.
    Raises: ForeignError saying what the file is not, lacks, or does not tell.
    """
    if path.is_dir():
        if format not in ("auto", "diffusers"):
            raise ForeignError(f"{path} is a folder; --format={format} is a file")
        return _read_folder(path, overrides), "diffusers"
    if not path.is_file():
        raise ForeignError(f"{path} does not exist")
    if format == "diffusers":
        raise ForeignError(f"{path} is a file; diffusers' models are folders with a config.json")
    arrays, told = _read_arrays(path)
    found = _recognise(path, arrays)
    if format not in ("auto", found):
        raise ForeignError(f"{path} is not of --format={format}; its keys are those of {found}")
    foreign = READERS[found](arrays, told | dict(overrides))
    return replace(foreign, kind=foreign.kind or _kind_by_name(path)), found


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by key, and the fields that it tells beside them."""
    with path.open("rb") as file:
        head = file.read(2)
    try:
        if head == b"PK" or path.suffix in (".pt", ".pth"):
            return _only_arrays(path, read_torch(path)), {}
        if head[:1] == b"\x80" and head[1:] <= b"\x05":
            return _of_persistent(path, read_persistent(path))
    except ForeignError:
        raise
    except ValueError as error:
        raise ForeignError(str(error)) from error
    return _of_msgpack(path), {}


def _only_arrays(path: Path, content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise ForeignError(f"{path} is no state dict: it holds more than arrays by key")
    return content


def _of_persistent(path: Path, content: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    network = content.get("ema", content.get("net")) if isinstance(content, dict) else None
    if not isinstance(network, Module):
        raise ForeignError(f"{path} is no snapshot of EDM or EDM2: it has no network under 'ema' or 'net'")
    if network.class_name not in DENOISERS:
        raise ForeignError(f"{path} holds a {network.class_name}; only {' and '.join(DENOISERS)} can be read")
    arguments = init_arguments(network)
    for name, usual in UNUSUAL.items():
        if arguments.get(name, usual) != usual:
            raise ForeignError(f"{path} was made with {name}={arguments[name]!r}; only {usual!r} can be read")
    told = {ours: arguments[theirs] for theirs, ours in TOLD.items() if theirs in arguments}
    return state_dict(network), told


def _of_msgpack(path: Path) -> dict[str, np.ndarray]:
    """The averaged parameters of a Flax checkpoint, keys joined by slashes."""
    from flax import serialization

    try:
        content = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many kinds for what is no msgpack
        raise ForeignError(
            f"{path} is neither a PyTorch file, nor a pickle of NVIDIA's, nor a Flax checkpoint"
        ) from error
    params = content.get("params_ema", content) if isinstance(content, dict) else None
    if not isinstance(params, dict):
        raise ForeignError(f"{path} is a Flax file without parameters")
    flat = {"/".join(map(str, keys)): value for keys, value in flatten_dict(params.get("params", params)).items()}
    return _only_arrays(path, flat)


def _recognise(path: Path, arrays: Arrays) -> str:
    bare = {re.sub(r"^(model|unet|module)\.", "", key) for key in arrays}
    for key, peer in TELLTALES.items():
        if key in bare:
            return peer
    some = ", ".join(sorted(arrays)[:5]) or "none"
    raise ForeignError(f"{path} is of no network that is known here; its first keys: {some}")


def _read_folder(path: Path, overrides: Mapping[str, Any]) -> Foreign:
    unet = path / "unet" if (path / "unet").is_dir() else path
    if not (unet / "config.json").is_file():
        raise ForeignError(f"{path} is no diffusers folder: there is no {unet / 'config.json'}")
    config, weights = read_config(unet / "config.json"), unet / WEIGHTS
    if not weights.is_file():
        raise ForeignError(f"{path} has no {weights}; other forms of the weights are not read")
    foreign = read_diffusers(config, read_safetensors(weights)[0], overrides)
    scheduler = path / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        return foreign
    return with_scheduler(foreign, read_config(scheduler))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. Raises: ForeignError."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ForeignError(f"reading {path} needs safetensors: pip install 'cmjax[interop]'") from error
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise ForeignError(f"{path} is no whole safetensors file: {error}") from error


def _kind_by_name(path: Path) -> str | None:
    """OpenAI's files tell it in their names alone, as edm_imagenet64_ema.pt and cd-lpips/checkpoint_80 do."""
    words = re.split(r"[^a-z0-9]+", "/".join(path.parts[-3:]).lower())
    kinds = {"denoiser" if word == "edm" else "consistency" for word in words if word in ("edm", "cd", "ct")}
    return kinds.pop() if len(kinds) == 1 else None
