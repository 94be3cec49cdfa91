"""Parts of diffusion transformers: blocks, norms, the embedding of times, and tables of places."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.nets.blocks import attend
from cmjax.nets.layers import Dropout, Pointwise
from cmjax.nets.magnitude import Normal

ZEROS, SMALL = nn.initializers.zeros, Normal(0.02)

FREQUENCIES = 10_000 ** -(np.arange(128) / 128)
"""Frequencies of the cosines and sines of a time, in rad."""
ROUNDED_FREQUENCIES = np.exp(
    np.float64(np.float32(-np.log(10_000)) * np.arange(128, dtype=np.float32) / np.float32(128))
)
"""The same, of logarithms in float32: relative differences of 6e-7, which times of 1000 make angles of 6e-5 rad."""


class TimeEmbedding(nn.Module):
    """(b,) -> (b, width): 256 cosines and sines, from 1e-4 to 1 rad per unit of scale·time, and two layers."""

    width: int
    scale: float
    last_init: Any = SMALL
    rounded: bool = False
    first_init: Any = SMALL

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b width"]:
        frequencies = jnp.asarray(ROUNDED_FREQUENCIES if self.rounded else FREQUENCIES, jnp.float32)
        # Cosines of large angles: float32 whatever the dtype of computation.
        angles = self.scale * time.astype(jnp.float32)[:, None] * frequencies[None]
        h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
        h = nn.silu(nn.Dense(self.width, kernel_init=self.first_init, name="dense_0")(h))
        return nn.Dense(self.width, kernel_init=self.last_init, name="dense_1")(h)


class Block(nn.Module):
    """h + g₁(e)·attention(n₁(h)), then h + g₂(e)·mlp(n₂(h)): the norms nᵢ are scaled and shifted by e as well.

    All six maps of the embedding e start at zero, and so the block as the identity. grid: rows and columns of patches,
    where queries and keys are rotated by them.
    """

    heads: int
    mlp_ratio: float
    dropout: float
    attention: str
    dtype: Any
    norm: str = "layer"
    qk_norm: bool = False
    mlp: str = "gelu"
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b width"], deterministic: bool
    ) -> Float[Array, "b n width"]:
        width = h.shape[-1]
        # adaLN-Zero: (b, 1, width) each, all zero at the start
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
            nn.Dense(6 * width, kernel_init=ZEROS, dtype=self.dtype, name="modulation")(embedding)[:, None], 6, axis=-1
        )
        attended = self._attended(modulated(normed(h, self.norm, "norm_0"), shift, scale))
        h += gate * Dropout(self.dropout)(attended, deterministic)
        inner = self._inner(modulated(normed(h, self.norm, "norm_1"), mlp_shift, mlp_scale))
        return h + mlp_gate * Dropout(self.dropout)(self._dense(width, "mlp_1")(inner), deterministic)

    def _inner(self, h: Array) -> Array:
        if self.mlp == "gelu":
            return nn.gelu(self._dense(int(self.mlp_ratio * h.shape[-1]), "mlp_0")(h), approximate=True)
        # its three matrices then have about as many parameters as the two of gelu
        hidden = round(self.mlp_ratio * h.shape[-1] * 2 / 3)
        gate, values = jnp.split(self._dense(2 * hidden, "mlp_0")(h), 2, axis=-1)
        return nn.silu(gate) * values

    def _attended(self, h: Array) -> Array:
        b, n, width = h.shape
        qkv = self._dense(3 * width, "qkv")(h)
        q, k, v = (part.reshape(b, n, self.heads, width // self.heads) for part in jnp.split(qkv, 3, axis=-1))
        if self.qk_norm:
            q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)
        if self.grid is not None:
            q, k = rotated(q, *self.grid), rotated(k, *self.grid)
        attended = attend(q, k, v, implementation=self.attention)
        return self._dense(width, "proj")(attended.reshape(b, n, width))

    def _dense(self, features: int, name: str) -> Pointwise:
        return Pointwise(features, dtype=self.dtype, name=name)


class RMSNorm(nn.Module):
    """scale·h/√(mean h² + 1e-6) over the last axis, with learned scales; statistics in float32."""

    scale_init = staticmethod(nn.initializers.ones)

    @nn.compact
    def __call__(self, h: Float[Array, "*dims d"]) -> Float[Array, "*dims d"]:
        scale = self.param("scale", self.scale_init, h.shape[-1:])
        return divided_by_rms(h) * scale.astype(h.dtype).reshape((1,) * (h.ndim - 1) + (-1,))


def divided_by_rms(h: Float[Array, "*dims d"]) -> Float[Array, "*dims d"]:
    """Returns h/√(mean h² + 1e-6) over the last axis, computed in float32."""
    h32 = h.astype(jnp.float32)
    return (h32 * jax.lax.rsqrt(jnp.mean(h32**2, axis=-1, keepdims=True) + 1e-6)).astype(h.dtype)


def normed(h: Float[Array, "b n width"], norm: str, name: str) -> Float[Array, "b n width"]:
    """Returns the layer norm of h, without parameters, or for "rms" that of the module `name`."""
    if norm == "rms":
        return RMSNorm(name=name)(h)
    h32 = h.astype(jnp.float32)
    return divided_by_rms(h32 - jnp.mean(h32, axis=-1, keepdims=True)).astype(h.dtype)


def modulated(
    h: Float[Array, "b n width"], shift: Float[Array, "b 1 width"], scale: Float[Array, "b 1 width"]
) -> Float[Array, "b n width"]:
    """Returns h·(1 + scale) + shift."""
    return h * (1 + scale) + shift


def rotated(x: Float[Array, "b n heads c"], rows: int, columns: int) -> Float[Array, "b n heads c"]:
    """Rotates each pair of neighbouring channels by its angle of `rotations`.   [Su et al. 2021, RoPE, eq. 34]"""
    angles = rotations(rows, columns, x.shape[-1])
    return turned(x, *(jnp.asarray(wave, x.dtype) for wave in (np.cos(angles), np.sin(angles))))


def turned(
    x: Float[Array, "b n heads c"], cos: Float[Array, "n half"], sin: Float[Array, "n half"]
) -> Float[Array, "b n heads c"]:
    """Rotates each pair of neighbouring channels by the angle of these cosines and sines."""
    cos, sin = cos[None, :, None], sin[None, :, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def rotations(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns the angles of the pairs of `width` channels at each patch, (rows·columns, width/2), float64.

    The first half of the pairs turns by the patch's row and the last half by its column, both by 1 down to about 1e-4
    rad a patch.   [Fang et al. 2024, EVA-02, sec. 2.1; Yao et al. 2025, LightningDiT]
    """
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.concatenate([place.ravel()[:, None] * frequencies[None] for place in (row, column)], axis=1)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Sines and cosines of each patch's column, then of its row, (rows·columns, width), float64.

    Frequencies from 1 down to about 1e-4 rad a patch, width/4 of them.   [Vaswani et al. 2017, in two dimensions]
    """
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))

    def waves(places: np.ndarray) -> np.ndarray:
        angles = places.ravel()[:, None] * frequencies[None]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.concatenate([waves(column), waves(row)], axis=1)
