"""EDM2, the magnitude-preserving U-Net: no biases, no norms with parameters, no drift of magnitudes in training."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.base import block_class
from cmjax.nets.blocks import attend
from cmjax.nets.layers import Dropout, Filter, downsample, upsample
from cmjax.nets.magnitude import Fourier, MPConv, MPLinear, mp_concat, mp_silu, mp_sum, normalize
from cmjax.nets.unet_base import UNetBase
from cmjax.ranges import Depth, Width


class EDM2(UNetBase):
    """EDM2's F(x, c_noise).   [Karras et al. 2024, config G, fig. 21]

    The fields' defaults are EDM2-S for ImageNet-64; `SIZES` below has the others. Training normalises the kernels after
    every update (`magnitude.normalize_weights`). The weight head is normalised, too; released networks have 128
    features of it. `UNetBase` and `Network` explain the fields that are not explained here.

    head_channels: width of an attention head. resample_filter: taps for halving and doubling.
    noise_channel_mult, embedding_channel_mult: widths of the Fourier features of c_noise and of the embedding over
        `channels`; 0 for those of the first and of the widest level.
    residual_balance, attention_balance: fraction of the new in each sum; label_balance: of the class in the embedding;
        concat_balance: of the skip connection in the decoder's input.
    clip_act: bound of every block's output; 0 for none.
    """

    channels: Width = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: Depth = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: Width = 64
    resample_filter: Filter = (1, 1)
    noise_channel_mult: int = 0
    embedding_channel_mult: int = 0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    label_balance: float = 0.5
    concat_balance: float = 0.5
    clip_act: float = 256.0

    normalized_head = True
    # F starts at zero by its gain: a kernel of unit norm cannot be zero
    out_gain_init = staticmethod(nn.initializers.zeros)

    def check(self, x: Array) -> None:
        super().check(x)
        for name in ("residual_balance", "attention_balance", "label_balance", "concat_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.head_channels < 1:
            raise ValueError(f"head_channels={self.head_channels} must be at least 1")

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        width = self.channels * (self.embedding_channel_mult or max(self.channel_mult))
        waves = Fourier(self.channels * (self.noise_channel_mult or self.channel_mult[0]), name="fourier")
        embedding, variance = MPLinear(width, name="noise")(waves(c_noise)), 1.0
        for name, value in scalars.items():
            added, gain = AddedLinear(width, name=name)(waves(value))
            embedding, variance = embedding + added, variance + gain**2
        # each term adds gain² to a variance of 1, which the sum must keep
        if scalars:
            embedding /= jnp.sqrt(variance)
        if self.num_classes:
            one_hot = jax.nn.one_hot(label, self.num_classes)  # -1 encodes to zeros.
            # √classes: a one-hot vector of mean square 1
            classes = MPLinear(width, name="label")(one_hot * self.num_classes**0.5)
            embedding = mp_sum(embedding, classes, self.label_balance)
        return mp_silu(embedding)

    def stem(self, x: Array) -> Array:
        # Without biases, a constant is what the first convolution can make an offset of.
        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
        return MPConv(self.channels * self.channel_mult[0], dtype=self.dtype, name="encoder_0_conv")(x)

    def block(self, name: str, width: int, resample: str, attends: bool) -> Callable[[Array, Array, bool], Array]:
        if attends and width % self.head_channels:
            raise ValueError(f"head_channels={self.head_channels} does not divide the {width} channels of a level")
        return block_class(Block, remat=self.remat)(
            width, norm_first=name.startswith("encoder"), resample=resample, taps=self.resample_filter,
            heads=width // self.head_channels if attends else 0, dropout=self.dropout,
            residual_balance=self.residual_balance, attention_balance=self.attention_balance,
            clip_act=self.clip_act, attention=self.attention, dtype=self.dtype, name=name,
        )  # fmt: skip

    def join(self, h: Array, skip: Array) -> Array:
        return mp_concat(h, skip, self.concat_balance)

    def out(self, levels: list[Array], channels: int) -> Array:
        out_gain = self.param("out_gain", self.out_gain_init, ())
        return MPConv(channels, dtype=self.dtype, name="out_conv")(levels[-1], out_gain)


class AddedLinear(nn.Module):
    """gain·linear(waves), and the gain, which starts at zero: weights of norm 1 cannot."""

    features: int

    gain_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(self, waves: Float[Array, "b f"]) -> tuple[Float[Array, "b e"], Float[Array, ""]]:
        gain = self.param("gain", self.gain_init, ())
        return MPLinear(self.features, name="linear")(waves, gain), gain


class Block(nn.Module):
    """x + conv(dropout(silu(conv(silu(x))·(1 + gain·e)))), then attention if heads > 0; every sum an `mp_sum`.

    The encoder's blocks (norm_first) have 1×1 convolution and pixel norm before the residual branch, where they hold
    the magnitudes of the main one; the decoder's have the 1×1 convolution in the shortcut.
    """

    features: int
    norm_first: bool
    resample: str
    taps: Filter
    heads: int
    dropout: float
    residual_balance: float
    attention_balance: float
    clip_act: float
    attention: str
    dtype: Any

    emb_gain_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h_out w_out d"]:
        if self.resample:
            x = downsample(x, self.taps) if self.resample == "down" else upsample(x, self.taps)
        if self.norm_first:
            x = normalize(self._widened(x))
        h = MPConv(self.features, dtype=self.dtype, name="conv_0")(mp_silu(x))
        # the gain starts at 0: at first a block does not see the embedding
        gain = self.param("emb_gain", self.emb_gain_init, ())
        scale = 1 + MPLinear(self.features, name="affine")(embedding, gain)
        h = mp_silu(h * scale.astype(self.dtype)[:, None, None])
        h = MPConv(self.features, dtype=self.dtype, name="conv_1")(Dropout(self.dropout)(h, deterministic))
        x = mp_sum(x if self.norm_first else self._widened(x), h, self.residual_balance)
        if self.heads:
            x = mp_sum(x, self._attended(x), self.attention_balance)
        return jnp.clip(x, -self.clip_act, self.clip_act) if self.clip_act else x

    def _widened(self, x: Array) -> Array:
        if x.shape[-1] == self.features:
            return x
        return MPLinear(self.features, dtype=self.dtype, name="shortcut")(x)

    def _attended(self, x: Array) -> Array:
        """Attention between pixel-normalised q, k and v: the logits are cosines times √c, for c channels of a head.

        The output channels of `qkv` are ordered (which of q, k, v; head; channel), as in `blocks.SelfAttention`.
        """
        b, h, w, c = x.shape
        qkv = MPLinear(3 * c, dtype=self.dtype, name="qkv")(x)
        q, k, v = (
            normalize(part.reshape(b, h * w, self.heads, c // self.heads)) for part in jnp.split(qkv, 3, axis=-1)
        )
        attended = attend(q, k, v, implementation=self.attention).reshape(b, h, w, c)
        return MPLinear(c, dtype=self.dtype, name="proj")(attended)


SIZES = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""`channels` of the published networks."""
