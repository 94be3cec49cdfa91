"""EDM2, the magnitude-preserving U-Net: no biases, no norms with parameters, no drift of magnitudes in training."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmjax.nets.blocks import ATTENTIONS, attend, check_choices, check_inputs
from cmjax.nets.heads import WeightHead
from cmjax.nets.inputs import added_scalars
from cmjax.nets.layers import Dropout, Filter, downsample, upsample
from cmjax.nets.magnitude import Fourier, MPConv, MPLinear, mp_concat, mp_silu, mp_sum, normalize


class EDM2(nn.Module):
    """F(x, c_noise) of the shape of x.   [Karras et al. 2024, config G, fig. 21]

    The fields' defaults are EDM2-S for ImageNet-64; `SIZES` below has the others. Training normalises the kernels after
    every update (`magnitude.normalize_weights`).

    channels: width of the first level; channel_mult: width of each level over `channels`, one level for each halving.
    blocks: residual blocks of a level. attention_resolutions: heights at which its blocks end in self-attention.
    head_channels: width of an attention head. resample_filter: taps for halving and doubling.
    noise_channel_mult, embedding_channel_mult: widths of the Fourier features of c_noise and of the embedding over
        `channels`; 0 for those of the first and of the widest level.
    residual_balance, attention_balance: share of the new in each sum; label_balance: of the class in the embedding;
        concat_balance: of the skip connection in the decoder's input.
    clip_act: bound of every block's output; 0 for none. dropout: probability, inside each block.
    num_classes: > 0 accepts `label`. out_channels: by default those of x.
    two_times: the network takes a second time, `c_noise_s`, as flow maps do. guided: it takes `guidance`, a scale of
        classifier-free guidance. What is added for them starts at zero (see `added_scalars`).
    weight_head: > 0 adds a normalised `WeightHead` of that many features, 128 in the released networks.
    attention: "xla" or "cudnn" (see `attend`).
    dtype: of computation; parameters and the output are float32. remat: recompute each block in the backward pass.
    """

    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    resample_filter: Filter = (1, 1)
    noise_channel_mult: int = 0
    embedding_channel_mult: int = 0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    label_balance: float = 0.5
    concat_balance: float = 0.5
    clip_act: float = 256.0
    dropout: float = 0.0
    num_classes: int = 0
    out_channels: int | None = None
    two_times: bool = False
    guided: bool = False
    weight_head: int = 0
    attention: str = "xla"
    dtype: Any = jnp.float32
    remat: bool = False

    out_gain_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: Float[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        c_noise_s: Float[Array, " b"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        deterministic: bool = True,
        return_weight: bool = False,
    ) -> Any:
        """F (b, h, w, d), float32; with `return_weight` the pair of it and the weight head's w (b,).

        x: the scaled noised image. c_noise: (b,) the network's time. label: (b,), -1 or None for no class.
        c_noise_s: (b,) the second time, of a network with two_times. guidance: (b,) the scale, of one with guided.
        deterministic: False draws dropout masks from the rng "dropout".
        """
        self._check(x, label, return_weight)
        embedding = self._embed(c_noise, label, added_scalars(self, c_noise, c_noise_s, guidance))
        # Without biases, a constant is what the first convolution can make an offset of.
        h = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
        h, skips = self._encode(h, embedding, deterministic)
        h = self._decode(h, skips, embedding, deterministic)
        out_gain = self.param("out_gain", self.out_gain_init, ())
        out = MPConv(self.out_channels or x.shape[-1], dtype=self.dtype, name="out_conv")(h, out_gain)
        out = jnp.asarray(out, jnp.float32)
        if not self.weight_head:
            return out
        weight = WeightHead(self.weight_head, normalized=True, name="weight_head")(c_noise)
        return (out, weight) if return_weight else out

    def _embed(self, c_noise: Array, label: Array | None, scalars: Mapping[str, Array]) -> Array:
        """The vector that conditions every block, (b, e), float32."""
        width = self.channels * (self.embedding_channel_mult or max(self.channel_mult))
        waves = Fourier(self.channels * (self.noise_channel_mult or self.channel_mult[0]), name="fourier")
        embedding, variance = MPLinear(width, name="noise")(waves(c_noise)), 1.0
        for name, value in scalars.items():
            added, gain = AddedLinear(width, name=name)(waves(value))
            embedding, variance = embedding + added, variance + gain**2
        if scalars:
            embedding /= jnp.sqrt(variance)
        if self.num_classes:
            # -1 encodes to zeros.
            one_hot = jax.nn.one_hot(jnp.full(c_noise.shape, -1) if label is None else label, self.num_classes)
            classes = MPLinear(width, name="label")(one_hot * self.num_classes**0.5)
            embedding = mp_sum(embedding, classes, self.label_balance)
        return mp_silu(embedding)

    def _encode(self, image: Array, embedding: Array, deterministic: bool) -> tuple[Array, list[Array]]:
        """The deepest features, and what each block (and the first convolution) leaves for the decoder."""
        h = MPConv(self.channels * self.channel_mult[0], dtype=self.dtype, name="encoder_0_conv")(image)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level:
                h = self._block(f"encoder_{level}_down", h.shape[-1], h, "down")(h, embedding, deterministic)
                skips.append(h)
            for i in range(self.blocks):
                h = self._block(f"encoder_{level}_block_{i}", self.channels * mult, h)(h, embedding, deterministic)
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], embedding: Array, deterministic: bool) -> Array:
        deepest = len(self.channel_mult) - 1
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            name, width = f"decoder_{level}", h.shape[-1]
            if level == deepest:
                h = self._block(f"{name}_in_0", width, h, attention=True)(h, embedding, deterministic)
                h = self._block(f"{name}_in_1", width, h, attention=False)(h, embedding, deterministic)
            else:
                h = self._block(f"{name}_up", width, h, "up")(h, embedding, deterministic)
            for i in range(self.blocks + 1):
                h = mp_concat(h, skips.pop(), self.concat_balance)
                h = self._block(f"{name}_block_{i}", self.channels * mult, h)(h, embedding, deterministic)
        return h

    def _block(
        self, name: str, features: int, h: Array, resample: str = "", *, attention: bool | None = None
    ) -> nn.Module:
        """`attention` None: where the resolution asks for it."""
        if attention is None:
            attention = not resample and h.shape[1] in self.attention_resolutions
        if attention and features % self.head_channels:
            raise ValueError(f"head_channels={self.head_channels} does not divide the {features} channels of a level")
        kind = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        return kind(
            features, norm_first=name.startswith("encoder"), resample=resample, taps=self.resample_filter,
            heads=features // self.head_channels if attention else 0, dropout=self.dropout,
            residual_balance=self.residual_balance, attention_balance=self.attention_balance,
            clip_act=self.clip_act, attention=self.attention, dtype=self.dtype, name=name,
        )  # fmt: skip

    def _check(self, x: Array, label: Array | None, return_weight: bool) -> None:
        check_choices(self, {"attention": ATTENTIONS})
        check_inputs(self, x, label, None)
        for name in ("residual_balance", "attention_balance", "label_balance", "concat_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.head_channels < 1:
            raise ValueError(f"head_channels={self.head_channels} must be at least 1")
        if return_weight and not self.weight_head:
            raise ValueError("return_weight=True was asked of a network with weight_head=0")


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
