"""EDM2's released networks (NVIDIA, 2024), read from their state dicts."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cmjax.interop.keys import (
    Arrays,
    Foreign,
    ForeignError,
    Path,
    Source,
    assemble,
    from_torch,
    head_width,
    multiples,
    width,
)
from cmjax.nets.edm2 import EDM2

LICENCE = "Creative Commons BY-NC-SA 4.0 (NVIDIA): non-commercial use alone"

LAYERS = {
    "conv_0": "conv_res0.weight",
    "conv_1": "conv_res1.weight",
    "affine": "emb_linear.weight",
    "shortcut": "conv_skip.weight",
    "qkv": "attn_qkv.weight",
    "proj": "attn_proj.weight",
}
CONSTANTS = {"frequencies": "freqs", "phases": "phases"}


def read_edm2(state_dict: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of an EDM2 state dict, its fields read from the keys and shapes.

    Args:   state_dict: key -> array, keys `unet.*` and `logvar_*`; a U-Net's own keys will do.
            overrides: what the file leaves open: `head_channels`, 64 by default, and `resample_filter`, (1, 1).
    Raises: ForeignError.
    """
    stated = {name: overrides[name] for name in ("head_channels", "resample_filter") if name in overrides}
    network, shape = edm2_from_keys(state_dict, **stated)
    return Foreign(network, params_from_edm2(state_dict, network, shape), shape, "denoiser", LICENCE)


def edm2_from_keys(
    state_dict: Arrays, *, resample_filter: tuple[int, ...] = (1, 1), **overrides: int
) -> tuple[EDM2, tuple[int, int, int]]:
    """The module that a state dict is of, and the shape (h, w, c) of its samples.

    Args: overrides: `head_channels`, by default 64. Raises: ForeignError.
    """
    arrays = _unprefixed(state_dict)
    sizes = _sizes(arrays)
    widths = [width(arrays, f"enc.{size}x{size}_block0.conv_res0.weight") for size in sizes]
    noise, embedding = width(arrays, "emb_noise.weight", 1), width(arrays, "emb_noise.weight")
    channels = math.gcd(*widths, noise, embedding)
    mult = multiples(widths, channels)
    # The module counts the constant channel itself.
    image_channels = width(arrays, f"enc.{sizes[0]}x{sizes[0]}_conv.weight", 1) - 1
    out_channels = width(arrays, "out_conv.weight")
    attended = tuple(size for size in sizes if f"enc.{size}x{size}_block0.attn_qkv.weight" in arrays)
    attending = [width for size, width in zip(sizes, widths, strict=True) if size in attended]
    network = EDM2(
        channels=channels,
        channel_mult=mult,
        blocks=len({m[0] for key in arrays if (m := re.match(rf"enc\.{sizes[0]}x{sizes[0]}_block\d+\.", key))}),
        attention_resolutions=attended,
        head_channels=head_width(overrides, (*attending, widths[-1])),
        resample_filter=tuple(resample_filter),
        noise_channel_mult=0 if noise == widths[0] else noise // channels,
        embedding_channel_mult=0 if embedding == max(widths) else embedding // channels,
        num_classes=width(arrays, "emb_label.weight", 1) if "emb_label.weight" in arrays else 0,
        out_channels=out_channels if out_channels != image_channels else None,
        weight_head=width(arrays, "logvar_linear.weight", 1) if "logvar_linear.weight" in arrays else 0,
    )
    return network, (sizes[0], sizes[0], image_channels)


def params_from_edm2(state_dict: Arrays, network: EDM2, shape: tuple[int, int, int]) -> Any:
    """The parameters of `network` for samples of `shape` (h, w, c), every key accounted for.

    Raises: ForeignError listing the keys that are missing, left over, or of another shape than the network's.
    """
    arrays = _unprefixed(state_dict)
    sizes = _sizes(arrays)
    return assemble(arrays, network, shape, lambda path: _source(path, sizes, network.head_channels))


def _unprefixed(state_dict: Arrays) -> Arrays:
    return {key.removeprefix("unet."): value for key, value in state_dict.items()}


def _sizes(arrays: Arrays) -> list[int]:
    """The resolutions of the levels, largest first."""
    sizes = sorted({int(m[1]) for key in arrays if (m := re.match(r"enc\.(\d+)x\1_", key))}, reverse=True)
    if not sizes or "emb_fourier.freqs" not in arrays:
        raise ForeignError("the file has no keys like enc.64x64_conv.weight and emb_fourier.freqs: it is not EDM2's")
    return sizes


def _source(path: Path, sizes: list[int], head_channels: int) -> Source:
    key = _edm2_key(path, sizes)
    return Source((key,), (lambda array: _qkv(array, head_channels)) if key.endswith("qkv.weight") else from_torch)


def _qkv(array: np.ndarray, head_channels: int) -> np.ndarray:
    """The output channels are (head, channel, which of q, k, v) there and (which, head, channel) here."""
    ordered = array.reshape(-1, head_channels, 3, *array.shape[1:])
    return from_torch(np.moveaxis(ordered, 2, 0).reshape(array.shape))


def _edm2_key(path: Path, sizes: list[int]) -> str:
    """Our path -> EDM2's key. `sizes` are the resolutions of the levels, largest first."""
    if path == ("out_gain",):
        return "out_gain"
    *modules, leaf = path
    if modules[0] == "weight_head":
        return f"logvar_{modules[1]}.{CONSTANTS.get(leaf, 'weight')}"
    if modules[0] in ("fourier", "noise", "label"):
        return f"emb_{modules[0]}.{CONSTANTS.get(leaf, 'weight')}"
    if modules[0] == "out_conv":
        return "out_conv.weight"
    half, level, name = modules[0].split("_", 2)
    size = sizes[int(level)]
    block = f"{half[:3]}.{size}x{size}_{re.sub(r'_(?=[0-9])', '', name)}"
    if len(modules) > 1:
        return f"{block}.{LAYERS[modules[1]]}"
    return f"{block}.{'emb_gain' if leaf == 'emb_gain' else 'weight'}"
