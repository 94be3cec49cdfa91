"""iMF's transformer: conditions are tokens beside the patches, and a second head gives the velocity at one time."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.nets.base import Network, block_class
from cmjax.nets.blocks import ATTENTIONS, attend
from cmjax.nets.dit_blocks import SMALL, RMSNorm, TimeEmbedding, normed, rotations, turned
from cmjax.nets.layers import Dropout, FanIn, Pointwise, Xavier, from_patches, to_patches
from cmjax.nets.magnitude import Normal
from cmjax.ranges import Depth, Width

OF_EMBEDDINGS, IN_BLOCKS = FanIn(3**0.5), FanIn(0.32 * 3**0.5)
"""Initialisers of variance 1/fan_in and 0.32²/fan_in, as in the released code."""
LEAST_SCALE = 0.01
"""Smaller scales of guidance count as this one: 1 − 1/ω has no value at 0."""


class IMFDiT(Network):
    """F(x, t − s) of iMF and of pMF, zero at initialisation, given its conditions as tokens.

    The sequence is of tokens for the class, the scale of guidance, its first and its last time, and t − s, in that
    order, each a learned vector plus the condition's embedding, and of the patches. Blocks have no other condition. Of
    the scale ω the embedding sees 1 − 1/ω. The network never sees t: its preconditioning is `linear_gap`, or
    `clean_gap` where it gives images as pMF's does.   [Geng et al. 2025, iMF; Lu et al. 2026, pMF; the released code]

    The fields' defaults are iMF-B/2, which has `guided`, `guided_interval` and `velocity_head` as well: `Network`
    explains these. The class embedding has one entry more, for no class.

    patch: height and width of a patch, which must divide those of x. bottleneck: > 0 puts a layer of so many features
        between a patch and the width, pMF's 128 or 256. width, depth: of the transformer. heads: of attention.
    head_depth: how many of the last blocks belong to F alone; the velocity head has as many of its own.
    mlp_ratio: width of a block's SwiGLU over `width`, rounded down.
    class_tokens, guidance_tokens, interval_tokens, time_tokens: how many of each; `interval_tokens` for each end.
    rope: queries and keys are rotated by their place among all "tokens", or those of "patches" alone by row and column.
    learned_positions: adds a learned vector at each place, for one size of x.
    rounded_frequencies, attention, remat: as of `DiT`.
    """

    patch: Width = 2
    bottleneck: int = 0
    width: Width = 768
    depth: Depth = 12
    heads: Width = 12
    head_depth: int = 8
    mlp_ratio: float = 8 / 3
    class_tokens: Width = 8
    guidance_tokens: Width = 4
    interval_tokens: Width = 2
    time_tokens: Width = 4
    rope: str = "tokens"
    learned_positions: bool = False
    rounded_frequencies: bool = False
    attention: str = "xla"
    remat: bool = False

    choices: ClassVar = {"attention": ATTENTIONS, "rope": ("tokens", "patches")}
    positions_init = staticmethod(SMALL)

    def check(self, x: Array) -> None:
        for name in ("patch", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.two_times:
            raise ValueError("two_times=True: the network takes one time, t − s")
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"patch={self.patch} does not divide height and width, {x.shape[1]}x{x.shape[2]}")
        # rotations turn pairs of a head's channels; by row and column, half of the pairs each
        pairs = 2 if self.rope == "tokens" else 4
        if self.width % (pairs * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of {pairs}·heads={pairs * self.heads}")
        if not 0 <= self.head_depth <= self.depth:
            raise ValueError(f"head_depth={self.head_depth} must be from 0 to depth={self.depth}")

    def guidance_seen(self, guidance: Float[Array, " b"]) -> Float[Array, " b"]:
        return 1 - 1 / jnp.maximum(guidance, LEAST_SCALE)

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        init = {"first_init": OF_EMBEDDINGS, "last_init": OF_EMBEDDINGS}
        embedding = partial(TimeEmbedding, self.width, 1.0, rounded=self.rounded_frequencies, **init)
        counts = {"guidance": self.guidance_tokens, "first": self.interval_tokens, "last": self.interval_tokens}
        parts = []
        if self.num_classes:
            none = self.num_classes
            table = nn.Embed(none + 1, self.width, embedding_init=Normal(self.width**-0.5), name="label")
            classes = table(jnp.where(label < 0, none, label))
            parts.append(Tokens(self.class_tokens, self.width, name="label_tokens")(classes))
        # (b, count, width) each, in the order of the released code's sequence
        for name, value in (*scalars.items(), ("time", c_noise)):
            tokens = Tokens(counts.get(name, self.time_tokens), self.width, name=f"{name}_tokens")
            parts.append(tokens(embedding(name=f"{name}_embedding")(value)))
        return jnp.concatenate(parts, axis=1)

    def body(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b m e"], deterministic: bool
    ) -> Float[Array, "b h w d"]:
        grid = to_patches(x.astype(self.dtype), self.patch)
        b, rows, columns, _ = grid.shape
        h = grid.reshape(b, rows * columns, grid.shape[-1])
        if self.bottleneck:
            h = Pointwise(self.bottleneck, dtype=self.dtype, name="bottleneck")(h)
        h = Pointwise(self.width, dtype=self.dtype, name="patches")(h)
        # tokens before the patches, which attend and give no pixels
        prefix = embedding.shape[1]
        h = jnp.concatenate([embedding.astype(self.dtype), h], axis=1)
        if self.learned_positions:
            h += self.param("positions", self.positions_init, h.shape[1:]).astype(self.dtype)[None]
        angles = self._angles(prefix, rows, columns)
        waves = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)]), self.dtype)

        def blocks(h: Array, name: str, count: int) -> Array:
            kind, hidden = block_class(TokenBlock, remat=self.remat), int(self.mlp_ratio * self.width)
            for i in range(count):
                fields = (self.heads, hidden, self.dropout, self.attention, self.dtype)
                h = kind(*fields, name=f"{name}_{i}")(h, waves, deterministic)
            return h

        def last(h: Array, name: str) -> Array:
            features = self.patch**2 * x.shape[-1]
            h = normed(h[:, prefix:], "rms", f"{name}_norm")
            h = Pointwise(features, Xavier(0.0), dtype=self.dtype, name=name)(h)
            return from_patches(h.reshape(b, rows, columns, features), self.patch)

        # both heads go on from the same shared blocks
        h = blocks(h, "block", self.depth - self.head_depth)
        out = last(blocks(h, "head", self.head_depth), "out")
        if not self.velocity_head:
            return out
        velocity = last(blocks(h, "velocity_head", self.head_depth), "velocity")
        return jnp.concatenate([out, velocity], axis=-1)

    def _angles(self, prefix: int, rows: int, columns: int) -> np.ndarray:
        """Gives the angles of the pairs of a head's channels at each place of the sequence, in rad, float64."""
        channels, patches = self.width // self.heads, rows * columns
        if self.rope == "tokens":
            frequencies = 10_000.0 ** -(np.arange(channels // 2) / (channels // 2))
            return np.arange(prefix + patches)[:, None] * frequencies[None]
        # the tokens before the patches are not rotated
        return np.concatenate([np.zeros((prefix, channels // 2)), rotations(rows, columns, channels)])


class Tokens(nn.Module):
    """(b, width) -> (b, count, width): the embedding of a condition, plus a learned vector for each token."""

    count: int
    width: int

    @property
    def tokens_init(self) -> Normal:
        return Normal(self.width**-0.5)

    @nn.compact
    def __call__(self, embedding: Float[Array, "b width"]) -> Float[Array, "b count width"]:
        tokens = self.param("tokens", self.tokens_init, (self.count, self.width))
        return tokens[None] + embedding[:, None]


class TokenBlock(nn.Module):
    """h + g·attention(n₁(h)), then h + m·mlp(n₂(h)), RMS norms nᵢ, with learned vectors g and m that start at zero.

    No layer has a bias. hidden: width of the SwiGLU. waves: cosines and sines of the rotations of queries and keys,
    which pass an RMS norm for each head before them.
    """

    heads: int
    hidden: int
    dropout: float
    attention: str
    dtype: Any

    attention_gate_init = staticmethod(nn.initializers.zeros)
    mlp_gate_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], waves: Float[Array, "2 n half"], deterministic: bool
    ) -> Float[Array, "b n width"]:
        width = h.shape[-1]
        gate = self.param("attention_gate", self.attention_gate_init, (width,)).astype(h.dtype)
        mlp_gate = self.param("mlp_gate", self.mlp_gate_init, (width,)).astype(h.dtype)
        attended = self._attended(normed(h, "rms", "norm_0"), waves)
        h += gate[None, None] * Dropout(self.dropout)(attended, deterministic)
        a, b = jnp.split(self._dense(2 * self.hidden, "mlp_0")(normed(h, "rms", "norm_1")), 2, axis=-1)
        inner = self._dense(width, "mlp_1")(nn.silu(a) * b)
        return h + mlp_gate[None, None] * Dropout(self.dropout)(inner, deterministic)

    def _attended(self, h: Array, waves: Array) -> Array:
        b, n, width = h.shape
        qkv = self._dense(3 * width, "qkv")(h)
        q, k, v = (part.reshape(b, n, self.heads, width // self.heads) for part in jnp.split(qkv, 3, axis=-1))
        q, k = turned(RMSNorm(name="q_norm")(q), *waves), turned(RMSNorm(name="k_norm")(k), *waves)
        attended = attend(q, k, v, implementation=self.attention)
        return self._dense(width, "proj")(attended.reshape(b, n, width))

    def _dense(self, features: int, name: str) -> Pointwise:
        return Pointwise(features, IN_BLOCKS, use_bias=False, dtype=self.dtype, name=name)
