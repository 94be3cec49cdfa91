"""A network of matrix products only: fast on a CPU, for small images and for points."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class MLP(nn.Module):
    """Residual MLP on the flattened sample; each block is modulated by the time (and class) embedding.

    F(x, c_noise) for x (b, ...) and c_noise (b,), of the shape of x. `num_classes` > 0 adds an embedding of `label`
    (b,), -1 or None for no class. The output layer starts at zero.
    """

    width: int = 512
    depth: int = 4
    frequencies: int = 32
    embedding_width: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *dims"],
        c_noise: Float[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b *dims"]:
        if label is not None and not self.num_classes:
            raise ValueError("label was given to a network with num_classes=0")
        embedding = nn.Dense(self.embedding_width, dtype=self.dtype)(_waves(c_noise, self.frequencies))
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
        return out.reshape(x.shape).astype(x.dtype)


def _waves(c_noise: Float[Array, " b"], frequencies: int) -> Float[Array, "b f"]:
    """cos and sin of c_noise at geometric frequencies from 1/4 to 16: smooth over the range of ln(t)/4."""
    angles = c_noise[:, None] * jnp.geomspace(0.25, 16.0, frequencies)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), c_noise[:, None]], axis=1)
