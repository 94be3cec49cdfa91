"""ADM, the U-Net of Dhariwal & Nichol: ImageNet and LSUN diffusion, EDM and consistency models."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cmjax.nets.blocks import ATTENTIONS, MODULATIONS, ResidualBlock, check_choices, check_inputs, with_weight
from cmjax.nets.inputs import AddedEmbedding, added_scalars
from cmjax.nets.layers import Conv, FanIn, GroupNorm, upsample

RESAMPLES = ("block", "conv")


class ADM(nn.Module):
    """F(x, c_noise) of the shape of x.   [Dhariwal & Nichol 2021; Karras et al. 2022, app. F.2]

    The fields' defaults are EDM's network for ImageNet-64; `OPENAI` below is what OpenAI's releases have otherwise.

    channels: width of the first level; channel_mult: width of each level over `channels`, one level for each halving.
    blocks: residual blocks of a level. attention_resolutions: heights at which blocks end in self-attention.
    head_channels: width of an attention head; heads: their number instead, where > 0.
    resample: what goes between levels, "block" (residual blocks that resample), or "conv" (a convolution with stride 2;
        one after doubling), which OpenAI's UNetModel calls resblock_updown=False.
    modulation: how the embedding enters a block, "shift", "scale_shift" or "double_norm" (see `ResidualBlock`).
    norm_groups: of every group norm; 0 for min(32, c/4). time_scale: factor of c_noise, 1000 in OpenAI's code.
    dropout: probability, inside each block. num_classes: > 0 accepts `label`. augment_dim: > 0 accepts `augment`.
    two_times: the network takes a second time, `c_noise_s`, as flow maps do. guided: it takes `guidance`, a scale of
        classifier-free guidance. What is added for them starts at zero (see `added_scalars`).
    out_channels: by default those of x. weight_head: > 0 adds a `WeightHead` of that many features.
    attention: "xla" or "cudnn" (see `attend`).
    dtype: of computation; parameters and the output are float32. remat: recompute each block in the backward pass.
    """

    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    heads: int = 0
    resample: str = "block"
    modulation: str = "scale_shift"
    norm_groups: int = 0
    time_scale: float = 1.0
    dropout: float = 0.0
    num_classes: int = 0
    augment_dim: int = 0
    out_channels: int | None = None
    two_times: bool = False
    guided: bool = False
    weight_head: int = 0
    attention: str = "xla"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: Float[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        augment: Float[Array, "b a"] | None = None,
        c_noise_s: Float[Array, " b"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        deterministic: bool = True,
        return_weight: bool = False,
    ) -> Any:
        """F (b, h, w, d), float32; with `return_weight` the pair of it and the weight head's w (b,).

        x: the scaled noised image. c_noise: (b,) the network's time. label: (b,), -1 or None for no class.
        c_noise_s: (b,) the second time, of a network with two_times. guidance: (b,) the scale, of one with guided.
        augment: None for images as they are. deterministic: False draws dropout masks from the rng "dropout".
        """
        check_choices(self, {"resample": RESAMPLES, "modulation": MODULATIONS, "attention": ATTENTIONS})
        check_inputs(self, x, label, augment)
        scalars = added_scalars(self, c_noise, c_noise_s, guidance)
        embedding = Embedding(
            self.channels, self.time_scale, self.num_classes, self.augment_dim, self.dtype, name="embedding"
        )(c_noise, label, augment, scalars)
        h, skips = self._encode(x.astype(self.dtype), embedding, deterministic)
        h = self._decode(h, skips, embedding, deterministic)
        h = nn.silu(GroupNorm(1e-5, self.norm_groups, dtype=self.dtype, name="out_norm")(h))
        out = Conv(self.out_channels or x.shape[-1], FanIn(0.0), dtype=self.dtype, name="out_conv")(h)
        out = jnp.asarray(out, jnp.float32)
        return with_weight(out, c_noise, features=self.weight_head, return_weight=return_weight)

    def _encode(self, x: Array, embedding: Array, deterministic: bool) -> tuple[Array, list[Array]]:
        """The deepest features, and what each block (and the first convolution) leaves for the decoder."""
        h = Conv(self.channels * self.channel_mult[0], FanIn(), dtype=self.dtype, name="encoder_0_conv")(x)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level:
                h = self._resampled(f"encoder_{level}_down", h, "down", embedding, deterministic)
                skips.append(h)
            for i in range(self.blocks):
                block = self._block(f"encoder_{level}_block_{i}", self.channels * mult, h)
                h = block(h, embedding, deterministic)
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
                h = self._resampled(f"{name}_up", h, "up", embedding, deterministic)
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"{name}_block_{i}", self.channels * mult, h)(h, embedding, deterministic)
        return h

    def _resampled(self, name: str, h: Array, way: str, embedding: Array, deterministic: bool) -> Array:
        """h at half or twice the size, of the same width."""
        width = h.shape[-1]
        if self.resample == "block":
            return self._block(name, width, h, way)(h, embedding, deterministic)
        h = upsample(h, (1, 1)) if way == "up" else h
        return Conv(width, FanIn(), stride=2 if way == "down" else 1, dtype=self.dtype, name=name)(h)

    def _block(
        self, name: str, features: int, h: Array, resample: str = "", *, attention: bool | None = None
    ) -> nn.Module:
        """`attention` None: where the resolution asks for it."""
        if attention is None:
            attention = not resample and h.shape[1] in self.attention_resolutions
        kind = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        return kind(
            features, resample=resample, heads=self._heads(features) if attention else 0, dropout=self.dropout,
            skip_scale=1.0, project_resampled=False, modulation=self.modulation, norm_eps=1e-5,
            norm_groups=self.norm_groups, kernel_init=FanIn(), last_kernel_init=FanIn(0.0), qkv_kernel_init=FanIn(),
            attention=self.attention, dtype=self.dtype, name=name,
        )  # fmt: skip

    def _heads(self, features: int) -> int:
        field, heads = ("heads", self.heads) if self.heads else ("head_channels", features // self.head_channels)
        if not heads or features % heads or (not self.heads and features % self.head_channels):
            raise ValueError(f"{field}={getattr(self, field)} does not divide the {features} channels of a level")
        return heads


class Embedding(nn.Module):
    """(c_noise, label, augment, scalars) -> (b, 4·channels), the vector that conditions every block."""

    channels: int
    time_scale: float
    num_classes: int
    augment_dim: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        c_noise: Float[Array, " b"],
        label: Int[Array, " b"] | None,
        augment: Float[Array, "b a"] | None,
        scalars: Mapping[str, Float[Array, " b"]],
    ) -> Float[Array, "b e"]:
        h = self._waves(c_noise)
        if self.augment_dim:
            augment = jnp.zeros((len(c_noise), self.augment_dim)) if augment is None else augment
            h += nn.Dense(self.channels, use_bias=False, kernel_init=FanIn(0.0), name="augment")(augment)
        h = nn.silu(nn.Dense(4 * self.channels, kernel_init=FanIn(), name="dense_0")(h))
        h = nn.Dense(4 * self.channels, kernel_init=FanIn(), name="dense_1")(h)
        for name, value in scalars.items():
            h += AddedEmbedding(4 * self.channels, FanIn(), name=name)(self._waves(value))
        if self.num_classes:
            # -1 encodes to zeros.
            one_hot = jax.nn.one_hot(jnp.full(c_noise.shape, -1) if label is None else label, self.num_classes)
            unit_normal = nn.initializers.normal(1.0)
            h += nn.Dense(4 * self.channels, use_bias=False, kernel_init=unit_normal, name="label")(one_hot)
        return nn.silu(h).astype(self.dtype)

    def _waves(self, time: Array) -> Array:
        half = self.channels // 2
        frequencies = jnp.asarray(10_000 ** -(np.arange(half) / half), jnp.float32)
        # Cosines of large angles: float32 whatever the dtype of computation.
        angles = self.time_scale * time.astype(jnp.float32)[:, None] * frequencies[None]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


OPENAI = {"norm_groups": 32, "time_scale": 1000.0}
"""What OpenAI's consistency models and their teachers have otherwise: `ADM(**OPENAI, num_classes=1000)`."""
