"""The U-Nets of score-based diffusion, DDPM++ and NCSN++, as one family sized by its fields."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.nets.base import block_class
from cmjax.nets.blocks import MODULATIONS, ResidualBlock
from cmjax.nets.layers import Conv, Filter, GroupNorm, Pointwise, Xavier, downsample, upsample
from cmjax.nets.unet_base import Embedding, UNetBase
from cmjax.ranges import Depth, Width


class UNet(UNetBase):
    """F(x, c_noise) of DDPM++ and NCSN++.   [Song et al. 2021, app. H; Karras et al. 2022, app. F.2]

    The fields' defaults are EDM's DDPM++ for CIFAR-10; `DDPMPP` and `NCSNPP` below name what differs between the two.
    `UNetBase` and `Network` explain the fields that are not explained here.

    embedding: of c_noise, "positional" (1e-4 to 1 rad per unit) or "fourier" (random frequencies of std fourier_scale,
        16 in NCSN++, .02 in iCT); noise_channel_mult: its width over `channels`.
    encoder: "standard", or the image pyramid enters each level, "skip" (added after 1×1) or "residual" (through 3×3).
    decoder: "standard", or "skip": each level adds its own image to the upsampled one from below.
    resample_filter: taps for halving and doubling. skip_scale: factor after each residual sum.
    augment_dim: > 0 accepts `augment`, a vector that says how x was augmented.
    modulation: how the embedding enters a block, "shift", "scale_shift" or "double_norm" (see `ResidualBlock`).
    """

    channels: Width = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: Depth = 4
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"
    noise_channel_mult: int = 1
    fourier_scale: float = 16.0
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: Filter = (1, 1)
    augment_dim: int = 0
    skip_scale: float = 0.5**0.5
    modulation: str = "shift"

    choices: ClassVar = {
        **UNetBase.choices,
        "embedding": ("positional", "fourier"),
        "encoder": ("standard", "skip", "residual"),
        "decoder": ("standard", "skip"),
        "modulation": MODULATIONS,
    }
    last_attends_alone = True

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        embedding = UNetEmbedding(
            channels=self.channels, kind=self.embedding, channel_mult=self.noise_channel_mult,
            fourier_scale=self.fourier_scale, num_classes=self.num_classes, augment_dim=self.augment_dim,
            dtype=self.dtype, name="embedding",
        )  # fmt: skip
        return embedding(c_noise, label, augment, scalars)

    def stem(self, x: Array) -> Array:
        return self._conv(x, self.channels, "encoder_0_conv")

    def block(self, name: str, width: int, resample: str, attends: bool) -> Callable[[Array, Array, bool], Array]:
        return block_class(ResidualBlock, remat=self.remat)(
            width, resample=resample, heads=int(attends), dropout=self.dropout, skip_scale=self.skip_scale,
            taps=self.resample_filter, modulation=self.modulation, attention=self.attention, dtype=self.dtype,
            name=name,
        )  # fmt: skip

    def enter(self, name: str, h: Array, image: Array) -> tuple[Array, Array]:
        if self.encoder == "skip":
            image = downsample(image, self.resample_filter)
            h += Pointwise(h.shape[-1], dtype=self.dtype, name=f"{name}_skip")(image)
        elif self.encoder == "residual":
            # The filter follows the convolution of the larger, zero-padded image, and pads no more.
            taps, reach = self.resample_filter, len(self.resample_filter) // 2
            wide = self._conv(image, h.shape[-1], f"{name}_residual", padding=reach)
            # √½ keeps the variance of a sum of two
            image = h = (h + downsample(wide, taps, padding=0)) * 0.5**0.5
        return h, image

    def out(self, levels: list[Array], channels: int) -> Array:
        image = None
        for level, h in zip(reversed(range(len(levels))), levels, strict=True):
            if self.decoder == "skip" or level == 0:
                shown = nn.silu(GroupNorm(dtype=self.dtype, name=f"decoder_{level}_norm")(h))
                # nearly zero at the start, as in the released networks: F begins close to 0
                shown = self._conv(shown, channels, f"decoder_{level}_conv", gain=1e-5)
                image = shown if image is None else upsample(image, self.resample_filter) + shown
        return jnp.asarray(image)

    def _conv(self, x: Array, features: int, name: str, *, padding: int = 1, gain: float = 1.0) -> Array:
        return Conv(features, Xavier(gain), padding, dtype=self.dtype, name=name)(x)


class UNetEmbedding(Embedding):
    """The embedding of DDPM++ ("positional") and NCSN++ ("fourier")."""

    kind: str
    channel_mult: int
    fourier_scale: float

    kernel_init = augment_init = staticmethod(Xavier())
    label_first = True

    @property
    def frequencies_init(self) -> Any:
        return nn.initializers.normal(self.fourier_scale)

    def waves(self) -> Callable[[Array], Array]:
        half = self.channels * self.channel_mult // 2
        if self.kind == "positional":
            frequencies = jnp.asarray(np.logspace(0, -4, half), jnp.float32)
        else:  # a constant that a checkpoint must carry: among the parameters, and never trained
            sampled = self.param("frequencies", self.frequencies_init, (half,))
            frequencies = 2 * np.pi * jax.lax.stop_gradient(sampled)

        def waves(time: Array) -> Array:
            angles = time[:, None] * frequencies[None]
            # Sines first, as in the released networks.
            return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)

        return waves


DDPMPP = {"embedding": "positional", "noise_channel_mult": 1, "encoder": "standard", "resample_filter": (1, 1)}
NCSNPP = {"embedding": "fourier", "noise_channel_mult": 2, "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
"""The fields in which the two published networks differ: `UNet(**NCSNPP, fourier_scale=0.02)`."""
