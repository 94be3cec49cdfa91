"""Reads and writes ADM as the `unet` folder of a diffusers pipeline: UNet2DModel, for ConsistencyModelPipeline."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.fields import COUNT, Field, all_of, is_count, is_positive, optional, values_and_problems
from cmjax.interop.keys import (
    Arrays,
    BlockName,
    Foreign,
    ForeignError,
    FromKeys,
    Path,
    assemble,
    from_torch,
    multiples,
    refuse,
    write_part,
)
from cmjax.nets.adapter import as_net
from cmjax.nets.adm import ADM, OPENAI
from cmjax.system.files import to_json, write_atomically

LICENCE = "not named by the folder: see where it was downloaded; copies of OpenAI's models are MIT"

BLOCK_LAYERS = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "affine": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "proj": "to_out.0",
}
TOP_LAYERS = {
    "encoder_0_conv": "conv_in",
    "dense_0": "time_embedding.linear_1",
    "dense_1": "time_embedding.linear_2",
    "label": "class_embedding",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
FIXED = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "time_embedding_type": "positional",
    "upsample_type": "resnet",
    "downsample_type": "resnet",
    "add_attention": True,
}
"""Fields of UNet2DModel -> their value in ADM; with others it is another network."""

SCHEDULER = "CMStochasticIterativeScheduler"
LEVELS = {"sigma_data": "sigma_data", "t_min": "sigma_min", "t_max": "sigma_max", "rho": "rho"}
"""Our constant -> the scheduler's."""

MODULATIONS = {"scale_shift": "scale_shift", "default": "shift"}
SIDES = "a height and a width in pixels"


def _is_size(value: Any) -> bool:
    return is_count(value) or (all_of(is_count)(value) and len(value) == 2)


FIELDS: dict[str, Field] = {
    "block_out_channels": (None, all_of(is_count), "a list of widths"),
    "down_block_types": (None, all_of(lambda kind: isinstance(kind, str)), "a list of types"),
    "layers_per_block": (None, *COUNT),
    "in_channels": (None, *COUNT),
    "out_channels": (None, *COUNT),
    "attention_head_dim": (8, optional(is_count), f"null or {COUNT[1]}"),
    "norm_num_groups": (32, *COUNT),
    "num_class_embeds": (None, optional(is_count), f"null or {COUNT[1]}"),
    "sample_size": (None, optional(_is_size), SIDES),
    "resnet_time_scale_shift": ("default", tuple(MODULATIONS).__contains__, f"{' or '.join(MODULATIONS)}, as ADM's"),
}


