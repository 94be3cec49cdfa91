"""Reads and writes diffusers' UNet2DConditionModel: its config.json, the network that it describes, and its weights."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.fields import (
    COUNT,
    FLAG,
    POSITIVE,
    Field,
    all_of,
    checked_fields,
    is_count,
    is_number,
    one_of,
    one_or_all,
    optional,
    read_config,
)
from cmjax.interop.folders import part_weights
from cmjax.interop.keys import ForeignError, FromKeys, Path, filled, from_torch, write_part
from cmjax.nets.autoencoder import ACTIVATIONS
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.system.files import to_path

CLASS = "UNet2DConditionModel"
BLOCKS = {"down": ("DownBlock2D", "CrossAttnDownBlock2D"), "up": ("UpBlock2D", "CrossAttnUpBlock2D")}
"""Types of levels, without and with transformers."""
SIZES = 6
"""The number of sizes that SDXL's network takes."""
_PLAIN, _CROSS = BLOCKS["down"], BLOCKS["up"]
FIELDS: dict[str, Field] = {
    "in_channels": (4, *COUNT),
    "out_channels": (4, *COUNT),
    "block_out_channels": ([320, 640, 1280, 1280], all_of(is_count), "a list of widths"),
    "layers_per_block": (2, one_or_all(is_count), "a whole number above 0, or one of each level"),
    "down_block_types": ([_PLAIN[1]] * 3 + [_PLAIN[0]], all_of(_PLAIN.__contains__), f"of {' and '.join(_PLAIN)}"),
    "up_block_types": ([_CROSS[0]] + [_CROSS[1]] * 3, all_of(_CROSS.__contains__), f"of {' and '.join(_CROSS)}"),
    "attention_head_dim": (8, one_or_all(is_count), "the number of heads, or one of each level"),
    "num_attention_heads": (None, optional(one_or_all(is_count)), "null, the number of heads, or one of each level"),
    "transformer_layers_per_block": (1, one_or_all(is_count), "a whole number above 0, or one of each level"),
    "cross_attention_dim": (1280, *COUNT),
    "norm_num_groups": (32, *COUNT),
    "norm_eps": (1e-5, *POSITIVE),
    "act_fn": one_of("silu", ACTIVATIONS),
    "downsample_padding": (1, lambda value: value in (0, 1), "0 or 1"),
    "flip_sin_to_cos": (True, *FLAG),
    "freq_shift": (0, is_number, "a number"),
    "use_linear_projection": (False, *FLAG),
    "time_embedding_dim": (None, optional(is_count), "null or a width"),
    "time_cond_proj_dim": (None, optional(is_count), "null or a width"),
    "addition_embed_type": (None, (None, "text_time").__contains__, "null or text_time"),
    "addition_time_embed_dim": (None, optional(is_count), "null or a width"),
    "projection_class_embeddings_input_dim": (None, optional(is_count), "null or a width"),
}
FIXED = {
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""Fields of UNet2DConditionModel -> their value in `ConditionalUNet`; with others it is another network."""


def load_unet(folder: FilePath, **fields: Any) -> tuple[ConditionalUNet, Any]:
    """Reads a U-Net from its folder, config.json and weights, as data alone. Returns: the module and its parameters.

    Args:   fields: of the module, such as `dtype`, `remat` and `attention`.
    Raises: ForeignError naming the class where it is another one, fields with a wrong value, or keys that do not fit.
    """
    module: Any = unet_module(read_config(folder / "config.json"), folder / "config.json", **fields)
    file, arrays = part_weights(folder)
    try:
        return module, filled(arrays, unet_shapes(module), lambda path: FromKeys((unet_key(path),), from_torch))
    except ForeignError as error:
        raise ForeignError(f"{file}: {error}") from error


def write_unet(folder: str | FilePath, module: ConditionalUNet, params: Any, *, sample_size: int = 64) -> None:
    """Writes a folder that diffusers' UNet2DConditionModel and `load_unet` read: config.json and float32 weights.

    Args:   sample_size: height and width of latents that the network was trained with.
    """
    arrays = {}
    for path, value in flatten_dict(params).items():
        array = np.asarray(value, np.float32)
        arrays[unet_key(path)] = unet_to_torch(layer_of(path[:-1]), array, linear=module.linear_projection)
    write_part(to_path(folder), unet_config(module, sample_size), arrays)


def unet_config(module: ConditionalUNet, sample_size: int) -> dict[str, Any]:
    """Makes the config.json of a network, as diffusers reads it."""

    def short(values: tuple[int, ...]) -> int | list[int]:
        return values[0] if len(set(values)) == 1 else list(values)

    return {
        "_class_name": CLASS,
        **FIXED,
        "sample_size": sample_size,
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "block_out_channels": list(module.widths),
        "layers_per_block": short(module.blocks),
        "down_block_types": [BLOCKS["down"][attends] for attends in module.attends],
        "up_block_types": [BLOCKS["up"][attends] for attends in reversed(module.attends_up)],
        "attention_head_dim": short(module.heads),
        "num_attention_heads": None,
        "transformer_layers_per_block": short(module.transformers),
        "cross_attention_dim": module.context_width,
        "norm_num_groups": module.groups,
        "norm_eps": module.eps,
        "act_fn": module.activation,
        "downsample_padding": module.padding,
        "flip_sin_to_cos": module.cosines_first,
        "freq_shift": int(module.shift) if module.shift == int(module.shift) else module.shift,
        "use_linear_projection": module.linear_projection,
        "time_embedding_dim": module.embedding_width or None,
        "time_cond_proj_dim": module.guidance_width or None,
        "addition_embed_type": "text_time" if module.sizes else None,
        "addition_time_embed_dim": module.size_width or None,
        "projection_class_embeddings_input_dim": module.pooled_width + module.sizes * module.size_width or None,
    }


def unet_module(config: Mapping[str, Any], where: Any, **others: Any) -> ConditionalUNet:
    """Makes the network that a config.json describes. others: further fields of the module. Raises: ForeignError."""
    if config.get("_class_name") != CLASS:
        raise ForeignError(f"{where} is of the class {config.get('_class_name')}; {CLASS} is the one that can be read")
    if odd := [name for name, value in FIXED.items() if config.get(name, value) != value]:
        raise ForeignError(f"{where}: {'; '.join(f'{n}={config[n]!r} is not read, {FIXED[n]!r} is' for n in odd)}")
    fields = checked_fields(config, FIELDS, where)
    levels = len(fields["block_out_channels"])
    heads = "attention_head_dim" if fields["num_attention_heads"] is None else "num_attention_heads"
    blocks, transformers = "layers_per_block", "transformer_layers_per_block"
    per_level = {name: _per_level(fields[name], levels) for name in (blocks, transformers, heads)}
    per_level |= {name: fields[name] for name in ("down_block_types", "up_block_types")}
    lengths = {name: len(values) for name, values in per_level.items()}
    problems = [f"{name} has {n} levels, block_out_channels {levels}" for name, n in lengths.items() if n != levels]
    if odd := [width for width in fields["block_out_channels"] if width % fields["norm_num_groups"]]:
        problems.append(f"norm_num_groups={fields['norm_num_groups']} does not divide block_out_channels of {odd[0]}")
    added, problem = _added_inputs(fields)
    if problems := problems + problem:
        raise ForeignError(f"{where}: {'; '.join(problems)}")
    return ConditionalUNet(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        widths=tuple(fields["block_out_channels"]),
        blocks=per_level[blocks],
        transformers=per_level[transformers],
        attends=tuple(kind == BLOCKS["down"][1] for kind in fields["down_block_types"]),
        attends_up=tuple(kind == BLOCKS["up"][1] for kind in reversed(fields["up_block_types"])),
        heads=per_level[heads],
        context_width=fields["cross_attention_dim"],
        groups=fields["norm_num_groups"],
        eps=float(fields["norm_eps"]),
        activation=fields["act_fn"],
        embedding_width=fields["time_embedding_dim"] or 0,
        guidance_width=fields["time_cond_proj_dim"] or 0,
        cosines_first=fields["flip_sin_to_cos"],
        shift=float(fields["freq_shift"]),
        padding=fields["downsample_padding"],
        linear_projection=fields["use_linear_projection"],
        **added,
        **others,
    )


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _added_inputs(fields: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Reads the module's fields for SDXL's pooled prompts and sizes; lists what is wrong with those of the config."""
    if fields["addition_embed_type"] is None:
        return {}, []
    width, total = fields["addition_time_embed_dim"], fields["projection_class_embeddings_input_dim"]
    if width is None or total is None or total <= SIZES * width:
        more = f"must be more than {SIZES} times addition_time_embed_dim={width}"
        return {}, [f"projection_class_embeddings_input_dim={total} {more}"]
    return {"sizes": SIZES, "size_width": width, "pooled_width": total - SIZES * width}, []


@lru_cache(maxsize=8)
def unet_shapes(module: Any) -> Mapping[Path, Any]:
    """Returns the shapes of a `ConditionalUNet`'s parameters by path. Nothing is computed."""
    widths = {"guidance_embedding": module.guidance_width, "pooled": module.pooled_width, "sizes": module.sizes}
    inputs = {name: _abstract(1, width) for name, width in widths.items() if width}
    side = 2 ** (len(module.widths) - 1)
    x, context = _abstract(1, side, side, module.in_channels), _abstract(1, 1, module.context_width)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, _abstract(1), context=context, **inputs)
    return dict(flatten_dict(shapes["params"]))


def _abstract(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def unet_key(path: Path) -> str:
    """Gives the key of a parameter by our path."""
    return f"{layer_of(path[:-1])}.{'bias' if path[-1] == 'bias' else 'weight'}"


def layer_of(modules: Path) -> str:
    """Gives the name of a layer by our path, as down_blocks.0.resnets.1.conv1."""
    names = (name if name.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", name) for name in modules)
    return ".".join(names).replace("net_0_proj", "net.0.proj")


def unet_to_torch(layer: str, array: np.ndarray, *, linear: bool) -> np.ndarray:
    """Puts the axes of a weight in PyTorch's order. linear: whether transformers begin and end with matrices."""
    if array.ndim != 2:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
    matrix = np.ascontiguousarray(array.T)
    is_conv = layer.endswith("conv_shortcut") or (not linear and re.search(r"attentions\.\d+\.proj_(in|out)$", layer))
    return matrix[:, :, None, None] if is_conv else matrix
