"""A network of matrix products only: fast on a CPU, for small images and for points."""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.nets.base import Network
from cmjax.ranges import Depth, Width

LOWEST = 0.25
"""The lowest frequency of the waves, rad per unit of time."""


class MLP(Network):
    """Residual MLP on the flattened sample; each block is modulated by the time (and class) embedding.

    x has any shape (b, ...). The output layer starts at zero. `Network` explains the fields that are not explained
    here.

    width: of a block; depth: their number. embedding_width: of what modulates the blocks.
    frequencies: of c_noise's waves, from 1/4 to `max_frequency` rad per unit. The default of 16 is made for ln(t)/4;
        where c_noise is t itself, as on the TrigFlow path, 4 or so keeps the embedding's derivative small, as tangent
        losses want it.
    """

    any_shape: ClassVar[bool] = True

    width: Width = 512
    depth: Depth = 4
    frequencies: Width = 32
    embedding_width: Width = 64
    max_frequency: float = 16.0

    def check(self, x: Array) -> None:
        if self.max_frequency <= LOWEST:
            raise ValueError(f"max_frequency={self.max_frequency} must be above the lowest frequency, {LOWEST}")

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        embedding = nn.Dense(self.embedding_width, dtype=self.dtype)(self._waves(c_noise))
        for name, value in scalars.items():
            zero_first = nn.Dense(self.embedding_width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=name)
            embedding += zero_first(self._waves(value))
        if self.num_classes:
            one_hot = jax.nn.one_hot(label, self.num_classes)  # all zeros for -1
            embedding += nn.Dense(self.embedding_width, use_bias=False, dtype=self.dtype, name="classes")(one_hot)
        return nn.silu(embedding)

    def body(
        self, x: Float[Array, "b *dims"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b *shape"]:
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        h = nn.Dense(self.width, dtype=self.dtype)(flat.astype(self.dtype))
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype)(embedding), 2, axis=1)
            inner = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(h) * (1 + scale) + shift
            inner = nn.silu(nn.Dense(self.width, dtype=self.dtype)(inner))
            inner = nn.Dropout(self.dropout, deterministic=deterministic)(inner)
            h += nn.Dense(self.width, dtype=self.dtype)(inner)
        shape = (*x.shape[:-1], self.channels_out(x))
        out = nn.Dense(math.prod(shape[1:]), dtype=self.dtype, kernel_init=nn.initializers.zeros)(nn.silu(h))
        return out.reshape(shape)

    def _waves(self, time: Float[Array, " b"]) -> Float[Array, "b f"]:
        """cos and sin of a time at geometric frequencies, and itself."""
        # of the host: computed in a program they are rounded as its compiler orders them, by up to 1e-6 of an angle
        frequencies = np.geomspace(LOWEST, self.max_frequency, self.frequencies)
        angles = time[:, None] * jnp.asarray(frequencies, jnp.result_type(float))[None]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), time[:, None]], axis=1)
