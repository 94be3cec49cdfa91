"""Autoencoders of others: folders of diffusers' AutoencoderKL, and files of weights under its or latent diffusion's
names."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.autoencoder_config import CLASS, config_from_shapes, config_of, latents_affine, network, read_fields
from cmjax.interop.fields import read_config
from cmjax.interop.folders import content_of, weights_file
from cmjax.interop.keys import (
    WEIGHTS,
    Arrays,
    ForeignError,
    FromKeys,
    Path,
    filled,
    from_torch,
    noting,
    refuse,
    write_part,
)
from cmjax.interop.torch_files import read_torch
from cmjax.nets.latents import Autoencoder
from cmjax.system.files import is_bucket, to_path

log = logging.getLogger(__name__)

STATISTICS = "latents_stats.pt"
"""Mean and std of each channel of latents, as LightningDiT writes them."""
ENTRIES = ("ema", "state_dict", "model")
"""Names of state dicts in a file with several; the first that is there is read."""
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
TELLTALES = tuple(f"{half}.conv_{end}.weight" for half in ("encoder", "decoder") for end in ("in", "out"))
"""Keys that every autoencoder has."""

Names = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
OLD: Names = ((r"\bto_q\b", "query"), (r"\bto_k\b", "key"), (r"\bto_v\b", "value"), (r"\bto_out\.0\b", "proj_attn"))
"""diffusers' names -> those of 2022."""
LATENT_DIFFUSION: Names = (
    (r"\bmid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"\bmid_block\.attentions\.0", "mid.attn_1"),
    (r"\b(down|up)_blocks\b", r"\1"),
    (r"\b(down|up)samplers\.0", r"\1sample"),
    (r"\bresnets\b", "block"),
    (r"\battentions\b", "attn"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bto_out\.0\b", "proj_out"),
)
"""diffusers' names -> latent diffusion's."""


def load_autoencoder(
    path: str | FilePath,
    *,
    dtype: Any = jnp.float32,
    scale: float | Sequence[float] | None = None,
    shift: float | Sequence[float] | None = None,
    statistics: str | FilePath | None = None,
) -> Autoencoder:
    """Reads an autoencoder from a folder or a file, as data alone: no code in it is run.

    Args:   path: a pipeline of diffusers or its `vae` folder, a folder with one file of weights, or such a file,
                .safetensors, .bin, .ckpt, .pt or .pth, under diffusers' names or latent diffusion's (VA-VAE's, and
                Stable Diffusion's first ones). Without a config.json the network follows from the arrays' shapes.
            dtype: of computation, such as "bfloat16"; images and latents are returned in the dtype of the input.
            scale, shift: networks see latents z as (z − shift)·scale; one number, or one for each channel. By default
                as config.json or `statistics` has them.
            statistics: a file of the mean and the std of each channel, so that shift = mean and scale = 1/std. By
                default latents_stats.pt, where it lies beside weights without a config.json.
    Raises: ForeignError, in one line all that is missing, left over, or not as it must be.
    """
    file, configured = _find(to_path(path))
    arrays = _autoencoder_in(_read(file), file)
    fields = configured or read_fields(config_from_shapes(arrays, file), file)
    module: Any = network(fields, dtype)
    key_of = names_of(arrays, len(module.widths))
    try:
        params = filled(arrays, autoencoder_shapes(module), lambda path: FromKeys((key_of(path),), from_torch))
    except ForeignError as error:
        raise ForeignError(f"{file}: {error}") from error
    if statistics is None and configured is None and (file.parent / STATISTICS).is_file():
        statistics = file.parent / STATISTICS
    known = latents_affine(fields) if statistics is None else read_statistics(to_path(statistics))
    problems: list[str] = []
    affine: list[Any] = []
    for name, stated, value in zip(("scale", "shift"), (scale, shift), known, strict=True):
        with noting(problems, []):
            affine.append(_per_channel(name, stated, value, module.latent_channels))
    refuse(problems)
    scales, shifts = affine
    if scales is not None and shifts is None:
        shifts = (0.0,) * module.latent_channels
    sample_size = int(np.ravel(fields["sample_size"])[0])
    return Autoencoder(jax.tree.map(jnp.asarray, params), module, scales, shifts, sample_size)


def write_autoencoder(folder: str | FilePath, autoencoder: Autoencoder) -> None:
    """Writes a folder that diffusers' AutoencoderKL and `load_autoencoder` read: config.json and float32 weights.

    Raises: ForeignError where the scale of its latents is not known.
    """
    config = config_of(autoencoder)
    key_of = names_of((), len(autoencoder.module.widths))
    arrays = {
        key_of(path): to_torch(path, np.asarray(value)) for path, value in flatten_dict(autoencoder.params).items()
    }
    write_part(to_path(folder), config, arrays)


@lru_cache(maxsize=4)
def autoencoder_shapes(module: Any) -> Mapping[Path, Any]:
    """Returns the shapes of an `AutoencoderKL`'s parameters by path. Nothing is computed."""
    images = jax.ShapeDtypeStruct((1, module.factor, module.factor, module.channels), jnp.float32)
    return dict(flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images)["params"]))


