"""Reads the published weights of the networks in `cmjax.nets.features`: Inception, LPIPS, DINOv2 and CLIP.

Files are read as data, never code. What is missing in one, or has another shape, is a ValueError that names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.safetensors_files import read_safetensors
from cmjax.interop.torch_files import read_torch
from cmjax.nets.features import inception, lpips
from cmjax.nets.features.resize import torch_bicubic
from cmjax.nets.features.vit import CLIP, DINOV2, ViT
from cmjax.system.npz import load_npz
from cmjax.system.pickles import read_pickle

EPSILON = 0.001
"""The epsilon of the batch normalisation in Inception's graph."""

OFFSET = 0.1
"""DINOv2 adds it to the size of its grid of positions before it interpolates them."""

ByPath = dict[tuple[str, ...], np.ndarray]


class _Arrays:
    """Holds the arrays of a file by key; each can be taken once."""

    def __init__(self, path: str | Path, content: Any, prefix: str = ""):
        if not isinstance(content, Mapping) or not any(str(key).startswith(prefix) for key in content):
            keys = f" with keys {prefix}…" if prefix else f": it holds a {type(content).__name__}, not arrays by key"
            raise ValueError(f"{path} is no state dict{keys}")
        self.path, self.arrays = path, dict(content)

    def __call__(self, *keys: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Takes the array of the first of these keys that the file has."""
        key = next((key for key in keys if key in self.arrays), None)
        if key is None:
            raise ValueError(f"{self.path} has no {' or '.join(keys)}")
        array = np.asarray(self.arrays.pop(key))
        if shape is not None and array.shape != shape:
            raise ValueError(f"{key} in {self.path} must have shape {shape}, got {array.shape}")
        return array


def load_inception(path: str | Path) -> Any:
    """Reads the parameters of `cmjax.nets.features.inception.Inception`.

    Args:   path: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, torch-fidelity's
            `weights-inception-2015-12-05-6726825d.pth`, or `inception_v3_weights_fid.pickle`, which JAX projects share.
    Raises: ValueError naming a key that is missing or of another shape, or a file that is none of these.
    """
    content = read_torch(path) if Path(path).suffix == ".pth" else read_pickle(path)
    nested = isinstance(content, Mapping) and any(isinstance(value, Mapping) for value in content.values())
    take = _Arrays(path, flatten_dict(content, sep=".") if nested else content)
    parameters: ByPath = {}
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(inception.parameter_shapes()))
    for (*module, kind), leaf in shapes.items():
        if kind != "kernel":
            continue  # a bias is what folding leaves of the normalisation
        key = ".".join(module)
        if leaf.ndim == 2:
            parameters[*module, kind] = _kernel(take, key, leaf.shape)
            continue
        # A convolution with its batch normalisation folded in: w·γ/√(σ² + ε), and β − μ·γ/√(σ² + ε). In float64, for
        # the errors of a hundred layers add up in the features.
        kernel = _kernel(take, f"{key}.conv", leaf.shape).astype(np.float64)
        scale, bias, mean, variance = (
            take(*(f"{key}.bn.{name}" for name in names)).astype(np.float64).reshape(leaf.shape[-1])
            for names in (("weight", "scale"), ("bias",), ("running_mean", "mean"), ("running_var", "var"))
        )
        gain = scale / np.sqrt(variance + EPSILON)
        parameters |= {(*module, "kernel"): kernel * gain, (*module, "bias"): bias - mean * gain}
    return _nested(parameters)


def _kernel(take: _Arrays, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Takes a kernel as Flax lays it out; PyTorch's are transposed."""
    if f"{key}.weight" not in take.arrays:
        return take(f"{key}.weight", f"{key}.kernel", shape=shape)
    array = take(f"{key}.weight")
    array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    if array.shape != shape:
        raise ValueError(f"{key} in {take.path} must have shape {shape}, got {array.shape}")
    return array


def load_lpips(vgg_path: str | Path, heads_path: str | Path) -> Any:
    """Reads the parameters of `cmjax.nets.features.lpips.lpips` from the published weight files.

    Args:   vgg_path: torchvision's `vgg16-397923af.pth`; its classifier is not read. heads_path: `vgg.pth` of the
            lpips package (v0.1). Either may be a .npz of the same keys.
    Raises: ValueError naming a key that is missing, of another shape, or left over, or a file that is not one of these.
    """
    vgg, heads = (
        _Arrays(path, load_npz(Path(path)) if Path(path).suffix == ".npz" else read_torch(path))
        for path in (vgg_path, heads_path)
    )
    index, channels, convolutions = 0, 3, []
    for widths in lpips.WIDTHS:
        stage = []
        for width in widths:
            # from (out, in, h, w) to (h, w, in, out)
            kernel = vgg(f"features.{index}.weight", shape=(width, channels, 3, 3)).transpose(2, 3, 1, 0)
            bias = vgg(f"features.{index}.bias", shape=(width,))
            stage.append({"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)})
            channels, index = width, index + 2  # a ReLU stands between
        convolutions.append(stage)
        index += 1  # and a pooling layer here
    taps = [
        jnp.asarray(heads(f"lin{i}.model.1.weight", shape=(1, widths[-1], 1, 1)).ravel(), jnp.float32)
        for i, widths in enumerate(lpips.WIDTHS)
    ]
    left_over = [key for key in (*vgg.arrays, *heads.arrays) if not key.startswith("classifier.")]
    if left_over:
        raise ValueError(f"unexpected keys in {vgg_path} or {heads_path}: {', '.join(left_over)}")
    return {"convolutions": convolutions, "heads": taps}


def load_dinov2(path: str | Path, module: ViT = DINOV2) -> Any:
    """Reads the parameters of DINOv2 from `dinov2_vitl14_pretrain.pth`, positions interpolated to the module's grid.

    Raises: ValueError naming a key that is missing or of another shape, or a file that is none of these.
    """
    take = _transformer(path, "")
    parameters = _conv_and_norms(take, "patch_embed.proj", {"norm": "norm"})
    parameters["patches", "bias"] = take("patch_embed.proj.bias")
    parameters["class_token",] = take("cls_token").ravel()
    parameters["positions",] = _positions(take("pos_embed")[0], module.side // module.patch)
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
    take = _transformer(path, "vision_model.")
    embeddings = "vision_model.embeddings"
    # The name's spelling is the file's.
    norms = {"pre_norm": "vision_model.pre_layrnorm", "norm": "vision_model.post_layernorm"}
    parameters = _conv_and_norms(take, f"{embeddings}.patch_embedding", norms)
    parameters["class_token",] = take(f"{embeddings}.class_embedding")
    parameters["positions",] = take(f"{embeddings}.position_embedding.weight")
    parameters["projection", "kernel"] = take("visual_projection.weight").T
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "out": "self_attn.out_proj"}
    names |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}

    def layer(i: int) -> ByPath:
        prefix = f"vision_model.encoder.layers.{i}"
        qkv = _layer(take, prefix, {name: f"self_attn.{name}_proj" for name in "qkv"})
        joined: ByPath = {}
        for kind in ("kernel", "bias"):
            joined["qkv", kind] = np.concatenate([qkv[name, kind] for name in "qkv"], axis=-1)
        return _layer(take, prefix, names) | joined

    return _checked(parameters | _layers(module.depth, layer), module, path)


def _transformer(path: str | Path, prefix: str) -> _Arrays:
    content = read_safetensors(Path(path))[0] if Path(path).suffix == ".safetensors" else read_torch(path)
    return _Arrays(path, content, prefix)


def _conv_and_norms(take: _Arrays, conv: str, norms: Mapping[str, str]) -> ByPath:
    parameters: ByPath = {("patches", "kernel"): take(f"{conv}.weight").transpose(2, 3, 1, 0)}
    for ours, theirs in norms.items():
        parameters |= {(ours, "scale"): take(f"{theirs}.weight"), (ours, "bias"): take(f"{theirs}.bias")}
    return parameters


def _layer(take: _Arrays, prefix: str, names: Mapping[str, str]) -> ByPath:
    parameters: ByPath = {}
    for ours, theirs in names.items():
        weight = take(f"{prefix}.{theirs}.weight")
        # a vector's transpose is the vector
        parameters[ours, "kernel" if weight.ndim == 2 else "scale"] = weight.T
        parameters[ours, "bias"] = take(f"{prefix}.{theirs}.bias")
    return parameters


def _layers(depth: int, layer: Callable[[int], ByPath]) -> ByPath:
    each = [layer(i) for i in range(depth)]
    return {("layers", *place): np.stack([one[place] for one in each]) for place in each[0]}


def _positions(embedding: np.ndarray, grid: int) -> np.ndarray:
    """Gives the class token's position, and the others interpolated to a grid of another size."""
    first, others = embedding[:1], embedding[1:]
    side = round(len(others) ** 0.5)
    if side == grid:
        return embedding
    weights = torch_bicubic(side, grid, (grid + OFFSET) / side)
    moved = np.einsum("Hh,Ww,hwd->HWd", weights, weights, others.reshape(side, side, -1).astype(np.float64))
    return np.concatenate([first, moved.reshape(grid * grid, -1)])


def _checked(parameters: ByPath, module: ViT, path: str | Path) -> Any:
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(module.parameter_shapes()))
    for place, leaf in shapes.items():
        if parameters[place].shape != leaf.shape:
            raise ValueError(f"{'/'.join(place)} of {path} must have {leaf.shape}, got {parameters[place].shape}")
    return _nested(parameters)


def _nested(parameters: ByPath) -> Any:
    return unflatten_dict({place: np.asarray(array, np.float32) for place, array in parameters.items()})
