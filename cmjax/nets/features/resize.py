"""Resizes images exactly as the published feature networks do, by linear maps of rows and of columns.

Every rule keeps float32's full precision on every device: metrics depend on it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Num


def tf1_bilinear(inputs: int, outputs: int) -> Float64[np.ndarray, "outputs inputs"]:
    """TensorFlow 1's ResizeBilinear: output i lies at i·inputs/outputs, with pixels' corners aligned at 0 alone, and
    without antialiasing."""
    places = np.arange(outputs) * (inputs / outputs)
    low = np.minimum(places.astype(np.int64), inputs - 1)
    weights = np.zeros((outputs, inputs))
    # `add.at`, since at the last pixel both neighbours are one
    np.add.at(weights, (np.arange(outputs), low), 1 - (places - low))
    np.add.at(weights, (np.arange(outputs), np.minimum(low + 1, inputs - 1)), places - low)
    return weights


def torch_bicubic(inputs: int, outputs: int, scale: float | None = None) -> Float64[np.ndarray, "outputs inputs"]:
    """PyTorch's bicubic interpolation: Keys' kernel of a = −0.75, edges repeated, without antialiasing.

    Args: scale: outputs/inputs unless another is given, as DINOv2 does for its positions.
    """
    places = (np.arange(outputs) + 0.5) / (outputs / inputs if scale is None else scale) - 0.5
    low = np.floor(places).astype(np.int64)
    weights = np.zeros((outputs, inputs))
    for tap in range(-1, 3):
        at = np.clip(low + tap, 0, inputs - 1)
        np.add.at(weights, (np.arange(outputs), at), _keys(np.abs(places - low - tap), a=-0.75))
    return weights


def _keys(distance: np.ndarray, *, a: float) -> np.ndarray:
    """[Keys 1981]"""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def resized(
    images: Num[Array, "b h w c"], rows: Float64[np.ndarray, "_ h"], columns: Float64[np.ndarray, "_ w"]
) -> Float[Array, "b _ _ c"]:
    """Applies these maps to the rows and the columns of images."""
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum(
        "Hh,bhwc->bHwc", jnp.asarray(rows, jnp.float32), images.astype(jnp.float32), precision=precision
    )
    return jnp.einsum("Ww,bHwc->bHWc", jnp.asarray(columns, jnp.float32), images, precision=precision)
