"""Blocks of the conditional U-Net: transformers that attend to a context, and residual blocks that see the time.

Modules are named as diffusers names them. Arrays are NHWC.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.nets.autoencoder import ACTIVATIONS, BlockBase, Resnet
from cmjax.nets.blocks import attend
from cmjax.nets.layers import FanIn, GroupNorm, Pointwise, upsample


class TimedResnet(Resnet, kw_only=True):
    """A `Resnet` with another eps of its norms."""

    eps: float = 1e-5

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.eps, self.groups, self.dtype, name=name)


class CrossAttention(nn.Module):
    """out(attend(q(h), k(c), v(c))) to a context c, h itself where there is none. heads: of width/heads channels."""

    heads: int
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], context: Float[Array, "b m d"] | None = None
    ) -> Float[Array, "b n width"]:
        b, _, width = h.shape
        context = h if context is None else context
        q, k, v = (
            Pointwise(width, dtype=self.dtype, use_bias=False, name=f"to_{name}")(source)
            for name, source in (("q", h), ("k", context), ("v", context))
        )
        # (b, n or m, heads, c): keys and values are as many as the context has tokens
        q, k, v = (part.reshape(b, -1, self.heads, width // self.heads) for part in (q, k, v))
        attended = attend(q, k, v, implementation=self.attention).reshape(h.shape)
        return Pointwise(width, dtype=self.dtype, name="to_out_0")(attended)


class FeedForward(nn.Module):
    """out(h·gelu(gate)), where [h, gate] is a linear map to eight widths: GEGLU.   [Shazeer 2020]"""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        width = h.shape[-1]
        values, gate = jnp.split(Pointwise(8 * width, dtype=self.dtype, name="net_0_proj")(h), 2, axis=-1)
        return Pointwise(width, dtype=self.dtype, name="net_2")(values * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """h + attention of h to itself, + attention to the context, + a feed-forward network, each of a layer norm of h."""

    heads: int
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"], context: Float[Array, "b m d"]) -> Float[Array, "b n width"]:
        attends = partial(CrossAttention, self.heads, self.attention, self.dtype)
        norm = partial(nn.LayerNorm, 1e-5, dtype=self.dtype)
        h = h + attends(name="attn1")(norm(name="norm1")(h))
        h = h + attends(name="attn2")(norm(name="norm2")(h), context)
        return h + FeedForward(self.dtype, name="ff")(norm(name="norm3")(h))


class Transformer(nn.Module, kw_only=True):
    """x + out(blocks(in(norm(x)))), the positions of a feature map as tokens.

    layers: blocks. heads: of each attention; they have c/heads channels, rounded down, of c in x.
    """

    layers: int
    heads: int
    groups: int
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"]) -> Float[Array, "b h w c"]:
        b, height, w, c = x.shape
        inner = c // self.heads * self.heads
        h = GroupNorm(1e-6, self.groups, self.dtype, name="norm")(x).reshape(b, height * w, c)
        h = Pointwise(inner, dtype=self.dtype, name="proj_in")(h)
        for i in range(self.layers):
            h = TransformerBlock(self.heads, self.attention, self.dtype, name=f"transformer_blocks_{i}")(h, context)
        return x + Pointwise(c, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)


class Upsample(BlockBase):
    """The size of the map that comes next, by points that repeat, then a convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b h_out w_out c"]:
        # an odd size was rounded up when it was halved: twice that is one row or column too many
        return self.conv(x.shape[-1], "conv")(upsample(x, (1, 1))[:, :height, :width])


class Downsample(BlockBase, kw_only=True):
    """Half the size by a stride, with a convolution. padding: zeros on each side; 0 has them right and below alone."""

    padding: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c"]:
        if not self.padding:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x.shape[-1], "conv", padding=self.padding, stride=2)(x)


class TimestepEmbedding(nn.Module):
    """linear_2(act(linear_1(h))). A condition adds its linear map to h first."""

    width: int
    activation: str = "silu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b d"], condition: Float[Array, "b g"] | None = None) -> Float[Array, "b width"]:
        if condition is not None:
            # started as PyTorch starts a layer: a student has it where its teacher has none
            seen = Pointwise(h.shape[-1], FanIn(), dtype=self.dtype, use_bias=False, name="cond_proj")
            h = h + seen(condition)
        h = ACTIVATIONS[self.activation](Pointwise(self.width, dtype=self.dtype, name="linear_1")(h))
        return Pointwise(self.width, dtype=self.dtype, name="linear_2")(h)


def time_waves(time: Float[Array, " b"], size: int, *, cosines_first: bool = True, shift: float = 0) -> Array:
    """Cosines and sines of a time in steps, (b, size), of 1 down to about 1e-4 rad a step.   [Ho et al. 2020]

    cosines_first: the order of the two halves. shift: 1 makes the lowest frequency 1e-4 rad exactly.
    """
    exponents = np.arange(size // 2, dtype=np.float32) * -np.float32(np.log(10_000)) / np.float32(size // 2 - shift)
    return _waves(time, exponents, size, cosines_first)


def guidance_waves(scale: Float[Array, " b"], size: int) -> Array:
    """Embeds a scale w of guidance as an LCM's U-Net takes it, (b, size): sines and cosines of 1000·w. w = 0: none.

    [Luo et al. 2023, latent consistency models, the released code]
    """
    exponents = np.arange(size // 2, dtype=np.float32) * -(np.float32(np.log(10_000)) / np.float32(size // 2 - 1))
    return _waves(1000 * scale.astype(jnp.float32), exponents, size, cosines_first=False)


def _waves(values: Array, exponents: np.ndarray, size: int, cosines_first: bool) -> Array:
    """The waves of values times exp(exponents), and a zero at the end of an odd size.

    Exponents are rounded as the released code rounds them: of values of 10⁴ its waves differ by up to 7e-4 from exact
    ones, and networks have learned these.
    """
    angles = values.astype(jnp.float32)[:, None] * jnp.asarray(np.exp(np.float64(exponents)), jnp.float32)[None]
    halves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.pad(jnp.concatenate(halves if cosines_first else halves[::-1], axis=1), ((0, 0), (0, size % 2)))
