"""Shows arrays of samples to people who work in Python."""

import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from cmjax.data.batches import to_uint8
from cmjax.plotting.plots import image_grid as set_side_by_side


def image_grid(images: Float[Array | np.ndarray, "n h w c"], *, columns: int | None = None) -> Image.Image:
    """Sets images side by side in one, which a notebook shows where it is the last value of a cell.

        cmjax.image_grid(cmjax.sample_fn(flow_map, jax.random.key(0), (64, 8, 8, 1), times=(80.0, 0.8)))

    Small images are enlarged by a whole factor, without blur. Its method `save("digits.png")` writes it.

    Args:    images: (n, h, w, c) in [-1, 1]; values outside are clipped. Of latents, whose c is neither 1 nor 3, the
             first three channels are shown, each scaled from its smallest value to its largest.
             columns: images a row; None makes the grid about as high as wide.
    Returns: an RGB image of PIL.
    Raises:  ValueError where images have another shape, or columns is less than 1.
    """
    array = np.asarray(images, np.float32)
    pixels = to_uint8(array) if array.shape[-1:] in ((1,), (3,)) else array
    return Image.fromarray(set_side_by_side(pixels, columns=columns))
