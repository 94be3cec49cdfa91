"""NVIDIA's released networks, read from their state dicts: EDM's DDPM++, NCSN++ and ADM (2022), and EDM2's (2024)."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from cmjax.interop.keys import (
    Arrays,
    Foreign,
    ForeignError,
    FromKeys,
    Path,
    UndeterminedError,
    assemble,
    from_torch,
    head_width,
    multiples,
    width,
)
from cmjax.nets.adm import ADM
from cmjax.nets.edm2 import EDM2
from cmjax.nets.unet import UNet

LICENCE = "Creative Commons BY-NC-SA 4.0 (NVIDIA): non-commercial use alone"

EDM_LAYERS = {"norm_0": "norm0", "norm_1": "norm1", "conv_0": "conv0", "conv_1": "conv1", "shortcut": "skip"}
EDM2_LAYERS = {
    "conv_0": "conv_res0",
    "conv_1": "conv_res1",
    "affine": "emb_linear",
    "shortcut": "conv_skip",
    "qkv": "attn_qkv",
    "proj": "attn_proj",
}
CONSTANTS = {"frequencies": "freqs", "phases": "phases"}


def read_edm(state_dict: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of an EDM state dict, its fields read from the keys and shapes.

    Args:   state_dict: key -> array, with or without the prefix `model.`.
            overrides: `head_channels` of ADM, by default 64; `resample_filter` where the file has no filter.
    Raises: ForeignError.
    """
    arrays = {key.removeprefix("model."): value for key, value in state_dict.items()}
    # Resampling filters are buffers that follow from the network's fields.
    filters = [value for key, value in arrays.items() if key.endswith("resample_filter")]
    arrays = {key: value for key, value in arrays.items() if not key.endswith("resample_filter")}
    sizes = _sizes(arrays)
    if not sizes:
        raise ForeignError("the file has no keys like enc.32x32_conv.weight: it is no network of EDM")
    channels = width(arrays, "map_layer1.weight") // 4
    fields, widths = _levels(arrays, sizes, "conv1", "qkv", channels)
    for name, key in (("num_classes", "map_label.weight"), ("augment_dim", "map_augment.weight")):
        fields[name] = width(arrays, key, 1) if key in arrays else 0
    head, out_key, module = 0, "out_conv.weight", ADM
    if out_key in arrays:
        head = fields["head_channels"] = head_width(overrides, widths)
    else:
        out_key, module = f"dec.{sizes[0]}x{sizes[0]}_aux_conv.weight", UNet
        fields |= _song_fields(arrays, channels, filters, overrides)
    shape = (sizes[0], sizes[0], width(arrays, f"enc.{sizes[0]}x{sizes[0]}_conv.weight", 1))
    if width(arrays, out_key) != shape[2]:
        fields["out_channels"] = width(arrays, out_key)
    network = module(**fields)
    params = assemble(arrays, network, shape, lambda path: _source(_edm_key(path, sizes), head))
    return Foreign(network, params, shape, "denoiser", LICENCE)


