"""The U-Nets of score-based diffusion, DDPM++ and NCSN++, as one family sized by its fields."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cmjax.nets.blocks import ATTENTIONS, MODULATIONS, ResidualBlock, check_choices, check_inputs, with_weight
from cmjax.nets.inputs import AddedEmbedding, added_scalars
from cmjax.nets.layers import Conv, Filter, GroupNorm, Pointwise, Xavier, downsample, upsample


class UNet(nn.Module):
    """F(x, c_noise) of the shape of x.   [Song et al. 2021, app. H; Karras et al. 2022, app. F.2]

    The fields' defaults are EDM's DDPM++ for CIFAR-10; `DDPMPP` and `NCSNPP` below name what tells the two apart.

    channels: width of the first level; channel_mult: width of each level over `channels`, one level for each halving.
    blocks: residual blocks of a level. attention_resolutions: heights at which its blocks end in self-attention.
    embedding: of c_noise, "positional" (1e-4 to 1 rad per unit) or "fourier" (random frequencies of std fourier_scale,
        16 in NCSN++, .02 in iCT); noise_channel_mult: its width over `channels`.
    encoder: "standard", or the image pyramid enters each level, "skip" (added after 1×1) or "residual" (through 3×3).
    decoder: "standard", or "skip": each level adds its own image to the upsampled one from below.
    resample_filter: taps for halving and doubling. dropout: probability, inside each block.
    num_classes: > 0 accepts `label`. augment_dim: > 0 accepts `augment`, a vector that says how x was augmented.
    skip_scale: factor after each residual sum. out_channels: by default those of x.
    modulation: how the embedding enters a block, "shift", "scale_shift" or "double_norm" (see `ResidualBlock`).
    two_times: the network takes a second time, `c_noise_s`, as flow maps do. guided: it takes `guidance`, a scale of
        classifier-free guidance. What is added for them starts at zero (see `added_scalars`).
    weight_head: > 0 adds a `WeightHead` of that many features, the learned loss weight of tangent losses.
    attention: "xla" or "cudnn" (see `attend`).
    dtype: of computation; parameters and the output are float32. remat: recompute each block in the backward pass.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"
    noise_channel_mult: int = 1
    fourier_scale: float = 16.0
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: Filter = (1, 1)
    dropout: float = 0.0
    num_classes: int = 0
    augment_dim: int = 0
    skip_scale: float = 0.5**0.5
    out_channels: int | None = None
    modulation: str = "shift"
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
        self._check(x, label, augment)
        scalars = added_scalars(self, c_noise, c_noise_s, guidance)
        embedding = Embedding(
            self.channels, self.embedding, self.noise_channel_mult, self.fourier_scale, self.num_classes,
            self.augment_dim, self.dtype, name="embedding",
        )(c_noise, label, augment, scalars)  # fmt: skip
        h, skips = self._encode(x.astype(self.dtype), embedding, deterministic)
        out = self._decode(h, skips, embedding, deterministic, self.out_channels or x.shape[-1])
        return with_weight(out, c_noise, features=self.weight_head, return_weight=return_weight)

    def _encode(self, image: Array, embedding: Array, deterministic: bool) -> tuple[Array, list[Array]]:
        """The deepest features, and what each block (and the first convolution) leaves for the decoder."""
        h, skips = self._conv(image, self.channels, "encoder_0_conv"), []
        skips.append(h)
        for level, mult in enumerate(self.channel_mult):
            name = f"encoder_{level}"
            if level:
                h = self._block(f"{name}_down", h.shape[-1], h, resample="down")(h, embedding, deterministic)
                if self.encoder == "skip":
                    image = downsample(image, self.resample_filter)
                    h += Pointwise(h.shape[-1], dtype=self.dtype, name=f"{name}_skip")(image)
                elif self.encoder == "residual":
                    # The filter follows the convolution of the larger, zero-padded image, and pads no more.
                    taps, reach = self.resample_filter, len(self.resample_filter) // 2
                    wide = self._conv(image, h.shape[-1], f"{name}_residual", padding=reach)
                    image = h = (h + downsample(wide, taps, padding=0)) * 0.5**0.5
                skips.append(h)
            for i in range(self.blocks):
                h = self._block(f"{name}_block_{i}", self.channels * mult, h)(h, embedding, deterministic)
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], embedding: Array, deterministic: bool, out_channels: int) -> Array:
        image, deepest = None, len(self.channel_mult) - 1
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            name, width = f"decoder_{level}", self.channels * mult
            if level == deepest:
                h = self._block(f"{name}_in_0", width, h, attention=True)(h, embedding, deterministic)
                h = self._block(f"{name}_in_1", width, h, attention=False)(h, embedding, deterministic)
            else:
                h = self._block(f"{name}_up", h.shape[-1], h, resample="up")(h, embedding, deterministic)
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                last = None if i == self.blocks else False
                h = self._block(f"{name}_block_{i}", width, h, attention=last)(h, embedding, deterministic)
            if self.decoder == "skip" or level == 0:
                shown = nn.silu(GroupNorm(dtype=self.dtype, name=f"{name}_norm")(h))
                shown = self._conv(shown, out_channels, f"{name}_conv", gain=1e-5)
                image = shown if image is None else upsample(image, self.resample_filter) + shown
        return jnp.asarray(image, jnp.float32)

    def _block(
        self, name: str, features: int, h: Array, *, resample: str = "", attention: bool | None = None
    ) -> nn.Module:
        """`attention` None: where the resolution asks for it."""
        if attention is None:
            attention = not resample and h.shape[1] in self.attention_resolutions
        kind = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        return kind(
            features, resample=resample, heads=int(attention), dropout=self.dropout, skip_scale=self.skip_scale,
            taps=self.resample_filter, modulation=self.modulation, attention=self.attention, dtype=self.dtype,
            name=name,
        )  # fmt: skip

    def _conv(self, x: Array, features: int, name: str, *, padding: int = 1, gain: float = 1.0) -> Array:
        return Conv(features, Xavier(gain), padding, dtype=self.dtype, name=name)(x)

    def _check(self, x: Array, label: Array | None, augment: Array | None) -> None:
        choices = {
            "embedding": ("positional", "fourier"),
            "encoder": ("standard", "skip", "residual"),
            "decoder": ("standard", "skip"),
            "modulation": MODULATIONS,
            "attention": ATTENTIONS,
        }
        check_choices(self, choices)
        check_inputs(self, x, label, augment)


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
        label: Int[Array, " b"] | None,
        augment: Float[Array, "b a"] | None,
        scalars: Mapping[str, Float[Array, " b"]],
    ) -> Float[Array, "b e"]:
        width = self.channels * self.channel_mult
        # Sines of large angles: float32 whatever the dtype of computation.
        frequencies = self._frequencies(width // 2)
        h = waves(c_noise.astype(jnp.float32), frequencies)
        if self.num_classes:
            # -1 encodes to zeros, and so leaves the bias alone.
            one_hot = jax.nn.one_hot(jnp.full(c_noise.shape, -1) if label is None else label, self.num_classes)
            h += nn.Dense(width, kernel_init=Xavier(), name="label")(one_hot * np.sqrt(self.num_classes))
        if self.augment_dim:
            augment = jnp.zeros((len(c_noise), self.augment_dim)) if augment is None else augment
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