def to_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """Puts the axes of a weight in PyTorch's order: HWIO -> OIHW, (in, out) -> (out, in) in attention, else OIHW."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    if array.ndim == 1:
        return array
    matrix = np.ascontiguousarray(array.T)
    return matrix if path[-2].startswith("to_") else matrix[:, :, None, None]


def _find(path: FilePath) -> tuple[FilePath, dict[str, Any] | None]:
    """Finds the file of the weights, or the index of several, and reads the config beside it, if there is one."""
    if is_bucket(path):
        raise ForeignError(f"{path}: an autoencoder is read from a disk; copy it there")
    if not path.exists():
        raise ForeignError(f"{path} does not exist")
    folder = path.parent if path.is_file() else path / "vae" if (path / "vae").is_dir() else path
    config = read_config(folder / "config.json") if (folder / "config.json").is_file() else None
    if path.is_file() and config is not None and config.get("_class_name") != CLASS:
        config = None  # of something else in the same folder
    fields = None if config is None else read_fields(config, folder / "config.json")
    if path.is_file():
        return path, fields
    file = weights_file(folder, beside=(STATISTICS,))
    if file is None:
        there = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
        raise ForeignError(
            f"{folder} is no autoencoder's folder, with {WEIGHTS} or one other file of weights; it has {there}"
        )
    return file, fields


def _read(file: FilePath) -> Mapping[str, Any]:
    """Reads the content of a file by key; of a checkpoint, its state dict."""
    content: Any = content_of(file)
    if _prefixes(content):
        return content
    found = {name: entry for name, entry in content.items() if isinstance(entry, dict) and _prefixes(entry)}
    name = next((name for name in ENTRIES if name in found), next(iter(found), None))
    if len(found) > 1 and name not in ENTRIES:
        raise ForeignError(f"{file} holds several autoencoders, {', '.join(map(str, found))}: save one of them alone")
    return content if name is None else found[name]


def _prefixes(content: Mapping[Any, Any]) -> set[str]:
    """Finds the prefixes of autoencoders' keys, such as "first_stage_model.", one for each autoencoder."""
    keys = [(key, name) for key in content for name in TELLTALES if f".{key}".endswith(f".{name}")]
    return {key.removesuffix(name) for key, name in keys}


def _autoencoder_in(content: Mapping[str, Any], file: FilePath) -> Arrays:
    """Takes the arrays of the autoencoder alone, without a prefix."""
    prefixes = _prefixes(content)
    if not prefixes:
        some = ", ".join(sorted(map(str, content))[:5]) or "none"
        raise ForeignError(
            f"{file} holds no autoencoder of this class, with {' or '.join(TELLTALES)}; its keys: {some}"
        )
    if len(prefixes) > 1:
        raise ForeignError(
            f"{file} holds several autoencoders, {', '.join(map(repr, sorted(prefixes)))}: save one alone"
        )
    (prefix,) = prefixes
    named = {str(key).removeprefix(prefix): array for key, array in content.items() if str(key).startswith(prefix)}
    arrays = {key: array for key, array in named.items() if key.startswith(PARTS) and isinstance(array, np.ndarray)}
    if others := len(content) - len(arrays):
        log.info("%s: %d of its entries are of no part of the autoencoder", file, others)
    return arrays


def names_of(keys: Iterable[str], levels: int) -> Callable[[Path], str]:
    """Makes the function from our path of a parameter to its key, under the names that these keys have."""
    keys = list(keys)
    old = any(re.search(r"\.attentions\.\d+\.(query|key|value|proj_attn)\.", key) for key in keys)
    ldm = any(re.match(r"(encoder\.down|decoder\.up|(en|de)coder\.mid)\.", key) for key in keys)

    def key_of(path: Path) -> str:
        *modules, leaf = path
        parts = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
        key = ".".join([*parts, "bias" if leaf == "bias" else "weight"])
        if ldm:  # it counts the decoder's levels from the image as well
            key = re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", key)
        for name, theirs in LATENT_DIFFUSION if ldm else OLD if old else ():
            key = re.sub(name, theirs, key)
        return key

    return key_of


def read_statistics(file: FilePath) -> tuple[Any, Any]:
    """Reads the mean and the std of each channel of latents. Returns: scale 1/std, and shift = mean."""
    try:
        content = read_torch(file)
    except (ValueError, OSError) as error:
        raise ForeignError(str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), np.ndarray) for name in ("mean", "std")):
        raise ForeignError(f"{file} holds no statistics of latents: it has no tensors mean and std")
    mean, std = (np.asarray(content[name], np.float64).ravel() for name in ("mean", "std"))
    if not (std > 0).all():
        raise ForeignError(f"{file}: std must be above 0 in each channel, got {std.min():g}")
    return (1 / std).tolist(), mean.tolist()


def _per_channel(name: str, stated: Any, known: Any, channels: int) -> tuple[float, ...] | None:
    """Gives a number for each channel: the stated ones, else those that are known."""
    value = known if stated is None else stated
    if value is None:
        return None
    numbers = np.atleast_1d(np.asarray(value, np.float64)).ravel()
    numbers = np.repeat(numbers, channels) if len(numbers) == 1 else numbers
    if len(numbers) != channels or not np.isfinite(numbers).all() or (name == "scale" and (numbers <= 0).any()):
        above = " above 0" if name == "scale" else ""
        raise ForeignError(
            f"{name} must be one finite number{above} or one for each of {channels} channels, got {value}"
        )
    return tuple(numbers.tolist())
