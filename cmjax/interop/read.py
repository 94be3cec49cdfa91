"""Finds out whose file it is and reads its network, as data: no code in a file is ever run."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.interop.diffusers import read_diffusers, read_scheduler
from cmjax.interop.dit import PEERS, peer_of, read_dit
from cmjax.interop.edm import read_edm, read_edm2
from cmjax.interop.fields import read_config
from cmjax.interop.flax_files import is_flax_folder, is_flax_zip, is_zip_archive, read_flax
from cmjax.interop.imf import read_imf
from cmjax.interop.keys import WEIGHTS, Arrays, Foreign, ForeignError, noting, refuse
from cmjax.interop.meanflow import read_meanflow
from cmjax.interop.modules import init_arguments, state_dict
from cmjax.interop.openai import read_openai
from cmjax.interop.openai_cifar import read_openai_cifar
from cmjax.interop.safetensors_files import read_safetensors
from cmjax.interop.torch_files import read_persistent, read_torch
from cmjax.system.files import absolute
from cmjax.system.unpickle import PickledObject

log = logging.getLogger(__name__)

READERS: dict[str, Callable[[Arrays, Mapping[str, Any]], Foreign]] = {
    "openai": read_openai,
    "openai_cifar": read_openai_cifar,
    "edm": read_edm,
    "edm2": read_edm2,
    **{peer: partial(read_dit, peer=peer) for peer in PEERS},
    "meanflow": read_meanflow,
    "imf": partial(read_imf, peer="imf"),
    "pmf": partial(read_imf, peer="pmf"),
}
TELLTALES = {
    "input_blocks.0.0.weight": "openai",
    "ResnetBlockBigGANpp_0/Conv_0/kernel": "openai_cifar",
    "map_layer0.weight": "edm",
    "emb_fourier.freqs": "edm2",
    "x_embedder.proj.weight": "dit",
    "blocks/layers_0/attn/qkv/_flax_linear/kernel": "meanflow",
    "x_embedder/proj2/kernel": "pmf",
    "omega_tokens": "imf",
}
"""A key that a peer's file has, without the prefix of what its network was wrapped in."""

OPTIONS = {
    "openai": ("kind", "image_size", "head_channels"),
    "openai_cifar": ("kind", "image_size", "attention_resolutions", "resample_filter"),
    "edm": ("kind", "head_channels", "resample_filter"),
    "edm2": ("kind", "head_channels", "resample_filter"),
    "diffusers": ("kind", "image_size", "head_channels"),
    **{peer: ("image_size", "head_channels") for peer in PEERS},
    "dmf": ("image_size", "head_channels", "second_time_from"),
    "meanflow": ("image_size", "head_channels", "average"),
    "imf": ("image_size", "average"),
    "pmf": ("image_size", "noise_scale", "average"),
}
"""The facts that may be stated beside a file, by its format: the others stand in the file."""

KNOWN_KIND = ("edm", "edm2", *PEERS, "meanflow", "imf", "pmf")
"""Formats whose readers know the kind of the network."""
KIND = "--arch-kind=denoiser (a diffusion teacher) or --arch-kind=consistency"

DENOISERS = {"EDMPrecond": "edm", "Precond": "edm2"}
"""NVIDIA's preconditioned networks that are the `edm` denoiser, by class."""

