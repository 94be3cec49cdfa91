"""The U-Nets of score-based diffusion, DDPM++ and NCSN++, as one family sized by its fields."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cmjax.nets.base import block_class
from cmjax.nets.blocks import MODULATIONS, ResidualBlock
from cmjax.nets.inputs import AddedEmbedding
from cmjax.nets.layers import Conv, Filter, GroupNorm, Pointwise, Xavier, downsample, upsample
from cmjax.nets.unet_base import UNetBase
from cmjax.ranges import Depth, Width


class UNet(UNetBase):
    """F(x, c_noise) of DDPM++ and NCSN++.   [Song et al. 2021, app. H; Karras et al. 2022, app. F.2]

    The fields' defaults are EDM's DDPM++ for CIFAR-10; `DDPMPP` and `NCSNPP` below name what tells the two apart.
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
        embedding = Embedding(
            self.channels, self.embedding, self.noise_channel_mult, self.fourier_scale, self.num_classes,
            self.augment_dim, self.dtype, name="embedding",
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
            image = h = (h + downsample(wide, taps, padding=0)) * 0.5**0.5
        return h, image

    def out(self, levels: list[Array], channels: int) -> Array:
        image = None
        for level, h in zip(reversed(range(len(levels))), levels, strict=True):
            if self.decoder == "skip" or level == 0:
                shown = nn.silu(GroupNorm(dtype=self.dtype, name=f"decoder_{level}_norm")(h))
                shown = self._conv(shown, channels, f"decoder_{level}_conv", gain=1e-5)
                image = shown if image is None else upsample(image, self.resample_filter) + shown
        return jnp.asarray(image)

    def _conv(self, x: Array, features: int, name: str, *, padding: int = 1, gain: float = 1.0) -> Array:
        return Conv(features, Xavier(gain), padding, dtype=self.dtype, name=name)(x)


class Embedding(nn.Module):
    """(c_noise, label, augment, scalars) -> (b, 4·channels), the vector that conditions every block."""

    channels: int
    kind: str
    channel_mult: int
    fourier_scale: float
    num_classes: int
    augment_dim: int
    dtype: Any

    @property
    def frequencies_init(self) -> Any:
        return nn.initializers.normal(self.fourier_scale)

    @nn.compact
    def __call__(
        self,
        c_noise: Float[Array, " b"],
        label: Int[Array, " b"],
        augment: Float[Array, "b a"],
        scalars: Mapping[str, Float[Array, " b"]],
    ) -> Float[Array, "b e"]:
        width = self.channels * self.channel_mult
        # Sines of large angles: float32 whatever the dtype of computation.
        frequencies = self._frequencies(width // 2)
        h = waves(c_noise.astype(jnp.float32), frequencies)
        if self.num_classes:
            # -1 encodes to zeros, and so leaves the bias alone.
            one_hot = jax.nn.one_hot(label, self.num_classes)
            h += nn.Dense(width, kernel_init=Xavier(), name="label")(one_hot * np.sqrt(self.num_classes))
        if self.augment_dim:
            h += nn.Dense(width, use_bias=False, kernel_init=Xavier(), name="augment")(augment)
        h = nn.silu(nn.Dense(4 * self.channels, kernel_init=Xavier(), name="dense_0")(h))
        h = nn.Dense(4 * self.channels, kernel_init=Xavier(), name="dense_1")(h)
        for name, value in scalars.items():
            value_waves = waves(value.astype(jnp.float32), frequencies)
            h += AddedEmbedding(4 * self.channels, Xavier(), name=name)(value_waves)
        return nn.silu(h).astype(self.dtype)

    def _frequencies(self, n: int) -> Array:
        """Radians per unit of c_noise, (n,)."""
        if self.kind == "positional":
            return jnp.asarray(np.logspace(0, -4, n), jnp.float32)
        # A constant that a checkpoint must carry: among the parameters, and never trained.
        return 2 * np.pi * jax.lax.stop_gradient(self.param("frequencies", self.frequencies_init, (n,)))


def waves(c_noise: Float[Array, " b"], frequencies: Float[Array, " n"]) -> Float[Array, "b 2*n"]:
    """[sin, cos] of c_noise at each frequency: sines first, which is how the released networks have it."""
    angles = c_noise[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


DDPMPP = {"embedding": "positional", "noise_channel_mult": 1, "encoder": "standard", "resample_filter": (1, 1)}
NCSNPP = {"embedding": "fourier", "noise_channel_mult": 2, "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
"""What tells the two published networks apart: `UNet(**NCSNPP, fourier_scale=0.02)`."""
