"""Reads FID's InceptionV3 from the files that share its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.torch_files import read_torch
from cmjax.nets.features.inception import parameter_shapes
from cmjax.system.pickles import read_pickle

EPSILON = 0.001
"""Of the graph's batch normalisation."""


def load_inception(path: str | Path) -> Any:
    """Reads the parameters of `cmjax.nets.features.inception.Inception`.

    Args:   path: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, torch-fidelity's
            `weights-inception-2015-12-05-6726825d.pth`, or `inception_v3_weights_fid.pickle`, which JAX projects share.
            Files are read as data, never code.
    Raises: ValueError naming a key that is missing or of another shape, or a file that is none of these.
    """
    content = read_torch(path) if Path(path).suffix == ".pth" else read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not arrays by key")
    arrays = flatten_dict(content, sep=".") if any(isinstance(v, Mapping) for v in content.values()) else dict(content)
    parameters = {}
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(parameter_shapes()))
    for place, leaf in shapes.items():
        *module, kind = place
        if kind == "kernel":
            parameters |= _layer(arrays, ".".join(module), tuple(module), leaf.shape, path)
    return unflatten_dict(parameters)


def _layer(arrays: Mapping[str, Any], key: str, module: tuple[str, ...], shape: tuple[int, ...], path) -> dict:
    """A convolution with its batch normalisation folded in: w·γ/√(σ² + ε), and β − μ·γ/√(σ² + ε)."""
    if len(shape) == 2:
        return {(*module, "kernel"): _kernel(arrays, key, shape, path).astype(np.float32)}
    kernel = _kernel(arrays, f"{key}.conv", shape, path).astype(np.float64)
    scale, bias, mean, variance = (
        _take(arrays, [f"{key}.bn.{name}" for name in names], path).astype(np.float64).reshape(shape[-1])
        for names in (("weight", "scale"), ("bias",), ("running_mean", "mean"), ("running_var", "var"))
    )
    gain = scale / np.sqrt(variance + EPSILON)
    folded = {"kernel": kernel * gain, "bias": bias - mean * gain}
    return {(*module, name): array.astype(np.float32) for name, array in folded.items()}


def _kernel(arrays: Mapping[str, Any], key: str, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    """A kernel as Flax lays it out; PyTorch's are transposed."""
    array = _take(arrays, [f"{key}.weight", f"{key}.kernel"], path)
    if f"{key}.weight" in arrays:
        array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    if array.shape != shape:
        raise ValueError(f"{key} in {path} must have shape {shape}, got {array.shape}")
    return array


def _take(arrays: Mapping[str, Any], keys: list[str], path: str | Path) -> np.ndarray:
    for key in keys:
        if key in arrays:
            return np.asarray(arrays[key])
    raise ValueError(f"{path} has no {' or '.join(keys)}")
