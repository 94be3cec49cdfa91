"""OpenAI's consistency models and their teachers in PyTorch (2023): UNetModel, read from its state dict."""

import re
from collections.abc import Mapping
from typing import Any

from cmjax.interop.keys import (
    Arrays,
    BlockName,
    Foreign,
    ForeignError,
    FromKeys,
    Path,
    assemble,
    from_torch,
    head_width,
    multiples,
    width,
)
from cmjax.nets.adm import ADM, OPENAI

LICENCE = "MIT (OpenAI, consistency_models); see its model card for the data that the models were trained on"

BLOCK_LAYERS = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj": "proj_out",
}
DOWN = re.compile(r"input_blocks\.\d+\.0\.op\.")
"""The convolution between two levels, where no residual block resamples (resblock_updown=False)."""
TOP_LAYERS = {
    "encoder_0_conv": "input_blocks.0.0",
    "dense_0": "time_embed.0",
    "dense_1": "time_embed.2",
    "label": "label_emb",
    "out_norm": "out.0",
    "out_conv": "out.2",
}


def read_openai(state_dict: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of an OpenAI state dict, its fields read from the keys and shapes.

    The file shows neither the size of the images nor the heads of the attention.

    Args:   overrides: `image_size`, by default the size whose deepest features are 8×8, as all the released networks
            have; `head_channels`, by default 64 where that is possible.
    Raises: ForeignError.
    """
    levels, blocks = _depth(state_dict)
    size = overrides.get("image_size", 8 * 2 ** (levels - 1))
    channels = width(state_dict, "time_embed.0.weight", 1)
    # block 0 is the stem; a level has its blocks, and one more that halves
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [width(state_dict, f"{first}.0.out_layers.3.weight") for first in firsts]
    attended = [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state_dict]
    # twice the width: a scale beside the shift
    modulated = width(state_dict, f"{firsts[0]}.0.emb_layers.1.weight") // widths[0]
    image_channels, out_channels = width(state_dict, "input_blocks.0.0.weight", 1), width(state_dict, "out.2.weight")
    network = ADM(
        channels=channels,
        channel_mult=multiples(widths, channels),
        blocks=blocks,
        attention_resolutions=tuple(size >> level for level in attended),
        head_channels=head_width(overrides, (widths[-1], *(widths[level] for level in attended))),
        resample="conv" if any(DOWN.match(key) for key in state_dict) else "block",
        modulation="scale_shift" if modulated == 2 else "shift",
        num_classes=width(state_dict, "label_emb.weight") if "label_emb.weight" in state_dict else 0,
        out_channels=out_channels if out_channels != image_channels else None,
        **OPENAI,
    )
    shape = (size, size, image_channels)
    params = assemble(state_dict, network, shape, lambda path: _source(path, levels, blocks, attended))
    return Foreign(network, params, shape, None, LICENCE)


def _depth(arrays: Arrays) -> tuple[int, int]:
    """Finds the numbers of levels and of residual blocks in a level: an upsampling block ends each level but the
    largest."""
    if "input_blocks.0.0.weight" not in arrays:
        raise ForeignError("the file has no input_blocks.0.0.weight: it is no UNetModel of OpenAI")
    up = re.compile(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight")
    ups = [key for key in arrays if up.match(key)]
    count = len({m[1] for key in arrays if (m := re.match(r"output_blocks\.(\d+)\.", key))})
    levels = len(ups) + 1
    if not count or count % levels or count // levels < 2:
        raise ForeignError(f"the file has {count} output blocks for {levels} levels: it is no UNetModel of OpenAI")
    return levels, count // levels - 1


def _source(path: Path, levels: int, blocks: int, attended: list[int]) -> FromKeys:
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if modules[0] == "embedding":
        modules = modules[1:]
    if modules[0] in TOP_LAYERS:
        # An embedding's table is (class, channel), as our matrix.
        read = (lambda table: table) if modules[0] == "label" else from_torch
        return FromKeys((f"{TOP_LAYERS[modules[0]]}.{end}",), read)
    block, attention = _block(modules[0], levels, blocks, attended)
    if len(modules) == 1:  # a convolution between two levels
        return FromKeys((f"{block}.{'op' if '_down' in modules[0] else 'conv'}.{end}",), from_torch)
    prefix = attention if modules[1] == "attention" else block
    return FromKeys((f"{prefix}.{BLOCK_LAYERS[modules[-1]]}.{end}",), from_torch)


def _block(name: str, levels: int, blocks: int, attended: list[int]) -> tuple[str, str]:
    """Gives the prefixes of a block of ours: of its residual part and of its attention."""
    half, level, kind, index = BlockName.named(name)
    if half == "encoder":
        position = level * (blocks + 1) + (0 if kind == "down" else 1 + index)
        return f"input_blocks.{position}.0", f"input_blocks.{position}.1"
    if kind == "in":
        return f"middle_block.{2 * index}", "middle_block.1"
    above = (levels - 1 - level) * (blocks + 1)
    if kind == "up":
        # the block that doubles stands behind the attention, where its level has some
        return f"output_blocks.{above - 1}.{1 + ((level + 1) in attended)}", ""
    return f"output_blocks.{above + index}.0", f"output_blocks.{above + index}.1"
