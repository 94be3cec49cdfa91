"""DiT, the diffusion transformer: attention over patches, conditioned through layer norms that start as gates shut."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.nets.base import Network, block_class
from cmjax.nets.blocks import ATTENTIONS, attend
from cmjax.nets.layers import Dropout, Pointwise, Xavier, from_patches, to_patches
from cmjax.nets.magnitude import Normal
from cmjax.ranges import Depth, Width

ZEROS, SMALL = nn.initializers.zeros, Normal(0.02)

SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""The published sizes: DiT-XL/2 is `DiT(patch=2, **SIZES["XL"])`.   [Peebles & Xie 2023, table 1]"""


class DiT(Network):
    """DiT's F(x, c_noise), zero at initialisation (adaLN-Zero).   [Peebles & Xie 2023, sec. 3]

    The fields' defaults are DiT-B/2. The class embedding has one entry more, for no class. `Network` explains the
    fields that are not explained here.

    patch: height and width of a patch, which must divide those of x. width, depth: of the transformer.
    heads: of attention, a divisor of width. mlp_ratio: width of a block's hidden layer over `width`.
    time_scale: factor of c_noise before its sines and cosines at 1e-4 to 1 rad. DiT's own times run to 1000; tangent
        losses differentiate by the time and want it small.
    out_channels: by default those of x. attention: "xla" or "cudnn" (see `attend`).
    remat: recompute each block in the backward pass.
    """

    patch: Width = 2
    width: Width = 768
    depth: Depth = 12
    heads: Width = 12
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    out_channels: int | None = None
    attention: str = "xla"
    remat: bool = False

    choices: ClassVar = {"attention": ATTENTIONS}

    def check(self, x: Array) -> None:
        for name in ("patch", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"patch={self.patch} does not divide height and width, {x.shape[1]}x{x.shape[2]}")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4: sine and cosine of two coordinates")

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        embedding = TimeEmbedding(self.width, self.time_scale, name="time")(c_noise)
        for name, value in scalars.items():
            embedding += TimeEmbedding(self.width, self.time_scale, ZEROS, name=name)(value)
        if self.num_classes:
            none = self.num_classes
            index = jnp.where(label < 0, none, label)
            embedding += nn.Embed(none + 1, self.width, embedding_init=SMALL, name="label")(index)
        return nn.silu(embedding)

    def body(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h w d"]:
        grid = to_patches(x.astype(self.dtype), self.patch)
        b, rows, columns, _ = grid.shape
        h = Pointwise(self.width, dtype=self.dtype, name="patches")(grid.reshape(b, rows * columns, grid.shape[-1]))
        h += jnp.asarray(positions(rows, columns, self.width), self.dtype)[None]
        kind = block_class(Block, remat=self.remat)
        for i in range(self.depth):
            block = kind(self.heads, self.mlp_ratio, self.dropout, self.attention, self.dtype, name=f"block_{i}")
            h = block(h, embedding, deterministic)
        modulation = nn.Dense(2 * self.width, kernel_init=ZEROS, dtype=self.dtype, name="out_modulation")(embedding)
        h = modulated_norm(h, *jnp.split(modulation[:, None], 2, axis=-1))
        features = self.patch**2 * self.channels_out(x)
        h = Pointwise(features, Xavier(0.0), dtype=self.dtype, name="out")(h)
        return from_patches(h.reshape(b, rows, columns, features), self.patch)


class TimeEmbedding(nn.Module):
    """(b,) -> (b, width): 256 cosines and sines, from 1e-4 to 1 rad per unit of scale·time, and two layers."""

    width: int
    scale: float
    last_init: Any = SMALL

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b width"]:
        frequencies = jnp.asarray(10_000 ** -(np.arange(128) / 128), jnp.float32)
        # Cosines of large angles: float32 whatever the dtype of computation.
        angles = self.scale * time.astype(jnp.float32)[:, None] * frequencies[None]
        h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
        h = nn.silu(nn.Dense(self.width, kernel_init=SMALL, name="dense_0")(h))
        return nn.Dense(self.width, kernel_init=self.last_init, name="dense_1")(h)


class Block(nn.Module):
    """h + g₁(e)·attention(n₁(h)), then h + g₂(e)·mlp(n₂(h)): the layer norms nᵢ are scaled and shifted by e as well.

    All six maps of the embedding e start at zero, and so the block as the identity.
    """

    heads: int
    mlp_ratio: float
    dropout: float
    attention: str
    dtype: Any

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b width"], deterministic: bool
    ) -> Float[Array, "b n width"]:
        width = h.shape[-1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
            nn.Dense(6 * width, kernel_init=ZEROS, dtype=self.dtype, name="modulation")(embedding)[:, None], 6, axis=-1
        )
        attended = self._attended(modulated_norm(h, shift, scale))
        h += gate * Dropout(self.dropout)(attended, deterministic)
        inner = self._dense(int(self.mlp_ratio * width), "mlp_0")(modulated_norm(h, mlp_shift, mlp_scale))
        inner = self._dense(width, "mlp_1")(nn.gelu(inner, approximate=True))
        return h + mlp_gate * Dropout(self.dropout)(inner, deterministic)

    def _attended(self, h: Array) -> Array:
        b, n, width = h.shape
        qkv = self._dense(3 * width, "qkv")(h)
        q, k, v = (part.reshape(b, n, self.heads, width // self.heads) for part in jnp.split(qkv, 3, axis=-1))
        attended = attend(q, k, v, implementation=self.attention)
        return self._dense(width, "proj")(attended.reshape(b, n, width))

    def _dense(self, features: int, name: str) -> Pointwise:
        return Pointwise(features, dtype=self.dtype, name=name)


def modulated_norm(
    h: Float[Array, "b n width"], shift: Float[Array, "b 1 width"], scale: Float[Array, "b 1 width"]
) -> Float[Array, "b n width"]:
    """Layer norm without parameters of its own, times 1 + scale, plus shift; statistics in float32."""
    h32 = h.astype(jnp.float32)
    centred = h32 - jnp.mean(h32, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
    return normed.astype(h.dtype) * (1 + scale) + shift


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
