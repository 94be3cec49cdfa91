"""EDM's released networks (NVIDIA, 2022): their constructor's arguments and state dicts, read into a `UNet`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.nets.unet import UNet

FIELDS = {
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_resolutions",
    "embedding_type": "embedding",
    "channel_mult_noise": "noise_channel_mult",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
    "dropout": "dropout",
    "label_dim": "num_classes",
    "augment_dim": "augment_dim",
}
"""EDM's argument of SongUNet -> our field."""

NOT_FIELDS = {"img_resolution", "img_channels", "in_channels", "out_channels", "model_type", "label_dropout"}
"""Arguments that the data decide, or that act in training alone."""

DEFAULTS: dict[str, Any] = {"channel_mult": (1, 2, 2, 2), "dropout": 0.1}
"""Where the defaults of SongUNet differ from ours."""


def unet_from_edm(arguments: Mapping[str, Any], **fields: Any) -> UNet:
    """The network that EDM builds from `arguments` of SongUNet (or of a preconditioner around it).

    Args:   fields: ours to override, such as `dtype`.
    Raises: ValueError listing arguments that are not understood, or where the network is another one.
    """
    if arguments.get("model_type", "SongUNet") != "SongUNet":
        raise ValueError(f"model_type must be 'SongUNet', got {arguments['model_type']!r}")
    given = {name: value for name, value in arguments.items() if name not in NOT_FIELDS}
    if unknown := sorted(given.keys() - FIELDS.keys()):
        raise ValueError(f"arguments that SongUNet does not take: {', '.join(unknown)}")
    ours: dict[str, Any] = {FIELDS[name]: tuple(v) if isinstance(v, list | tuple) else v for name, v in given.items()}
    return UNet(**{**DEFAULTS, **ours, **fields})


def params_from_edm(state_dict: Mapping[str, np.ndarray], like: Any) -> Any:
    """EDM's SongUNet weights as the parameters of a `UNet`, float32.

    Args:   state_dict: key -> array, with or without the prefix `model.`; buffers may be there or not.
            like: parameters or shapes of the `UNet`, for example of `jax.eval_shape(unet.init, ...)["params"]`.
    Raises: ValueError listing keys that are missing, left over, or of another shape than the network's.
    """
    arrays = {key.removeprefix("model."): np.asarray(value) for key, value in state_dict.items()}
    sizes = sorted({int(match[1]) for key in arrays if (match := re.match(r"(?:enc|dec)\.(\d+)x", key))}, reverse=True)
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(like))
    sources = {path: _edm_key(path, sizes) for path in shapes}
    # Resampling filters are buffers that follow from the network's fields.
    spare = {key for key in arrays if not key.endswith("resample_filter")} - set(sources.values())
    problems = [f"missing {key}" for key in sources.values() if key not in arrays]
    problems += [f"left over {key}" for key in sorted(spare)]
    params = {}
    for path, key in sources.items():
        if key in arrays:
            params[path] = _ours(key, arrays[key])
            if params[path].shape != shapes[path].shape:
                problems.append(f"{key} is {params[path].shape} in our order of axes, not {shapes[path].shape}")
    if problems:
        raise ValueError("the state dict is not of this network: " + "; ".join(problems))
    return unflatten_dict(params)


def _ours(key: str, array: np.ndarray) -> np.ndarray:
    """One tensor in our order of axes: convolutions OIHW -> HWIO, 1×1 ones and matrices (out, in) -> (in, out)."""
    array = np.asarray(array, np.float32)
    if ".qkv." in key:
        # The output channels are (channel, which of q, k, v) there and (which, channel) here.
        array = array.reshape(-1, 3, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array[0, 0] if array.shape[:2] == (1, 1) else array
    return array.T


def _edm_key(path: tuple[str, ...], sizes: list[int]) -> str:
    """Our path -> EDM's key. `sizes` are the resolutions of the levels, largest first."""
    *modules, leaf = path
    if leaf == "frequencies":
        return "map_noise.freqs"
    leaf = "bias" if leaf == "bias" else "weight"
    if modules[0] == "embedding":
        return f"map_{modules[1].replace('dense_', 'layer')}.{leaf}"
    half, level, name = modules[0].split("_", 2)
    size = sizes[int(level)] if int(level) < len(sizes) else 0
    first = half == "encoder" and name == "conv"
    if not first and name in ("skip", "residual", "norm", "conv"):
        name = f"aux_{name}"
    name = re.sub(r"(block|in)_(\d)", r"\1\2", name)
    inner = "".join(f"{EDM_LAYERS.get(layer, layer)}." for layer in modules[1:] if layer != "attention")
    if modules[1:] == ["attention", "norm"]:
        inner = "norm2."
    return f"{half[:3]}.{size}x{size}_{name}.{inner}{leaf}"


EDM_LAYERS = {"norm_0": "norm0", "norm_1": "norm1", "conv_0": "conv0", "conv_1": "conv1", "shortcut": "skip"}
