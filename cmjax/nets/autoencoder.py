"""AutoencoderKL, which takes images to latents and back.   [Rombach et al. 2022, latent diffusion, sec. 3.1]

Modules are named as diffusers names them. Arrays are NHWC.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.blocks import attend
from cmjax.nets.layers import Conv, GroupNorm, Pointwise, upsample
from cmjax.system.mesh import with_auto_axes

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}
LOGVAR_RANGE = -30.0, 20.0


class BlockBase(nn.Module, kw_only=True):
    """The fields that all parts have. groups: of every group norm. activation: of residual blocks."""

    groups: int = 32
    activation: str = "silu"
    dtype: Any = jnp.float32

    def part(self, kind: Any, name: str, **fields: Any) -> Any:
        return kind(groups=self.groups, activation=self.activation, dtype=self.dtype, name=name, **fields)

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(1e-6, self.groups, self.dtype, name=name)

    def conv(self, features: int, name: str, **fields: Any) -> Conv:
        return Conv(features, dtype=self.dtype, name=name, **fields)

    def pointwise(self, features: int, name: str) -> Pointwise:
        return Pointwise(features, dtype=self.dtype, name=name)


class Resnet(BlockBase, kw_only=True):
    """shortcut(x) + conv(act(norm(conv(act(norm(x)))))), the shortcut a matrix where the width changes.

    An embedding e adds linear(act(e)) to the first convolution.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w d"]:
        act = ACTIVATIONS[self.activation]
        h = self.conv(self.width, "conv1")(act(self.norm("norm1")(x)))
        if embedding is not None:
            h += nn.Dense(self.width, dtype=self.dtype, name="time_emb_proj")(act(embedding))[:, None, None]
        h = self.conv(self.width, "conv2")(act(self.norm("norm2")(h)))
        return (x if x.shape[-1] == self.width else self.pointwise(self.width, "conv_shortcut")(x)) + h


class Attention(BlockBase):
    """x + out(attend(q, k, v)) over all positions, with one head as wide as the features."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = self.norm("group_norm")(x)
        q, k, v = (self.pointwise(c, f"to_{name}")(normed).reshape(b, h * w, 1, c) for name in "qkv")
        return x + self.pointwise(c, "to_out_0")(attend(q, k, v).reshape(x.shape))


class Resample(BlockBase, kw_only=True):
    """Twice the height and width by repeated points, or half by a stride; a convolution either way."""

    up: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c"]:
        if self.up:
            return self.conv(x.shape[-1], "conv")(upsample(x, (1, 1)))
        # Zeros stand beyond the right and the bottom edge alone.
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x.shape[-1], "conv", padding=0, stride=2)(x)


class Level(BlockBase, kw_only=True):
    """Residual blocks of one width, each followed by attention if `attends`, and half ("down") or twice ("up") the
    size at the end."""

    width: int
    blocks: int
    attends: bool
    resample: str

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out d"]:
        for i in range(self.blocks):
            h = self.part(Resnet, f"resnets_{i}", width=self.width)(h)
            h = self.part(Attention, f"attentions_{i}")(h) if self.attends else h
        if not self.resample:
            return h
        return self.part(Resample, f"{self.resample}samplers_0", up=self.resample == "up")(h)


class Middle(BlockBase, kw_only=True):
    """Two residual blocks, with attention between them if `attends`."""

    attends: bool

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = self.part(Resnet, "resnets_0", width=h.shape[-1])(h)
        h = self.part(Attention, "attentions_0")(h) if self.attends else h
        return self.part(Resnet, "resnets_1", width=h.shape[-1])(h)


class Half(BlockBase, kw_only=True):
    """The encoder, whose levels go "down" to the middle, or the decoder, whose levels go "up" from it."""

    resample: str
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mid_attention: bool
    out_channels: int
    stem: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out d"]:
        ups = self.resample == "up"
        # numbered from the image on both ways, as `attention` counts them
        levels = list(enumerate(self.widths))[:: -1 if ups else 1]
        middle = self.part(Middle, "mid_block", attends=self.mid_attention)
        h = self.conv(self.stem or levels[0][1], "conv_in")(x)
        # the middle stands at the smallest size: behind the encoder's levels, and before the decoder's
        h = middle(h) if ups else h
        for i, (level, width) in enumerate(levels):
            fields = {"width": width, "blocks": self.blocks, "attends": level in self.attention}
            resample = self.resample if i < len(levels) - 1 else ""
            h = self.part(Level, f"{self.resample}_blocks_{i}", resample=resample, **fields)(h)
        h = h if ups else middle(h)
        return self.conv(self.out_channels, "conv_out")(nn.silu(self.norm("conv_norm_out")(h)))


class AutoencoderKL(BlockBase, kw_only=True):
    """Images (b, h, w, c) to the mean and the log variance of a Gaussian of latents, and latents to images.

    The defaults are Stable Diffusion's. Height and width of images are `factor` times those of latents.

    channels, out_channels: of the images that are encoded and decoded. widths: of the levels, from the image inwards;
    each but the last halves the size. stem: width of the encoder's first convolution, that of the first level where 0.
    blocks: of a level; the decoder has one more. activation: of `ACTIVATIONS`.
    encoder_attention, decoder_attention: the levels whose blocks attend, counted from the image.
    moments_conv, latents_conv: whether a matrix follows the encoder, and precedes the decoder.
    dtype: of computation; parameters are float32, outputs have the dtype of the inputs.
    """

    channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    stem: int = 0
    blocks: int = 2
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    mid_attention: bool = True
    moments_conv: bool = True
    latents_conv: bool = True

    # Flax's layers do not say how their outputs lie, as Explicit axes want it; arguments 0 and 1 have no samples
    apply = nn.nowrap(with_auto_axes(nn.Module.apply, rows_from=2))

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        fields = {"widths": self.widths, "mid_attention": self.mid_attention}
        fields |= {"groups": self.groups, "activation": self.activation, "dtype": self.dtype}
        moments = 2 * self.latent_channels
        encoder = {"resample": "down", "blocks": self.blocks, "attention": self.encoder_attention}
        decoder = {"resample": "up", "blocks": self.blocks + 1, "attention": self.decoder_attention}
        self.encoder = Half(stem=self.stem, out_channels=moments, **encoder, **fields)
        self.decoder = Half(out_channels=self.out_channels, **decoder, **fields)
        if self.moments_conv:
            self.quant_conv = Pointwise(moments, dtype=self.dtype)
        if self.latents_conv:
            self.post_quant_conv = Pointwise(self.latent_channels, dtype=self.dtype)

    def encode(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b _ _ l"], Float[Array, "b _ _ l"]]:
        """Returns mean and log variance of the latents, the latter clipped to [−30, 20]."""
        h = self.encoder(images)
        h = self.quant_conv(h) if self.moments_conv else h
        mean, logvar = jnp.split(h.astype(images.dtype), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "b h w l"]) -> Float[Array, "b _ _ c"]:
        """Returns the images of latents, not clipped."""
        h = self.post_quant_conv(latents) if self.latents_conv else latents
        return self.decoder(h).astype(latents.dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Returns the images of the latents' means; it uses every parameter, for `init`."""
        return self.decode(self.encode(images)[0])
