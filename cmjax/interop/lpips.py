"""Reads LPIPS' published weights into the parameters of `cmjax.nets.features.lpips.lpips`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.interop.torch_files import read_torch
from cmjax.nets.features.lpips import WIDTHS
from cmjax.system.npz import load_npz


def load_lpips(vgg_path: str | Path, heads_path: str | Path) -> Any:
    """Reads the parameters of `lpips` from the published weight files.

    Args:   vgg_path: torchvision's `vgg16-397923af.pth`; its classifier is not read. heads_path: `vgg.pth` of the
            lpips package (v0.1). Either may be a .npz of the same keys. Files of PyTorch are read as data, never code.
    Raises: ValueError naming a key that is missing, of another shape, or left over, or a file that is not one of these.
    """
    vgg, heads = _read(Path(vgg_path)), _read(Path(heads_path))
    index, channels, convolutions = 0, 3, []
    for widths in WIDTHS:
        stage = []
        for width in widths:
            kernel = _take(vgg, f"features.{index}.weight", (width, channels, 3, 3), vgg_path).transpose(2, 3, 1, 0)
            bias = _take(vgg, f"features.{index}.bias", (width,), vgg_path)
            stage.append({"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})
            channels, index = width, index + 2  # a ReLU stands between
        convolutions.append(stage)
        index += 1  # and a pooling layer here
    taps = [
        jnp.asarray(_take(heads, f"lin{i}.model.1.weight", (1, widths[-1], 1, 1), heads_path).ravel())
        for i, widths in enumerate(WIDTHS)
    ]
    left_over = [key for key in (*vgg, *heads) if not key.startswith("classifier.")]
    if left_over:
        raise ValueError(f"unexpected keys in {vgg_path} or {heads_path}: {', '.join(left_over)}")
    return {"convolutions": convolutions, "heads": taps}


def _take(arrays: dict[str, np.ndarray], key: str, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    if key not in arrays:
        raise ValueError(f"{path} has no {key}")
    array = arrays.pop(key)
    if array.shape != shape:
        raise ValueError(f"{key} in {path} must have shape {shape}, got {array.shape}")
    return np.asarray(array, np.float32)


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return load_npz(path)
    arrays = read_torch(path)
    if not isinstance(arrays, dict) or not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise ValueError(f"{path} is no state dict: it holds something else than arrays by key")
    return arrays
