"""EDM's released networks (NVIDIA, 2022): DDPM++, NCSN++ and ADM, read from their state dicts."""

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
    UndeterminedError,
    assemble,
    from_torch,
    head_width,
    multiples,
    width,
)
from cmjax.nets.adm import ADM
from cmjax.nets.unet import UNet

LICENCE = "Creative Commons BY-NC-SA 4.0 (NVIDIA): non-commercial use alone"


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
    sizes = sorted({int(m[1]) for key in arrays if (m := re.match(r"enc\.(\d+)x\1_", key))}, reverse=True)
    if not sizes:
        raise ForeignError("the file has no keys like enc.32x32_conv.weight: it is no network of EDM")
    fields = _levels(arrays, sizes)
    for name, key in (("num_classes", "map_label.weight"), ("augment_dim", "map_augment.weight")):
        fields[name] = width(arrays, key, 1) if key in arrays else 0
    if "out_conv.weight" in arrays:
        out_key, module = "out_conv.weight", ADM
        attended = zip(sizes, fields["channel_mult"], strict=True)
        widths = [fields["channels"] * mult for size, mult in attended if size in fields["attention_resolutions"]]
        fields["head_channels"] = head_width(overrides, (*widths, fields["channels"] * fields["channel_mult"][-1]))
    else:
        out_key, module = f"dec.{sizes[0]}x{sizes[0]}_aux_conv.weight", UNet
        fields |= _song_fields(arrays, fields["channels"], filters, overrides)
    image_channels = width(arrays, f"enc.{sizes[0]}x{sizes[0]}_conv.weight", 1)
    if width(arrays, out_key) != image_channels:
        fields["out_channels"] = width(arrays, out_key)
    network, shape = module(**fields), (sizes[0], sizes[0], image_channels)
    heads = fields.get("head_channels", 0)
    params = assemble(arrays, network, shape, lambda path: _source(path, sizes, heads))
    return Foreign(network, params, shape, "denoiser", LICENCE)


def _levels(arrays: Arrays, sizes: list[int]) -> dict[str, Any]:
    """The fields that both families show in the same way."""
    channels = width(arrays, "map_layer1.weight") // 4
    blocks = len({m[0] for key in arrays if (m := re.match(rf"enc\.{sizes[0]}x{sizes[0]}_block\d+\.", key))})
    widths = [width(arrays, f"enc.{size}x{size}_block0.conv1.weight") for size in sizes]
    attended = tuple(size for size in sizes if f"enc.{size}x{size}_block0.qkv.weight" in arrays)
    return {
        "channels": channels,
        "channel_mult": multiples(widths, channels),
        "blocks": blocks,
        "attention_resolutions": attended,
    }


def _song_fields(arrays: Arrays, channels: int, filters: list, overrides: Mapping[str, Any]) -> dict[str, Any]:
    def has(part: str) -> bool:
        return any(part in key for key in arrays)

    encoder = "residual" if has("aux_residual") else "skip" if has("aux_skip") else "standard"
    levels_with_images = sum(bool(re.match(r"dec\.\d+x\d+_aux_conv\.weight", key)) for key in arrays)
    taps = overrides.get("resample_filter")
    if taps is None and filters:
        first_row = np.asarray(filters[0], np.float64).reshape(np.shape(filters[0])[-2:])[0]
        taps = tuple(int(tap) for tap in np.rint(first_row / first_row[0]))
    if taps is None:
        raise UndeterminedError("--arch-resample_filter=1,1 (DDPM++) or 1,3,3,1 (NCSN++)")
    return {
        "embedding": "fourier" if "map_noise.freqs" in arrays else "positional",
        "noise_channel_mult": width(arrays, "map_layer0.weight", 1) // channels,
        "encoder": encoder,
        "decoder": "skip" if levels_with_images > 1 else "standard",
        "resample_filter": taps,
    }


def _source(path: Path, sizes: list[int], head_channels: int) -> Source:
    key = _edm_key(path, sizes)
    return Source((key,), (lambda array: _qkv(array, head_channels)) if ".qkv." in key else from_torch)


def _qkv(array: np.ndarray, head_channels: int) -> np.ndarray:
    """The output channels are (head, channel, which of q, k, v) there and (which, head, channel) here."""
    channels = len(array) // 3
    heads = channels // head_channels if head_channels else 1
    ordered = array.reshape(heads, channels // heads, 3, *array.shape[1:])
    return from_torch(np.moveaxis(ordered, 2, 0).reshape(array.shape))


def _edm_key(path: Path, sizes: list[int]) -> str:
    """Our path -> EDM's key. `sizes` are the resolutions of the levels, largest first."""
    *modules, leaf = path
    if leaf == "frequencies":
        return "map_noise.freqs"
    leaf = "bias" if leaf == "bias" else "weight"
    if modules[0] == "embedding":
        return f"map_{modules[1].replace('dense_', 'layer')}.{leaf}"
    if modules[0] in ("out_norm", "out_conv"):
        return f"{modules[0]}.{leaf}"
    half, level, name = modules[0].split("_", 2)
    size = sizes[int(level)]
    first = half == "encoder" and name == "conv"
    if not first and name in ("skip", "residual", "norm", "conv"):
        name = f"aux_{name}"
    name = re.sub(r"(block|in)_(\d)", r"\1\2", name)
    inner = "".join(f"{EDM_LAYERS.get(layer, layer)}." for layer in modules[1:] if layer != "attention")
    if modules[1:] == ["attention", "norm"]:
        inner = "norm2."
    return f"{half[:3]}.{size}x{size}_{name}.{inner}{leaf}"


EDM_LAYERS = {"norm_0": "norm0", "norm_1": "norm1", "conv_0": "conv0", "conv_1": "conv1", "shortcut": "skip"}
