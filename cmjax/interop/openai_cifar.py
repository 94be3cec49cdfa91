"""OpenAI's consistency models of CIFAR-10 in JAX (2023): NCSN++ as its Flax checkpoints hold it."""

import re
from collections.abc import Mapping
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
    multiples,
    width,
)
from cmjax.nets.unet import UNet

LICENCE = "MIT (OpenAI, consistency_models_cifar10)"

BLOCK, ATTENTION = "ResnetBlockBigGANpp", "AttnBlockpp"
BLOCK_LAYERS = {
    "norm_0": "GroupNorm_0",
    "conv_0": "Conv_0",
    "affine": "Dense_0",
    "norm_1": "GroupNorm_1",
    "conv_1": "Conv_1",
    "shortcut": "Conv_2",
}


def read_openai_cifar(arrays: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of the parameters of NCSN++, by keys like "ResnetBlockBigGANpp_0/Conv_0/kernel".

    Its modules are numbered in the order of their call, and the file does not show at which size they attend.

    Args:   overrides: `image_size`, 32 by default; `attention_resolutions`, (16,) by default where the file has
            attention within its levels; `resample_filter`, (1, 3, 3, 1) by default.
    Raises: ForeignError.
    """
    if f"{BLOCK}_0/Conv_0/kernel" not in arrays:
        raise ForeignError(f"the file has no {BLOCK}_0/Conv_0/kernel: it is no NCSN++ of OpenAI's CIFAR-10 code")
    levels, blocks, widths = _depth(arrays)
    # Dense_0 takes the waves of the noise to 4·channels
    channels, size = width(arrays, "Dense_0/kernel", 1) // 4, overrides.get("image_size", 32)
    attended = _attended(arrays, blocks, size, levels, overrides.get("attention_resolutions"))
    network = UNet(
        channels=channels,
        channel_mult=multiples(widths, channels),
        blocks=blocks,
        attention_resolutions=attended,
        embedding="fourier" if "GaussianFourierProjection_0/W" in arrays else "positional",
        noise_channel_mult=width(arrays, "Dense_0/kernel") // channels,
        encoder="residual" if "Downsample_0/Conv2d_0/weight" in arrays else "standard",
        resample_filter=overrides.get("resample_filter", (1, 3, 3, 1)),
    )
    shape = (size, size, width(arrays, "Conv_0/kernel", 2))
    names = _names(levels, blocks, [level for level in range(levels) if size >> level in attended])
    params = assemble(arrays, network, shape, lambda path: _source(path, names))
    return Foreign(network, params, shape, None, LICENCE)


def _depth(arrays: Arrays) -> tuple[int, int, list[int]]:
    """Finds the levels, the blocks of a level, and the width of each level.

    A block that resamples has a 1×1 convolution in its shortcut although its width stays.
    """
    indices = sorted({int(m[1]) for key in arrays if (m := re.match(rf"{BLOCK}_(\d+)/", key))})
    kernels = [np.shape(arrays.get(f"{BLOCK}_{i}/Conv_0/kernel", np.zeros((3, 3, 0, 0)))) for i in indices]
    resampling = [i for i in indices if f"{BLOCK}_{i}/Conv_2/kernel" in arrays and kernels[i][2] == kernels[i][3]]
    levels = len(resampling) // 2 + 1
    # L·b blocks down, L·(b + 1) up, 2·(L − 1) that resample and 2 in the middle: 2·L·b + 3·L
    blocks, rest = divmod(len(indices) - 3 * levels, 2 * levels)
    if rest or blocks < 1 or indices != list(range(len(indices))):
        raise ForeignError(f"the file has {len(indices)} residual blocks for {levels} levels: it is no NCSN++")
    return levels, blocks, [kernels[level * (blocks + 1)][3] for level in range(levels)]


def _attended(arrays: Arrays, blocks: int, size: int, levels: int, stated: tuple[int, ...] | None) -> tuple[int, ...]:
    """Finds the heights of attention. A level that attends does so after each block of the encoder and once in the
    decoder; the middle attends once."""
    count = len({m[0] for key in arrays if (m := re.match(rf"{ATTENTION}_\d+/", key))})
    number, rest = divmod(count - 1, blocks + 1)
    resolutions = ((16,) if number == 1 else ()) if stated is None else stated
    within = [resolution for resolution in resolutions if resolution in [size >> level for level in range(levels)]]
    if rest or len(within) != number:
        raise UndeterminedError(
            f"the heights of its attention (the file has attention at {number} of its levels, not at "
            f"{','.join(map(str, resolutions)) or 'none'} for images of {size}) by --arch-attention_resolutions"
        )
    return tuple(within)


def _names(levels: int, blocks: int, attended: list[int]) -> dict[str, tuple[str, str]]:
    """Block of ours -> the names of its residual part and its attention, numbered in the order of their call."""
    order: list[tuple[str, bool]] = []
    for level in range(levels):
        order += [(f"encoder_{level}_block_{i}", level in attended) for i in range(blocks)]
        order += [(f"encoder_{level + 1}_down", False)] if level < levels - 1 else []
    order += [(f"decoder_{levels - 1}_in_0", True), (f"decoder_{levels - 1}_in_1", False)]
    for level in reversed(range(levels)):
        order += [(f"decoder_{level}_block_{i}", level in attended and i == blocks) for i in range(blocks + 1)]
        order += [(f"decoder_{level - 1}_up", False)] if level else []
    attentions = iter(range(len(order)))
    return {
        name: (f"{BLOCK}_{i}", f"{ATTENTION}_{next(attentions)}" if attends else "")
        for i, (name, attends) in enumerate(order)
    }


def _source(path: Path, names: Mapping[str, tuple[str, str]]) -> FromKeys:
    *modules, leaf = path
    if leaf == "frequencies":
        return FromKeys(("GaussianFourierProjection_0/W",), np.asarray)
    if modules[0] == "embedding":
        return FromKeys((f"{modules[1].replace('dense', 'Dense')}/{leaf}",), np.asarray)
    if modules[0] not in names:
        return FromKeys(
            (f"{_top(modules[0])}/{'weight' if _residual(modules[0]) and leaf == 'kernel' else leaf}",), np.asarray
        )
    block, attention = names[modules[0]]
    if modules[1] != "attention":
        return FromKeys((f"{block}/{BLOCK_LAYERS[modules[1]]}/{leaf}",), _without_1x1)
    if modules[2] == "norm":
        return FromKeys((f"{attention}/GroupNorm_0/{leaf}",), np.asarray)
    end = "b" if leaf == "bias" else "W"
    # NIN_0 to NIN_2 make q, k and v; NIN_3 is the projection after attention
    layers = range(3) if modules[2] == "qkv" else (3,)
    return FromKeys(tuple(f"{attention}/NIN_{i}/{end}" for i in layers), _side_by_side)


def _residual(name: str) -> bool:
    return name.endswith("_residual")


def _top(name: str) -> str:
    if _residual(name):
        return f"Downsample_{int(name.split('_')[1]) - 1}/Conv2d_0"
    return {"encoder_0_conv": "Conv_0", "decoder_0_norm": "GroupNorm_0", "decoder_0_conv": "Conv_1"}[name]


def _without_1x1(array: np.ndarray) -> np.ndarray:
    return array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array


def _side_by_side(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)
