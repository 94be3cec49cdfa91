"""DiT, the diffusion transformer: attention over patches, conditioned through layer norms that start as gates shut."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.base import Network, block_class
from cmjax.nets.blocks import ATTENTIONS
from cmjax.nets.dit_blocks import SMALL, ZEROS, Block, TimeEmbedding, modulated, normed, positions
from cmjax.nets.layers import Pointwise, Xavier, from_patches, to_patches
from cmjax.ranges import Depth, Width

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
    norm: "layer", without parameters, or "rms", h/√(mean h² + 1e-6) with learned scales   [Zhang & Sennrich 2019].
    qk_norm: each head's queries and keys pass an RMS norm with learned scales   [Henry et al. 2020].
    rope: queries and keys are rotated by their row and column (see `rotations`).
    mlp: "gelu", or "swiglu", silu(a)·b of two layers of two thirds of the width   [Shazeer 2020].
    learned_positions: what is added to the patches is learned, for one size of x; else it is `positions`.
    time_scale: factor of c_noise before its sines and cosines at 1e-4 to 1 rad. DiT's own times run to 1000; tangent
        losses differentiate by the time and want it small.
    rounded_frequencies: `ROUNDED_FREQUENCIES` of times, as the released code computes them.
    second_time_from: > 0, with two_times: the blocks before this one see the first time, it and those after it, and the
        last layer, the second time in place of the first, by one embedding: no parameter more than with one time. Its
        preconditioning is `linear_ends`.   [Lee et al. 2025, decoupled MeanFlow]
    out_channels: by default those of x. attention: "xla" or "cudnn" (see `attend`).
    remat: recompute each block in the backward pass.
    """

    patch: Width = 2
    width: Width = 768
    depth: Depth = 12
    heads: Width = 12
    mlp_ratio: float = 4.0
    norm: str = "layer"
    qk_norm: bool = False
    rope: bool = False
    mlp: str = "gelu"
    learned_positions: bool = False
    time_scale: float = 1000.0
    rounded_frequencies: bool = False
    second_time_from: int = 0
    out_channels: int | None = None
    attention: str = "xla"
    remat: bool = False

    choices: ClassVar = {"attention": ATTENTIONS, "norm": ("layer", "rms"), "mlp": ("gelu", "swiglu")}
    positions_init = staticmethod(SMALL)

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
        if self.second_time_from and not self.two_times:
            raise ValueError(f"second_time_from={self.second_time_from} is of a network with two_times=True")
        if self.second_time_from > self.depth:
            raise ValueError(f"second_time_from={self.second_time_from} must be at most depth={self.depth}")
        if self.rope and self.width % (4 * self.heads):
            raise ValueError(f"rope=True: width={self.width} must be a multiple of 4·heads={4 * self.heads}")

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        embed = partial(TimeEmbedding, self.width, self.time_scale, rounded=self.rounded_frequencies)
        of_time, times, added = embed(name="time"), [c_noise], dict(scalars)
        if self.second_time_from:
            times.append(added.pop("time_s"))
        # (b, times, width): of one time, or of both for `second_time_from`
        embedding = jnp.stack([of_time(time) for time in times], axis=1)
        for name, value in added.items():
            embedding += embed(last_init=ZEROS, name=name)(value)[:, None]
        if self.num_classes:
            # the table's last entry is that of no class
            none = self.num_classes
            index = jnp.where(label < 0, none, label)
            embedding += nn.Embed(none + 1, self.width, embedding_init=SMALL, name="label")(index)[:, None]
        # once for all: the modulation of every block begins with it
        return nn.silu(embedding)

    def body(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b times e"], deterministic: bool
    ) -> Float[Array, "b h w d"]:
        grid = to_patches(x.astype(self.dtype), self.patch)
        b, rows, columns, _ = grid.shape
        h = Pointwise(self.width, dtype=self.dtype, name="patches")(grid.reshape(b, rows * columns, grid.shape[-1]))
        if self.learned_positions:
            places = self.param("positions", self.positions_init, (rows * columns, self.width))
        else:
            places = positions(rows, columns, self.width)
        h += jnp.asarray(places, self.dtype)[None]
        # with one embedding both are the same
        first, last = embedding[:, 0], embedding[:, -1]
        kind = block_class(Block, remat=self.remat)
        options = {"norm": self.norm, "qk_norm": self.qk_norm, "mlp": self.mlp}
        options["grid"] = (rows, columns) if self.rope else None
        for i in range(self.depth):
            block = kind(
                self.heads, self.mlp_ratio, self.dropout, self.attention, self.dtype, name=f"block_{i}", **options
            )
            h = block(h, first if i < self.second_time_from else last, deterministic)
        # the last layer's kernel is zero below, so that F starts at zero
        modulation = nn.Dense(2 * self.width, kernel_init=ZEROS, dtype=self.dtype, name="out_modulation")(last)
        h = modulated(normed(h, self.norm, "out_norm"), *jnp.split(modulation[:, None], 2, axis=-1))
        features = self.patch**2 * self.channels_out(x)
        h = Pointwise(features, Xavier(0.0), dtype=self.dtype, name="out")(h)
        return from_patches(h.reshape(b, rows, columns, features), self.patch)