def read_diffusers(config: Mapping[str, Any], arrays: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of a `unet` folder: its config.json and its weights by key.

    Raises: ForeignError naming all fields of the config with a wrong value, or that ask for another network than ADM.
    """
    fields, problems = values_and_problems(config, FIELDS)
    problems = _other_networks(config) + problems
    size: Any = overrides.get("image_size", fields["sample_size"])
    options = [] if size is not None else ["--arch-image_size=N, the height and width of the images"]
    if "image_size" in overrides and not _is_size(size):
        problems.append(f"image_size={size!r} must be {SIDES}")
    refuse([f"config.json: {'; '.join(problems)}"] if problems else (), options)
    sides: Any = (size, size) if is_count(size) else size
    height, width = sides
    widths, shape = fields["block_out_channels"], (height, width, fields["in_channels"])
    attended = [level for level, kind in enumerate(fields["down_block_types"]) if kind.startswith("Attn")]
    try:
        network = ADM(
            channels=widths[0],
            channel_mult=multiples(widths, widths[0]),
            blocks=fields["layers_per_block"],
            attention_resolutions=tuple(height >> level for level in attended),
            **_heads(overrides.get("head_channels", fields["attention_head_dim"])),
            modulation=MODULATIONS[fields["resnet_time_scale_shift"]],
            num_classes=fields["num_class_embeds"] or 0,
            out_channels=fields["out_channels"] if fields["out_channels"] != shape[-1] else None,
            **OPENAI | {"norm_groups": fields["norm_num_groups"]},
        )
    except (TypeError, ValueError) as error:
        raise ForeignError(f"config.json of UNet2DModel describes no network: {error}") from error
    params = assemble(arrays, network, shape, lambda path: _source(path, len(widths)))
    return Foreign(network, params, shape, None, LICENCE)


def _other_networks(config: Mapping[str, Any]) -> list[str]:
    """Lists the fields of the config that ask for another network than ADM."""
    types = [str(kind) for half in ("down", "up") for kind in config.get(f"{half}_block_types") or ()]
    others = [kind for kind in types if not kind.startswith(("Resnet", "Attn"))]
    problems = [f"blocks of the types {', '.join(others)} are no ADM's"] if others else []
    explicit = all("sampleBlock" in kind for kind in types)
    free = ("upsample_type", "downsample_type") if explicit else ()
    wrong = [name for name, value in FIXED.items() if config.get(name, value) != value and name not in free]
    return problems + [f"{name}={config[name]!r} must be {FIXED[name]!r}, as ADM's" for name in wrong]


def _heads(head_channels: int | None) -> dict[str, int]:
    """Gives ADM's fields of the heads. Without a width, diffusers has one head as wide as its level."""
    return {"heads": 1} if head_channels is None else {"head_channels": head_channels}


def read_scheduler(scheduler: Mapping[str, Any]) -> dict[str, float]:
    """Reads the noise levels of a consistency model's scheduler, under our names.

    Raises: ForeignError where the scheduler is another model's, or naming all levels that are no positive numbers.
    """
    if (name := scheduler.get("_class_name")) != SCHEDULER:
        predicts = f" with prediction_type={scheduler['prediction_type']!r}" if "prediction_type" in scheduler else ""
        raise ForeignError(
            f"scheduler_config.json: {name}{predicts}; of diffusers' pipelines consistency models ({SCHEDULER}) alone "
            "are read, and this network is neither one nor an EDM denoiser"
        )
    constants = {ours: scheduler[theirs] for ours, theirs in LEVELS.items() if theirs in scheduler}
    refuse(
        f"scheduler_config.json: {LEVELS[name]}={value!r} must be a positive number"
        for name, value in constants.items()
        if not is_positive(value)
    )
    return constants


def write_diffusers(
    folder: FilePath, network: Any, params: Any, shape: tuple[int, ...], constants: Mapping[str, float]
) -> None:
    """Writes a folder that diffusers' ConsistencyModelPipeline loads: the network and its scheduler.

    Args:   constants: sigma_data, t_min, t_max, rho. Raises: ForeignError where UNet2DModel has no such network.
    """
    unet_config, scheduler = _unet_config(network, shape), _scheduler_config(constants)
    arrays: dict[str, np.ndarray] = {}
    for path, value in flatten_dict(params).items():
        keys, _ = _source(path, len(network.channel_mult))
        arrays.update(zip(keys, _theirs(path, np.asarray(value)), strict=True))
    _check_reads_back(network, params, shape, unet_config, arrays)
    index = {
        "_class_name": "ConsistencyModelPipeline",
        "scheduler": ["diffusers", SCHEDULER],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_part(folder / "unet", unet_config, arrays)
    write_atomically(folder / "scheduler" / "scheduler_config.json", to_json(scheduler))
    write_atomically(folder / "model_index.json", to_json(index))


def _check_reads_back(network: ADM, params: Any, shape: tuple[int, ...], config: Any, arrays: Arrays) -> None:
    """Raises ForeignError where the written network, read again, does not give what this one gives."""
    back = read_diffusers(config, arrays, {})
    x, c_noise = jax.random.normal(jax.random.key(0), (1, *shape)), jnp.zeros(1)
    label = {"label": jnp.zeros(1, int)} if network.num_classes else {}
    pairs = ((network.clone(dtype=jnp.float32, attention="xla"), params), (back.module, back.params))
    ours, theirs = (jax.jit(as_net(module))(weights, x, c_noise, **label) for module, weights in pairs)
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max()):
        raise ForeignError("diffusers' UNet2DModel cannot hold this network: read again, it gives other images")


def _unet_config(network: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    if not isinstance(network, ADM):
        raise ForeignError(f"net.name: diffusers has no {type(network).__name__} network; only adm can be exported")
    widths = [network.channels * mult for mult in network.channel_mult]
    groups = {network.norm_groups or min(32, width // 4) for width in widths}
    modulation = {ours: theirs for theirs, ours in MODULATIONS.items()}
    needs = (
        ("channel_mult", network.channel_mult[0] == 1, "a first level of 1"),
        ("norm_groups", len(groups) == 1, "one number of groups in all levels"),
        ("heads", network.heads in (0, 1), "0, the number following from head_channels, or 1"),
        ("patch", network.patch == 1, "1"),
        ("resample", network.resample == "block", "block"),
        ("time_scale", network.time_scale == 1000, "1000, as its scheduler has"),
        ("modulation", network.modulation in modulation, f"one of {', '.join(modulation)}"),
        ("augment_dim", not network.augment_dim, "0"),
        ("two_times", not network.two_times, "False"),
        ("guided", not network.guided, "False"),
        ("guided_interval", not network.guided_interval, "False"),
        ("velocity_head", not network.velocity_head, "False"),
        ("weight_head", not network.weight_head, "0"),
    )
    problems = [f"net.{name}={getattr(network, name)!r}: diffusers' UNet2DModel needs {need}"
                for name, fits, need in needs if not fits]  # fmt: skip
    if shape[0] != shape[1]:
        problems.append(f"images of {shape[0]}x{shape[1]}: ConsistencyModelPipeline draws square images alone")
    refuse(problems)
    attended = [shape[0] >> level in network.attention_resolutions for level in range(len(widths))]
    return FIXED | {
        "sample_size": shape[0],
        "in_channels": shape[2],
        "out_channels": network.out_channels or shape[2],
        "block_out_channels": widths,
        "layers_per_block": network.blocks,
        "attention_head_dim": None if network.heads else network.head_channels,
        "down_block_types": ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in attended],
        "up_block_types": ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in attended[::-1]],
        "resnet_time_scale_shift": modulation[network.modulation],
        "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),
        "num_class_embeds": network.num_classes or None,
        "dropout": 0.0,
    }


def _scheduler_config(constants: Mapping[str, float]) -> dict[str, Any]:
    return {
        "_class_name": SCHEDULER,
        "num_train_timesteps": 40,
        **{theirs: constants[ours] for ours, theirs in LEVELS.items()},
        "clip_denoised": False,  # cmjax clips images when they are saved, and not on the way
        "s_noise": 1.0,
    }


def _source(path: Path, levels: int) -> FromKeys:
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if modules[0] == "embedding":
        modules = modules[1:]
    if modules[0] in TOP_LAYERS:
        read = np.asarray if modules[0] == "label" else from_torch
        return FromKeys((f"{TOP_LAYERS[modules[0]]}.{end}",), read)
    block, attention = _block(modules[0], levels)
    if modules[-1] == "qkv":
        return FromKeys(tuple(f"{attention}.to_{which}.{end}" for which in "qkv"), _side_by_side)
    prefix = attention if modules[1] == "attention" else block
    return FromKeys((f"{prefix}.{BLOCK_LAYERS[modules[-1]]}.{end}",), from_torch)


def _side_by_side(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate([from_torch(array) for array in arrays], axis=-1)


def _theirs(path: Path, array: np.ndarray) -> list[np.ndarray]:
    """Gives the arrays under the peer's keys: the inverse of `FromKeys.read`."""
    if path[-2] == "label" or (array.ndim == 1 and path[-2] != "qkv"):
        return [array]
    if path[-2] == "qkv":
        return [np.ascontiguousarray(part.T) for part in np.split(array, 3, axis=-1)]
    if array.ndim == 4:
        return [np.ascontiguousarray(array.transpose(3, 2, 0, 1))]
    matrix = np.ascontiguousarray(array.T)
    return [matrix[:, :, None, None] if path[-2] == "shortcut" else matrix]


def _block(name: str, levels: int) -> tuple[str, str]:
    """Gives the prefixes of a block of ours: of its residual part and of its attention."""
    half, level, kind, index = BlockName.named(name)
    if kind == "down":
        return f"down_blocks.{level - 1}.downsamplers.0", ""
    if kind == "up":
        return f"up_blocks.{levels - 2 - level}.upsamplers.0", ""
    if kind == "in":
        return f"mid_block.resnets.{index}", "mid_block.attentions.0"
    blocks = f"down_blocks.{level}" if half == "encoder" else f"up_blocks.{levels - 1 - level}"
    return f"{blocks}.resnets.{index}", f"{blocks}.attentions.{index}"
