"""The config.json of diffusers' AutoencoderKL: its fields checked, the network that they describe, and the reverse."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.interop.fields import (
    COUNT,
    FLAG,
    Field,
    all_of,
    checked_fields,
    is_count,
    is_number,
    is_positive,
    one_of,
    optional,
)
from cmjax.interop.keys import Arrays, ForeignError
from cmjax.nets.autoencoder import ACTIVATIONS, AutoencoderKL
from cmjax.nets.latents import Autoencoder

CLASS = "AutoencoderKL"
BLOCKS = {"down": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), "up": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}
"""Types of levels, without and with attention."""
DTYPES = ("float32", "bfloat16", "float16")

Affine = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
"""Scale and shift of latents, a number for each channel; None where they are not known."""


FIELDS: dict[str, Field] = {
    "in_channels": (3, *COUNT),
    "out_channels": (3, *COUNT),
    "latent_channels": (4, *COUNT),
    "block_out_channels": ([64], all_of(is_count), "a list of widths"),
    "stem": (0, lambda value: value == 0 or is_count(value), "a width"),
    "layers_per_block": (1, *COUNT),
    "norm_num_groups": (32, *COUNT),
    "act_fn": one_of("silu", ACTIVATIONS),
    "down_block_types": (None, optional(all_of(BLOCKS["down"].__contains__)), f"of {' and '.join(BLOCKS['down'])}"),
    "up_block_types": (None, optional(all_of(BLOCKS["up"].__contains__)), f"of {' and '.join(BLOCKS['up'])}"),
    "mid_block_add_attention": (True, *FLAG),
    "use_quant_conv": (True, *FLAG),
    "use_post_quant_conv": (True, *FLAG),
    "force_upcast": (True, *FLAG),
    "scaling_factor": (0.18215, optional(is_positive), "a number above 0"),
    "shift_factor": (None, optional(is_number), "null or a number"),
    "latents_mean": (None, optional(all_of(is_number)), "null or a list of numbers"),
    "latents_std": (None, optional(all_of(is_positive)), "null or a list of numbers above 0"),
    "sample_size": (32, lambda value: is_count(value) or all_of(is_count)(value), "a size in pixels"),
}
"""Field -> diffusers' default, a check of the value, and what it must be: the fields that the network depends on.