STATED = {"channels_per_head": "head_channels", "resample_filter": "resample_filter"}
"""Arguments in NVIDIA's pickles that arrays do not show, and our fields for them."""

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
    """Reads the network in a peer's file or folder, of a known kind. Returns: it and its format.

    Args:   format: "auto", "diffusers" or a key of `READERS`. overrides: what the file leaves open, by field.
    Raises: ForeignError saying what the file is not or lacks; UndeterminedError with all that it leaves open.
    """
    open_facts: list[str] = []
    if path.is_dir() and not is_flax_folder(path):
        if format not in ("auto", "diffusers"):
            raise ForeignError(f"{path} is a folder; --format={format} is a file")
        peer, read, kind = "diffusers", partial(_read_folder, path), _kind_of_pipeline(path)
    else:
        peer, read, averages = _open_file(path, format, overrides.get("average"))
        kind = None if peer in KNOWN_KIND else _kind_by_name(path)
        if averages and "average" not in overrides:
            open_facts.append(f"--arch-average=N, which of its averages: {', '.join(averages)}")
    problems: list[str] = []
    if unused := [f"--arch-{name}" for name in overrides if name not in OPTIONS[peer]]:
        taken = ", ".join(f"--arch-{name}" for name in OPTIONS[peer])
        plural = "has" if len(unused) == 1 else "have"
        problems.append(f"{', '.join(unused)} {plural} no effect on --format={peer}, which takes {taken}")
    foreign: Any = None
    kind = overrides.get("kind") or kind
    if kind is None and peer not in KNOWN_KIND:
        open_facts.append(KIND)
    left_open: list[str] = []
    with noting(problems, left_open):
        foreign = read(overrides)
        problems += _output_problems(foreign)
    refuse(problems, left_open + open_facts)
    return replace(foreign, kind=kind or foreign.kind), peer


def _output_problems(foreign: Foreign) -> list[str]:
    channels, wanted = getattr(foreign.module, "out_channels", None), foreign.shape[-1]
    if not channels or channels == wanted:
        return []
    learned = ": it predicts a variance too (learned sigma)" if channels == 2 * wanted else ""
    return [
        f"the network has {channels} output channels for images of {wanted}{learned}; "
        "a denoiser and a consistency model give an image"
    ]


def _open_file(
    path: Path, format: str, average: str | None
) -> tuple[str, Callable[[Mapping[str, Any]], Foreign], tuple[str, ...]]:
    """Opens a file, or a folder of Orbax's.

    Returns: its format, its reader, overrides -> the network, and the names of its averages where it has several.
    """
    if not path.exists():
        raise ForeignError(f"{path} does not exist")
    if format == "diffusers":
        raise ForeignError(f"{path} is no folder of diffusers, which has a config.json")
    arrays, stated, averages = _read_arrays(path, average)
    family, arrays = _recognise(path, arrays)
    if family == "dit" and format in ("auto", *PEERS):
        peer = format if format in PEERS else peer_of(arrays, path.name)
        return peer or family, lambda overrides: read_dit(arrays, overrides, peer), averages
    if format not in ("auto", family):
        raise ForeignError(f"{path} is not of --format={format}; its keys are those of {family}")
    return family, lambda overrides: READERS[family](arrays, stated | dict(overrides)), averages


Content = tuple[dict[str, np.ndarray], dict[str, Any], tuple[str, ...]]


