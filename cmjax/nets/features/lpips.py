"""LPIPS, a perceptual distance between images: differences of VGG16's features, weighted by trained heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""VGG16's convolutions, by stage; a stage ends in the tap that is compared, and pooling stands between stages."""

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Means and stds of ImageNet's channels, for images in [0, 1]."""

EPS = 1e-10


def lpips(
    params: Any, x: Float[Array, "b h w c"], y: Float[Array, "b h w c"], *, resize: int | None = 224, pool: str = "max"
) -> Float[Array, " b"]:
    """Σ_taps mean_hw Σ_c w_c·(x̂ − ŷ)², x̂ the features of unit length over channels.   [Zhang et al. 2018, eq. 1]

    Args:    params: of `cmjax.interop.features.load_lpips`. x, y: images in [-1, 1], RGB; not clipped.
             resize: bilinear enlargement to this size where either side is smaller, as consistency distillation does;
             None for none. pool: "max" as published, or "avg", of the released consistency models on ImageNet and LSUN.
    Returns: (b,), 0 up to rounding where x = y; its gradient is finite everywhere.
    Raises:  ValueError for another `pool`, or images without three channels.
    """
    if pool not in ("max", "avg"):
        raise ValueError(f"pool must be 'max' or 'avg', got {pool!r}")
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"x and y must be RGB images (b, h, w, 3) of one shape, got {x.shape} and {y.shape}")
    both = jnp.stack([x, y], 1).reshape(-1, *x.shape[1:])  # pairs side by side: none crosses devices
    if resize and min(both.shape[1:3]) < resize:
        both = jax.image.resize(both, (both.shape[0], resize, resize, 3), "bilinear")
    h = ((both + 1) / 2 - MEAN[None, None, None]) / STD[None, None, None]
    total = jnp.zeros(len(x))
    for stage, (convolutions, head) in enumerate(zip(params["convolutions"], params["heads"], strict=True)):
        if stage:
            h = _pool(h, pool)
        for layer in convolutions:
            h = jax.lax.conv_general_dilated(
                h, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            h = jax.nn.relu(h + layer["bias"][None, None, None])
        pair = _unit(h).reshape(len(x), 2, *h.shape[1:])
        # the head's weights sum over channels, and the mean is over positions
        total += jnp.mean((pair[:, 0] - pair[:, 1]) ** 2 @ head, axis=(1, 2))
    return total


def parameter_shapes() -> Any:
    """Gives the shapes of the parameters of `lpips`."""
    channels, convolutions = 3, []
    for widths in WIDTHS:
        stage = []
        for width in widths:
            stage.append({"kernel": _float32(3, 3, channels, width), "bias": _float32(width)})
            channels = width
        convolutions.append(stage)
    return {"convolutions": convolutions, "heads": [_float32(widths[-1]) for widths in WIDTHS]}


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _unit(h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """h/(|h| + EPS); where h = 0, the square root's infinite slope is kept out of the gradient."""
    squared = jnp.sum(h**2, axis=-1, keepdims=True)
    positive = squared > 0
    return h / (jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0) + EPS)


def _pool(h: Float[Array, "b h w c"], kind: str) -> Float[Array, "b h_half w_half c"]:
    """Over 2×2 windows; an odd last row or column is left out, as VGG16's own pooling does."""
    height, width = h.shape[1] // 2, h.shape[2] // 2
    h = h[:, : 2 * height, : 2 * width].reshape(h.shape[0], height, 2, width, 2, h.shape[3])
    return h.max((2, 4)) if kind == "max" else h.mean((2, 4))
