"""ADM, the U-Net of Dhariwal & Nichol: ImageNet and LSUN diffusion, EDM and consistency models."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.nets.base import block_class
from cmjax.nets.blocks import MODULATIONS, ResidualBlock
from cmjax.nets.layers import Conv, FanIn, GroupNorm, upsample
from cmjax.nets.unet_base import Embedding, UNetBase
from cmjax.ranges import Depth, Width


class ADM(UNetBase):
    """ADM's F(x, c_noise).   [Dhariwal & Nichol 2021; Karras et al. 2022, app. F.2]

    The fields' defaults are EDM's network for ImageNet-64; `OPENAI` below is what OpenAI's releases have otherwise.
    `UNetBase` and `Network` explain the fields that are not explained here.

    head_channels: width of an attention head; heads: their number instead, where > 0.
    resample: what goes between levels, "block" (residual blocks that resample), or "conv" (a convolution with stride 2;
        one after doubling), which OpenAI's UNetModel calls resblock_updown=False.
    modulation: how the embedding enters a block, "shift", "scale_shift" or "double_norm" (see `ResidualBlock`).
    norm_groups: of every group norm; 0 for min(32, c/4). time_scale: factor of c_noise, 1000 in OpenAI's code.
    augment_dim: > 0 accepts `augment`.
    """

    channels: Width = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: Depth = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    heads: int = 0
    resample: str = "block"
    modulation: str = "scale_shift"
    norm_groups: int = 0
    time_scale: float = 1.0
    augment_dim: int = 0

    choices: ClassVar = {**UNetBase.choices, "resample": ("block", "conv"), "modulation": MODULATIONS}

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        embedding = ADMEmbedding(
            channels=self.channels, time_scale=self.time_scale, num_classes=self.num_classes,
            augment_dim=self.augment_dim, dtype=self.dtype, name="embedding",
        )  # fmt: skip
        return embedding(c_noise, label, augment, scalars)

    def stem(self, x: Array) -> Array:
        return Conv(self.channels * self.channel_mult[0], FanIn(), dtype=self.dtype, name="encoder_0_conv")(x)

    def block(self, name: str, width: int, resample: str, attends: bool) -> Callable[[Array, Array, bool], Array]:
        if resample and self.resample == "conv":
            conv = Conv(width, FanIn(), stride=2 if resample == "down" else 1, dtype=self.dtype, name=name)
            # a convolution alone takes neither the embedding nor dropout
            return lambda h, *_: conv(upsample(h, (1, 1)) if resample == "up" else h)
        # 1e-5 in norms, where EDM's own U-Nets have 1e-6; branches end in zeros, so that a block starts as its shortcut
        return block_class(ResidualBlock, remat=self.remat)(
            width, resample=resample, heads=self._heads(width) if attends else 0, dropout=self.dropout,
            skip_scale=1.0, project_resampled=False, modulation=self.modulation, norm_eps=1e-5,
            norm_groups=self.norm_groups, kernel_init=FanIn(), last_kernel_init=FanIn(0.0), qkv_kernel_init=FanIn(),
            attention=self.attention, dtype=self.dtype, name=name,
        )  # fmt: skip

    def out(self, levels: list[Array], channels: int) -> Array:
        h = nn.silu(GroupNorm(1e-5, self.norm_groups, dtype=self.dtype, name="out_norm")(levels[-1]))
        return Conv(channels, FanIn(0.0), dtype=self.dtype, name="out_conv")(h)

    def _heads(self, features: int) -> int:
        field, heads = ("heads", self.heads) if self.heads else ("head_channels", features // self.head_channels)
        if not heads or features % heads or (not self.heads and features % self.head_channels):
            raise ValueError(f"{field}={getattr(self, field)} does not divide the {features} channels of a level")
        return heads


class ADMEmbedding(Embedding):
    """ADM's embedding: cosines and sines, 1e-4 to 1 rad per unit of time_scale·c_noise."""

    time_scale: float

    kernel_init, augment_init = staticmethod(FanIn()), staticmethod(FanIn(0.0))
    label_first = False

    def waves(self) -> Callable[[Array], Array]:
        half = self.channels // 2
        frequencies = jnp.asarray(10_000 ** -(np.arange(half) / half), jnp.float32)

        def waves(time: Array) -> Array:
            angles = self.time_scale * time[:, None] * frequencies[None]
            return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)

        return waves


OPENAI = {"norm_groups": 32, "time_scale": 1000.0}
"""The fields in which OpenAI's consistency models and their teachers differ: `ADM(**OPENAI, num_classes=1000)`."""