Two are of files without a config alone: the width of the first convolution, `stem`, which is the first level's in
diffusers, and None for a scaling factor that is not known.
"""


def read_fields(config: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """Reads the values of `FIELDS`, defaults where the config has none.

    Raises: ForeignError naming the class where it is another one, or all fields with a wrong value.
    """
    if config.get("_class_name") != CLASS:
        raise ForeignError(f"{where} is of the class {config.get('_class_name')}; {CLASS} is the one that can be read")
    fields = checked_fields(config, FIELDS, where)
    if problems := _contradictions(fields):
        raise ForeignError(f"{where}: {'; '.join(problems)}")
    return fields


def _contradictions(fields: Mapping[str, Any]) -> list[str]:
    """Lists the fields that are right alone and contradict each other."""
    widths, groups, channels = fields["block_out_channels"], fields["norm_num_groups"], fields["latent_channels"]
    problems = []
    if any(each % groups for each in widths):
        problems.append(f"norm_num_groups={groups} does not divide block_out_channels={widths}")
    for name in ("down_block_types", "up_block_types"):
        if fields[name] is not None and len(fields[name]) != len(widths):
            problems.append(f"{name} has {len(fields[name])} levels, block_out_channels {len(widths)}")
    mean, std = fields["latents_mean"], fields["latents_std"]
    if (mean is None) != (std is None):
        problems.append("latents_mean and latents_std must be given together")
    for name in ("latents_mean", "latents_std"):
        if fields[name] is not None and len(fields[name]) != channels:
            problems.append(f"{name} has {len(fields[name])} numbers for latent_channels={channels}")
    if mean is not None and fields["shift_factor"] is not None:
        problems.append("shift_factor and latents_mean exclude each other")
    return problems


def network(fields: Mapping[str, Any], dtype: Any) -> AutoencoderKL:
    """Returns the network that the fields describe.

    Raises: ForeignError where it cannot be computed in the dtype.
    """
    if (name := getattr(dtype, "__name__", str(dtype))) not in DTYPES:
        raise ForeignError(f"dtype={name} must be one of {', '.join(DTYPES)}")
    if name == "float16" and fields["force_upcast"]:
        raise ForeignError("dtype=float16: this autoencoder overflows in it (force_upcast); choose bfloat16 or float32")
    widths = tuple(fields["block_out_channels"])
    down, up = (fields[f"{way}_block_types"] or [kinds[0]] * len(widths) for way, kinds in BLOCKS.items())
    return AutoencoderKL(
        channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        latent_channels=fields["latent_channels"],
        widths=widths,
        stem=fields["stem"],
        blocks=fields["layers_per_block"],
        groups=fields["norm_num_groups"],
        activation=fields["act_fn"],
        encoder_attention=tuple(level for level, kind in enumerate(down) if kind == BLOCKS["down"][1]),
        decoder_attention=tuple(level for level, kind in enumerate(reversed(up)) if kind == BLOCKS["up"][1]),
        mid_attention=fields["mid_block_add_attention"],
        moments_conv=fields["use_quant_conv"],
        latents_conv=fields["use_post_quant_conv"],
        dtype=jnp.dtype(name),
    )


def latents_affine(fields: Mapping[str, Any]) -> Affine:
    """Returns scale and shift as diffusers' pipelines use the fields: (z − shift)·scaling_factor, or
    (z − mean)·scaling_factor/std where these are there."""
    factor, channels = fields["scaling_factor"], fields["latent_channels"]
    if factor is None:
        return None, None
    stds = fields["latents_std"] or [1.0] * channels
    shifts = fields["latents_mean"] or [fields["shift_factor"] or 0.0] * channels
    return tuple(factor / std for std in stds), tuple(map(float, shifts))


def config_from_shapes(arrays: Arrays, where: Any) -> dict[str, Any]:
    """Reads off a network's config from its arrays: SiLU and groups of 32, as in every release without a config.

    Raises: ForeignError where there is nothing of a level of the encoder.
    """
    name = r"encoder\.(?:down_blocks|down)\.(\d+)\.(?:resnets|block)\.\d+\.conv[12]\.(?:weight|bias)"
    widths = {int(found[1]): np.shape(array)[0] for key, array in arrays.items() if (found := re.fullmatch(name, key))}
    levels = range(1 + max(widths, default=0))
    if absent := [str(level) for level in levels if level not in widths]:
        raise ForeignError(f"{where} has no weights of the encoder's level {', '.join(absent)}")
    attended = {
        "down": _numbers(arrays, r"encoder\.(?:down_blocks|down)\.(\d+)\.(?:attentions|attn)\."),
        "up": _numbers(arrays, r"decoder\.up_blocks\.(\d+)\.attentions\.")
        | {levels[-1] - level for level in _numbers(arrays, r"decoder\.up\.(\d+)\.attn\.")},
    }

    def size(key: str, axis: int, otherwise: int) -> int:
        shape = np.shape(arrays.get(key, 0))
        return shape[axis] if len(shape) > axis else otherwise

    return {
        "_class_name": CLASS,
        "in_channels": size("encoder.conv_in.weight", 1, 3),
        "out_channels": size("decoder.conv_out.weight", 0, 3),
        "latent_channels": size("decoder.conv_in.weight", 1, size("encoder.conv_out.weight", 0, 8) // 2),
        "block_out_channels": [widths[level] for level in levels],
        "stem": 0 if (stem := size("encoder.conv_in.weight", 0, 0)) == widths[0] else stem,
        "layers_per_block": len(_numbers(arrays, r"encoder\.(?:down_blocks|down)\.\d+\.(?:resnets|block)\.(\d+)\.")),
        **{f"{way}_block_types": [kinds[level in attended[way]] for level in levels] for way, kinds in BLOCKS.items()},
        "mid_block_add_attention": any(re.match(r"(en|de)coder\.mid(_block)?\.att", key) for key in arrays),
        "use_quant_conv": any(key.startswith("quant_conv.") for key in arrays),
        "use_post_quant_conv": any(key.startswith("post_quant_conv.") for key in arrays),
        "scaling_factor": None,
        "sample_size": 256,
    }


def _numbers(arrays: Arrays, pattern: str) -> set[int]:
    """Finds the numbers in keys at the place of the pattern's group."""
    return {int(found[1]) for key in arrays if (found := re.match(pattern, key))}


def config_of(autoencoder: Autoencoder) -> dict[str, Any]:
    """Returns the config of an autoencoder, as diffusers reads it.

    Raises: ForeignError where its scale is not known, or diffusers has no such network.
    """
    module, scale, shift = autoencoder.module, autoencoder.scale, autoencoder.shift
    if module.stem not in (0, module.widths[0]):
        raise ForeignError(f"diffusers has no autoencoder whose first convolution has stem={module.stem} channels")
    if scale is None or shift is None:
        raise ForeignError("the autoencoder's scale is not known, which diffusers' config needs: load it with scale=…")
    per_channel = len(set(scale)) > 1 or len(set(shift)) > 1
    attended = {"down": module.encoder_attention, "up": [len(module.widths) - 1 - i for i in module.decoder_attention]}
    levels = range(len(module.widths))
    return {
        "_class_name": CLASS,
        "in_channels": module.channels,
        "out_channels": module.out_channels,
        "latent_channels": module.latent_channels,
        "block_out_channels": list(module.widths),
        "layers_per_block": module.blocks,
        "norm_num_groups": module.groups,
        "act_fn": module.activation,
        **{f"{way}_block_types": [kinds[level in attended[way]] for level in levels] for way, kinds in BLOCKS.items()},
        "mid_block_add_attention": module.mid_attention,
        "use_quant_conv": module.moments_conv,
        "use_post_quant_conv": module.latents_conv,
        "force_upcast": True,
        "scaling_factor": 1.0 if per_channel else scale[0],
        "shift_factor": None if per_channel else shift[0] or None,
        "latents_mean": list(shift) if per_channel else None,
        "latents_std": [1 / one for one in scale] if per_channel else None,
        "sample_size": autoencoder.sample_size,
    }
