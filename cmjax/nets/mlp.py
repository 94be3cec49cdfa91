"""A network of matrix products only: fast on a CPU, for small images and for points."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmjax.nets.blocks import with_weight
from cmjax.nets.inputs import added_scalars

LOWEST = 0.25
"""The lowest frequency of the waves, rad per unit of time."""


class MLP(nn.Module):
    """Residual MLP on the flattened sample; each block is modulated by the time (and class) embedding.

    F(x, c_noise) for x (b, ...) and c_noise (b,), of the shape of x. The output layer starts at zero.

    width: of a block; depth: their number. embedding_width: of what modulates the blocks.
    frequencies: of c_noise's waves, from 1/4 to `max_frequency` rad per unit. The default of 16 is made for ln(t)/4;
        where c_noise is t itself, as on the TrigFlow path, 4 or so keeps the embedding's derivative small, as tangent
        losses want it.
    dropout: probability, inside each block. num_classes: > 0 accepts `label`.
    two_times: the network takes a second time, `c_noise_s`, as flow maps do. guided: it takes `guidance`, a scale of
        classifier-free guidance. What is added for them starts at zero (see `added_scalars`).
    weight_head: > 0 adds a `WeightHead` of that many features. dtype: of computation; parameters are float32.
    """

    width: int = 512
    depth: int = 4
    frequencies: int = 32
    embedding_width: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    max_frequency: float = 16.0
    two_times: bool = False
    guided: bool = False
    weight_head: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *dims"],
        c_noise: Float[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        c_noise_s: Float[Array, " b"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        deterministic: bool = True,
        return_weight: bool = False,
    ) -> Any:
        """F (b, ...); with `return_weight` the pair of it and the weight head's w (b,).

        x: the scaled noised sample. c_noise: (b,) the network's time. label: (b,), -1 or None for no class.
        c_noise_s: (b,) the second time, of a network with two_times. guidance: (b,) the scale, of one with guided.
        deterministic: False draws dropout masks from the rng "dropout".
        """
        if label is not None and not self.num_classes:
            raise ValueError("label was given to a network with num_classes=0")
        if self.max_frequency <= LOWEST:
            raise ValueError(f"max_frequency={self.max_frequency} must be above the lowest frequency, {LOWEST}")
        scalars = added_scalars(self, c_noise, c_noise_s, guidance)
        embedding = nn.Dense(self.embedding_width, dtype=self.dtype)(self._waves(c_noise))
        for name, value in scalars.items():
            zero_first = nn.Dense(self.embedding_width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=name)
            embedding += zero_first(self._waves(value))
        if self.num_classes:
            classes = jnp.full(x.shape[0], -1) if label is None else label
            one_hot = jax.nn.one_hot(classes, self.num_classes)  # all zeros for -1
            embedding += nn.Dense(self.embedding_width, use_bias=False, dtype=self.dtype, name="classes")(one_hot)
        embedding = nn.silu(embedding)
        h = nn.Dense(self.width, dtype=self.dtype)(x.reshape(x.shape[0], -1).astype(self.dtype))
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype)(embedding), 2, axis=1)
            inner = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(h) * (1 + scale) + shift
            inner = nn.silu(nn.Dense(self.width, dtype=self.dtype)(inner))
            inner = nn.Dropout(self.dropout, deterministic=deterministic)(inner)
            h += nn.Dense(self.width, dtype=self.dtype)(inner)
        out = nn.Dense(x[0].size, dtype=self.dtype, kernel_init=nn.initializers.zeros)(nn.silu(h))
        out = out.reshape(x.shape).astype(x.dtype)
        return with_weight(out, c_noise, features=self.weight_head, return_weight=return_weight)

    def _waves(self, time: Float[Array, " b"]) -> Float[Array, "b f"]:
        """cos and sin of a time at geometric frequencies, and itself."""
        angles = time[:, None] * jnp.geomspace(LOWEST, self.max_frequency, self.frequencies)[None]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), time[:, None]], axis=1)