def read_edm2(state_dict: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of an EDM2 state dict, its fields read from the keys and shapes.

    Args:   state_dict: key -> array, keys `unet.*` and `logvar_*`; a U-Net's own keys will do.
            overrides: what the file leaves open: `head_channels`, 64 by default, and `resample_filter`, (1, 1).
    Raises: ForeignError listing the keys that are missing, left over, or of another shape than the network's.
    """
    arrays = {key.removeprefix("unet."): value for key, value in state_dict.items()}
    sizes = _sizes(arrays)
    if not sizes or "emb_fourier.freqs" not in arrays:
        raise ForeignError("the file has no keys like enc.64x64_conv.weight and emb_fourier.freqs: it is not EDM2's")
    noise, embedding = width(arrays, "emb_noise.weight", 1), width(arrays, "emb_noise.weight")
    widths = [width(arrays, f"enc.{size}x{size}_block0.conv_res0.weight") for size in sizes]
    # No array shows `channels`: of all fields that give these widths, those with the largest one are taken.
    channels = math.gcd(*widths, noise, embedding)
    fields, attending = _levels(arrays, sizes, "conv_res0", "attn_qkv", channels)
    # The first convolution takes a constant channel beside the image's, which the module counts itself.
    shape = (sizes[0], sizes[0], width(arrays, f"enc.{sizes[0]}x{sizes[0]}_conv.weight", 1) - 1)
    out_channels, head = width(arrays, "out_conv.weight"), head_width(overrides, attending)
    network = EDM2(
        **fields,
        head_channels=head,
        resample_filter=tuple(overrides.get("resample_filter", (1, 1))),
        noise_channel_mult=0 if noise == widths[0] else noise // channels,
        embedding_channel_mult=0 if embedding == max(widths) else embedding // channels,
        num_classes=width(arrays, "emb_label.weight", 1) if "emb_label.weight" in arrays else 0,
        out_channels=out_channels if out_channels != shape[2] else None,
        weight_head=width(arrays, "logvar_linear.weight", 1) if "logvar_linear.weight" in arrays else 0,
    )
    params = assemble(arrays, network, shape, lambda path: _source(_edm2_key(path, sizes), head))
    return Foreign(network, params, shape, "denoiser", LICENCE)


def _sizes(arrays: Iterable[str]) -> list[int]:
    """Lists the resolutions of the levels, largest first."""
    return sorted({int(m[1]) for key in arrays if (m := re.match(r"enc\.(\d+)x\1_", key))}, reverse=True)


def _levels(
    arrays: Arrays, sizes: list[int], conv: str, qkv: str, channels: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Reads the fields of the levels, and the widths at which there is attention, that of the deepest level last."""
    widths = [width(arrays, f"enc.{size}x{size}_block0.{conv}.weight") for size in sizes]
    attended = tuple(size for size in sizes if f"enc.{size}x{size}_block0.{qkv}.weight" in arrays)
    fields = {
        "channels": channels,
        "channel_mult": multiples(widths, channels),
        "blocks": len({m[0] for key in arrays if (m := re.match(rf"enc\.{sizes[0]}x{sizes[0]}_block\d+\.", key))}),
        "attention_resolutions": attended,
    }
    # The middle of the network attends at the deepest level's width, whatever its level does.
    return fields, (*(w for size, w in zip(sizes, widths, strict=True) if size in attended), widths[-1])


def _song_fields(arrays: Arrays, channels: int, filters: list, overrides: Mapping[str, Any]) -> dict[str, Any]:
    def has(part: str) -> bool:
        return any(part in key for key in arrays)

    levels_with_images = sum(bool(re.match(r"dec\.\d+x\d+_aux_conv\.weight", key)) for key in arrays)
    taps = overrides.get("resample_filter")
    if taps is None and filters:
        # a filter is the outer product of its taps: any row is proportional to them
        first_row = np.asarray(filters[0], np.float64).reshape(np.shape(filters[0])[-2:])[0]
        taps = tuple(int(tap) for tap in np.rint(first_row / first_row[0]))
    if taps is None:
        raise UndeterminedError("--arch-resample_filter=1,1 (DDPM++) or 1,3,3,1 (NCSN++)")
    return {
        "embedding": "fourier" if "map_noise.freqs" in arrays else "positional",
        "noise_channel_mult": width(arrays, "map_layer0.weight", 1) // channels,
        "encoder": "residual" if has("aux_residual") else "skip" if has("aux_skip") else "standard",
        "decoder": "skip" if levels_with_images > 1 else "standard",
        "resample_filter": taps,
    }


def _source(key: str, head_channels: int) -> FromKeys:
    return FromKeys((key,), partial(_qkv, head_channels=head_channels) if "qkv." in key else from_torch)


def _qkv(array: np.ndarray, head_channels: int) -> np.ndarray:
    """Reorders the output channels, which are (head, channel, which of q, k, v) there and (which, head, channel)
    here."""
    ordered = array.reshape(-1, head_channels or len(array) // 3, 3, *array.shape[1:])  # 0 of the U-Nets of one head
    return from_torch(np.moveaxis(ordered, 2, 0).reshape(array.shape))


def _edm_key(path: Path, sizes: list[int]) -> str:
    *modules, leaf = path
    if leaf == "frequencies":
        return "map_noise.freqs"
    leaf = "bias" if leaf == "bias" else "weight"
    if modules[0] == "embedding":
        return f"map_{modules[1].replace('dense_', 'layer')}.{leaf}"
    if modules[0] in ("out_norm", "out_conv"):
        return f"{modules[0]}.{leaf}"
    block = _block(modules[0], sizes)
    # EDM calls these layers aux, but for its first convolution
    if modules[0] != "encoder_0_conv":
        block = re.sub(r"_(skip|residual|norm|conv)$", r"_aux_\1", block)
    inner = "".join(f"{EDM_LAYERS.get(layer, layer)}." for layer in modules[1:] if layer != "attention")
    if modules[1:] == ["attention", "norm"]:
        inner = "norm2."
    return f"{block}.{inner}{leaf}"


def _edm2_key(path: Path, sizes: list[int]) -> str:
    if path == ("out_gain",):
        return "out_gain"
    *modules, leaf = path
    if modules[0] == "weight_head":
        return f"logvar_{modules[1]}.{CONSTANTS.get(leaf, 'weight')}"
    if modules[0] in ("fourier", "noise", "label"):
        return f"emb_{modules[0]}.{CONSTANTS.get(leaf, 'weight')}"
    if modules[0] == "out_conv":
        return "out_conv.weight"
    layer = "".join(f".{EDM2_LAYERS[name]}" for name in modules[1:])
    return f"{_block(modules[0], sizes)}{layer}.{'emb_gain' if leaf == 'emb_gain' else 'weight'}"


def _block(name: str, sizes: list[int]) -> str:
    """Gives their name of a block of ours: encoder_1_block_0 is enc.32x32_block0."""
    half, level, name = name.split("_", 2)
    size = sizes[int(level)]
    return f"{half[:3]}.{size}x{size}_{re.sub(r'_(?=[0-9])', '', name)}"
