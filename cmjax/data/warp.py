"""Warps images by affine maps, resampled between two wavelet filters against aliasing.   [Karras et al. 2020, app. B.2]

The filter is orthogonal: upsampling by 2 and downsampling by 2 with it give the image back. Everything has a fixed
shape, and an image's result does not depend on the others of its batch.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""The scaling filter h of the symlet with 6 vanishing moments: Σₙ hₙ = √2, Σₙ hₙ hₙ₊₂ₖ = 1 for k = 0 and else 0.
[Daubechies 1992, Ten Lectures on Wavelets, sect. 8.1]"""

PHASE_TAPS = len(SYM6) // 2
"""Input pixels that an upsampled one is made of."""


def warp(images: Float[Array, "b h w c"], inverse: Float[Array, "b 3 3"]) -> Float[Array, "b h w c"]:
    """Warps each image by an affine map G of the plane: out(p) = image(G⁻¹ p).

    The image is continued by reflection as far as it reaches, to three times its size, and by zeros beyond; then
    upsampled by 2, read bilinearly at the points G⁻¹ p of a grid with half the pixels' distance, downsampled by 2.
    NVIDIA's code reflects no further than the batch at hand needs: by 3e-6 another image, at most, in what was tried.

    Args: inverse: G⁻¹ in homogeneous coordinates (x, y, 1), in pixels from the image's centre, x to the right and
          y downwards.
    """
    height, width = images.shape[1:3]
    fine = _upsample(_upsample(images, axis=1), axis=2)
    x, y = _grid(width), _grid(height)
    # (3, rows, columns): the fine grid in homogeneous coordinates
    points = np.stack([*np.meshgrid(x, y), np.ones((len(y), len(x)))])
    # "highest", as a GPU's or TPU's lower default precision would misplace pixels
    source = jnp.einsum("bij,jyx->biyx", inverse[:, :2], jnp.asarray(points, inverse.dtype), precision="highest")
    # The reflected image's centre is between the fine pixels 3n − 3 and 3n − 2 of its 2·(3n − 2); fine pixel 2j + 1
    # and not 2j stands where pixel j does, as _grid has it too.
    columns, rows = 2 * source[:, 0] + 3 * width - 3, 2 * source[:, 1] + 3 * height - 3
    return _downsample(_downsample(_read(fine, rows, columns), axis=1), axis=2)


def _grid(size: int) -> np.ndarray:
    """Gives the places of the fine pixels that `_downsample` reads for `size` pixels, in pixels from the centre."""
    return (np.arange(2 * size + len(SYM6) - 2) - (size + PHASE_TAPS - 2)) / 2


def _upsample(x: Array, axis: int) -> Array:
    """Computes the reflected signal of 3n − 2 samples at twice the rate: yₘ = Σⱼ hₘ₊₅₋₂ⱼ xⱼ, each phase with half the
    taps."""
    size = 3 * x.shape[axis] - 2
    # a reflection reaches n − 1 samples; the filter's taps beyond see zeros
    x = _pad(_pad(x, axis, x.shape[axis] - 1, mode="reflect"), axis, PHASE_TAPS // 2, mode="constant")

    def phase(taps: tuple[float, ...], last: int) -> Array:
        slices = (jax.lax.slice_in_dim(x, last - a, last - a + size, axis=axis) for a in range(len(taps)))
        return _weighted_sum(taps, slices)

    # samples of odd and even places see every other tap
    phases = [phase(SYM6[1::2], PHASE_TAPS - 1), phase(SYM6[0::2], PHASE_TAPS)]
    return jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _downsample(x: Array, axis: int) -> Array:
    """Half the rate: yₙ = Σₜ hₜ x₂ₙ₊ₜ."""
    stop = x.shape[axis] - len(SYM6) + 1
    return _weighted_sum(SYM6, (jax.lax.slice_in_dim(x, t, t + stop, 2, axis) for t in range(len(SYM6))))


def _weighted_sum(taps: tuple[float, ...], slices: Iterable[Array]) -> Array:
    """Slices and not a convolution, which is some fifty times slower on a CPU."""
    return functools.reduce(jnp.add, (tap * x for tap, x in zip(taps, slices, strict=True)))


def _pad(x: Array, axis: int, amount: int, mode: str) -> Array:
    return jnp.pad(x, [(amount, amount) if i == axis else (0, 0) for i in range(x.ndim)], mode=mode)


@jax.vmap
def _read(image: Array, rows: Array, columns: Array) -> Array:
    """Bilinear interpolation of (h, w, c) at fractional indices, zeros outside."""
    channel = functools.partial(map_coordinates, coordinates=[rows, columns], order=1, mode="constant")
    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)
