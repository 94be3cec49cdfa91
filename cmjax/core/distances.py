"""Distances between batches, one number for each sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.core.typing import PerSample, Samples


def l1(x: Samples, y: Samples) -> PerSample:
    """Mean absolute difference over a sample's elements, (b,).   [Song et al. 2023, sec. 6]"""
    return jnp.mean(_flat(jnp.abs(x - y)), axis=1)


def l2(x: Samples, y: Samples, *, resize: int | None = None) -> PerSample:
    """Mean squared difference over a sample's elements, (b,).   [Song et al. 2023, sec. 6]

    `resize`: compare images (b, h, w, c) at this height and width, by bilinear interpolation without smoothing; 32 is
    OpenAI's released code's "l2-32".
    """
    gap = x - y
    if resize is not None:  # linear, so that one resizing of the difference does
        gap = jax.image.resize(gap, (gap.shape[0], resize, resize, gap.shape[3]), "bilinear", antialias=False)
    return jnp.mean(_flat(gap**2), axis=1)


def pseudo_huber(x: Samples, y: Samples, *, c: float) -> PerSample:
    """√(‖x − y‖² + c²) − c with the norm over all of a sample's elements, (b,).   [Song & Dhariwal 2024, eq. 8]

    The paper's choice is c = 0.00054·√D for D elements. The gradient is finite everywhere, also at c = 0, x = y.
    """
    squared = jnp.sum(_flat((x - y) ** 2), axis=1) + c**2
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0) - c


def adaptive(x: Samples, y: Samples, *, p: float, c: float) -> PerSample:
    """‖x − y‖²/sg(‖x − y‖² + c)^p over a sample's elements, (b,): p = 0 is l2's sum, p = 1 weighs all alike.

    Its gradient is finite everywhere, also at c = 0, x = y.   [Geng et al. 2025, MeanFlow, eq. 22]
    """
    squared = jnp.sum(_flat((x - y) ** 2), axis=1)
    scale = jax.lax.stop_gradient(squared + c)
    return squared / jnp.where(scale > 0, scale, 1) ** p


def _flat(x: Array) -> Float[Array, "b size"]:
    return x.reshape(x.shape[0], -1)
