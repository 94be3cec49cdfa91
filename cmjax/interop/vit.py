"""Reads the weights of DINOv2's and CLIP's vision transformers from their published files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.read import read_safetensors
from cmjax.interop.torch_files import read_torch
from cmjax.nets.features.resize import torch_bicubic
from cmjax.nets.features.vit import CLIP, DINOV2, ViT

OFFSET = 0.1
"""What DINOv2 adds to the size of its grid of positions before it interpolates them."""


def load_dinov2(path: str | Path, module: ViT = DINOV2) -> Any:
    """Reads the parameters of DINOv2 from `dinov2_vitl14_pretrain.pth`, positions interpolated to the module's grid.

    Raises: ValueError naming a key that is missing or of another shape, or a file that is none of these.
    """
    take = _Arrays(path)
    parameters = {
        **_conv_and_norms(take, "patch_embed.proj", {"norm": "norm"}),
        ("patches", "bias"): take("patch_embed.proj.bias"),
        ("class_token",): take("cls_token").ravel(),
        ("positions",): _positions(take("pos_embed")[0], module.side // module.patch),
    }
    names = {"norm1": "norm1", "qkv": "attn.qkv", "out": "attn.proj", "norm2": "norm2"}
    names |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parameters |= _layers(module.depth, lambda i: _layer(take, f"blocks.{i}", names))
    for name in ("ls1", "ls2"):
        gains = [take(f"blocks.{i}.{name}.gamma") for i in range(module.depth)]
        parameters["layers", f"scale{name[-1]}"] = np.stack(gains)
    return _checked(parameters, module, path)


def load_clip(path: str | Path, module: ViT = CLIP) -> Any:
    """Reads the parameters of CLIP's image encoder from `pytorch_model.bin` or `model.safetensors` of
    openai/clip-vit-large-patch14-336; the text encoder is not read.

    Raises: as `load_dinov2`.
    """
    take = _Arrays(path, "vision_model.")
    embeddings = "vision_model.embeddings"
    norms = {"pre_norm": "vision_model.pre_layrnorm", "norm": "vision_model.post_layernorm"}
    parameters = {
        **_conv_and_norms(take, f"{embeddings}.patch_embedding", norms),
        ("class_token",): take(f"{embeddings}.class_embedding"),
        ("positions",): take(f"{embeddings}.position_embedding.weight"),
        ("projection", "kernel"): take("visual_projection.weight").T,
    }
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "out": "self_attn.out_proj"}
    names |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}

    def layer(i: int) -> dict[tuple[str, str], np.ndarray]:
        prefix = f"vision_model.encoder.layers.{i}"
        qkv = [_layer(take, prefix, {name: f"self_attn.{name}_proj"}) for name in "qkv"]
        joined = {
            ("qkv", kind): np.concatenate([part[name, kind] for name, part in zip("qkv", qkv, strict=True)], axis=-1)
            for kind in ("kernel", "bias")
        }
        return {**_layer(take, prefix, names), **joined}

    return _checked(parameters | _layers(module.depth, layer), module, path)


class _Arrays:
    """A file's arrays, in float32, that must be there."""

    def __init__(self, path: str | Path, prefix: str = ""):
        self.path = path
        content = read_safetensors(Path(path))[0] if Path(path).suffix == ".safetensors" else read_torch(path)
        if not isinstance(content, Mapping) or not any(str(key).startswith(prefix) for key in content):
            raise ValueError(f"{path} is no state dict with keys {prefix}…")
        self.arrays = content

    def __call__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise ValueError(f"{self.path} has no {key}")
        return np.asarray(self.arrays[key], np.float32)


def _conv_and_norms(take: _Arrays, conv: str, norms: Mapping[str, str]) -> dict[tuple[str, ...], np.ndarray]:
    parameters: dict[tuple[str, ...], np.ndarray] = {
        ("patches", "kernel"): take(f"{conv}.weight").transpose(2, 3, 1, 0)
    }
    for ours, theirs in norms.items():
        parameters |= {(ours, "scale"): take(f"{theirs}.weight"), (ours, "bias"): take(f"{theirs}.bias")}
    return parameters


def _layer(take: _Arrays, prefix: str, names: Mapping[str, str]) -> dict[tuple[str, str], np.ndarray]:
    parameters = {}
    for ours, theirs in names.items():
        weight = take(f"{prefix}.{theirs}.weight")
        parameters[ours, "kernel" if weight.ndim == 2 else "scale"] = weight.T
        parameters[ours, "bias"] = take(f"{prefix}.{theirs}.bias")
    return parameters


def _layers(depth: int, layer: Callable[[int], dict[tuple[str, str], np.ndarray]]) -> dict[tuple[str, ...], np.ndarray]:
    """All layers' parameters, stacked."""
    each = [layer(i) for i in range(depth)]
    return {("layers", *place): np.stack([one[place] for one in each]) for place in each[0]}


def _positions(embedding: np.ndarray, grid: int) -> np.ndarray:
    """The class token's position, and the others' interpolated to a grid of another size."""
    first, others = embedding[:1], embedding[1:]
    side = round(len(others) ** 0.5)
    if side == grid:
        return embedding
    weights = torch_bicubic(side, grid, (grid + OFFSET) / side)
    moved = np.einsum("Hh,Ww,hwd->HWd", weights, weights, others.reshape(side, side, -1).astype(np.float64))
    return np.concatenate([first, moved.reshape(grid * grid, -1).astype(np.float32)])


def _checked(parameters: dict[tuple[str, ...], np.ndarray], module: ViT, path: str | Path) -> Any:
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(module.parameter_shapes()))
    for place, leaf in shapes.items():
        if parameters[place].shape != leaf.shape:
            raise ValueError(f"{'/'.join(place)} of {path} must have {leaf.shape}, got {parameters[place].shape}")
    return unflatten_dict(parameters)