def _read_arrays(path: Path, average: str | None = None) -> Content:
    """Reads the arrays of a file by key, the fields that it states beside them, and the names of its averages."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0], {}, ()
    if not path.is_dir() and not (is_zip_archive(path) and is_flax_zip(path)):
        with path.open("rb") as file:
            head = file.read(2)
        try:
            if head == b"PK" or path.suffix in (".pt", ".pth"):
                return _only_arrays(path, read_torch(path)), {}, ()
            if head[:1] == b"\x80" and head[1:] <= b"\x05":
                return *_of_persistent(path, read_persistent(path)), ()
        except ForeignError:
            raise
        except ValueError as error:
            raise ForeignError(str(error)) from error
    arrays, averages = read_flax(path, average)
    return _only_arrays(path, arrays), {}, averages


def _only_arrays(path: Path, content: Any) -> dict[str, np.ndarray]:
    """Takes the state dict of a checkpoint: the content itself, or its average, or its only entry that is one."""
    if _is_state_dict(content):
        return content
    items = content.items() if isinstance(content, dict) else ()
    entries = {name: value for name, value in items if _is_state_dict(value)}
    if "ema" in entries:
        entries = {"ema": entries["ema"]}
    if len(entries) > 1:
        raise ForeignError(f"{path} holds several state dicts, {', '.join(map(str, entries))}: save one of them alone")
    if not entries:
        raise ForeignError(f"{path} is no state dict: it holds more than arrays by key")
    ((name, arrays),) = entries.items()
    log.info("%s: the network is read from its entry %r", path, name)
    return arrays


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, np.ndarray) for v in content.values())


def _of_persistent(path: Path, content: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    network = content.get("ema", content.get("net")) if isinstance(content, dict) else None
    if not isinstance(network, PickledObject):
        raise ForeignError(f"{path} is no snapshot of EDM or EDM2: it has no network under 'ema' or 'net'")
    if network.class_name not in DENOISERS:
        raise ForeignError(f"{path} holds a {network.class_name}; only {' and '.join(DENOISERS)} can be read")
    arguments = init_arguments(network)
    unusual = {name: usual for name, usual in UNUSUAL.items() if arguments.get(name, usual) != usual}
    refuse(
        f"{path} was made with {name}={arguments[name]!r}; only {usual!r} can be read"
        for name, usual in unusual.items()
    )
    stated = {ours: arguments[theirs] for theirs, ours in STATED.items() if theirs in arguments}
    return state_dict(network), stated


def _recognise(path: Path, arrays: Arrays) -> tuple[str, Arrays]:
    """Finds the peer, and the arrays by its own keys: without the prefixes of DDP, torch.compile or an outer module.

    Raises: ForeignError where the keys are of no peer, or of several networks.
    """
    arrays = {key.replace("_orig_mod.", ""): value for key, value in arrays.items()}
    for telltale, peer in TELLTALES.items():
        prefixes = [key.removesuffix(telltale) for key in arrays if re.search(rf"(^|[./]){re.escape(telltale)}$", key)]
        if len(prefixes) > 1:
            names = " and ".join(repr(prefix) for prefix in sorted(prefixes))
            raise ForeignError(f"{path} holds several networks, with the prefixes {names}: save one of them alone")
        if prefixes:
            return peer, {key.removeprefix(prefixes[0]): value for key, value in arrays.items()}
    some = ", ".join(sorted(arrays)[:5]) or "none"
    raise ForeignError(f"{path} is of no network that is known here; its first keys: {some}")


def _read_folder(path: Path, overrides: Mapping[str, Any]) -> Foreign:
    unet, scheduler = _parts(path)
    problems: list[str] = []
    options: list[str] = []
    levels: Any = None
    foreign: Any = None
    if scheduler.is_file():
        with noting(problems, options):
            levels = read_scheduler(read_config(scheduler))
    with noting(problems, options):
        foreign = read_diffusers(read_config(unet / "config.json"), _folder_weights(unet), overrides)
    refuse(problems, options)
    return foreign if levels is None else replace(foreign, kind="consistency", constants=levels)


def _kind_of_pipeline(path: Path) -> str | None:
    return "consistency" if _parts(path)[1].is_file() else None


def _parts(path: Path) -> tuple[Path, Path]:
    """Finds the network's folder, and the scheduler's file, which may be absent; `path` is a pipeline or its `unet`."""
    unet = path / "unet" if (path / "unet").is_dir() else path
    if not (unet / "config.json").is_file():
        raise ForeignError(f"{path} is no diffusers folder: there is no {unet / 'config.json'}")
    pipeline = absolute(unet).parent if (absolute(unet).parent / "model_index.json").is_file() else path
    return unet, pipeline / "scheduler" / "scheduler_config.json"


def _folder_weights(unet: Path) -> Arrays:
    if (unet / WEIGHTS).is_file():
        return read_safetensors(unet / WEIGHTS)[0]
    torch_file = unet / WEIGHTS.replace(".safetensors", ".bin")
    if torch_file.is_file():
        return _read_arrays(torch_file)[0]
    there = ", ".join(sorted(file.name for file in unet.iterdir())) or "nothing"
    raise ForeignError(f"{unet} has neither {WEIGHTS} nor {torch_file.name}; it has {there}")


def _kind_by_name(path: Path) -> str | None:
    """Finds the kind of OpenAI's files, which only their names show, as cd-lpips/checkpoint_80."""
    words = re.split(r"[^a-z0-9]+", "/".join(path.parts[-3:]).lower())
    kinds = {"denoiser" if word == "edm" else "consistency" for word in words if word in ("edm", "cd", "ct")}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    log.info("%s is taken for a %s by its name; --arch-kind says otherwise", path, kind)
    return kind
