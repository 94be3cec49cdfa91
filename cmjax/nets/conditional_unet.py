"""The U-Net of Stable Diffusion, which sees a prompt by cross-attention.   [Rombach et al. 2022, sec. 3.3]

Modules are named as diffusers names them. Arrays are NHWC.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.autoencoder import ACTIVATIONS
from cmjax.nets.conditional_blocks import (
    Downsample,
    TimedResnet,
    TimestepEmbedding,
    Transformer,
    Upsample,
    guidance_waves,
    time_waves,
)
from cmjax.nets.layers import Conv, GroupNorm
from cmjax.system.mesh import with_auto_axes

STEPS = 1000
"""The steps of the diffusion models that these networks come from, unless a scheduler says otherwise."""


class UNetLevel(nn.Module, kw_only=True):
    """Holds the fields of all levels. transformers: blocks of each transformer after a residual block; 0 for none."""

    width: int
    blocks: int
    transformers: int
    heads: int
    groups: int
    eps: float
    activation: str
    attention: str
    remat: bool
    dtype: Any

    def resnet(self, i: int, h: Array, embedding: Array) -> Array:
        kind: Any = nn.remat(TimedResnet) if self.remat else TimedResnet
        norms = {"groups": self.groups, "eps": self.eps, "activation": self.activation}
        return kind(width=self.width, name=f"resnets_{i}", dtype=self.dtype, **norms)(h, embedding)

    def transformer(self, i: int, h: Array, context: Array) -> Array:
        if not self.transformers:
            return h
        kind: Any = nn.remat(Transformer) if self.remat else Transformer
        fields = {"layers": self.transformers, "heads": self.heads, "groups": self.groups}
        return kind(name=f"attentions_{i}", attention=self.attention, dtype=self.dtype, **fields)(h, context)


class DownLevel(UNetLevel, kw_only=True):
    """Blocks, then half the size if `ends_smaller`. Returns the map, and all maps on the way for the way up."""

    ends_smaller: bool
    padding: int

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"], embedding: Array, context: Array) -> tuple[Array, list[Array]]:
        maps = []
        for i in range(self.blocks):
            h = self.transformer(i, self.resnet(i, h, embedding), context)
            maps.append(h)
        if self.ends_smaller:
            h = Downsample(padding=self.padding, dtype=self.dtype, name="downsamplers_0")(h)
            maps.append(h)
        return h, maps


class MiddleLevel(UNetLevel):
    """A residual block, a transformer, a residual block."""

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"], embedding: Array, context: Array) -> Float[Array, "b h w c"]:
        h = self.transformer(0, self.resnet(0, h, embedding), context)
        return self.resnet(1, h, embedding)


class UpLevel(UNetLevel):
    """Blocks, each after the map of the way down beside it, then the size of the map that comes next."""

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], maps: list[Array], following: Array | None, embedding: Array, context: Array
    ) -> Float[Array, "b h_out w_out d"]:
        for i, beside in enumerate(maps):
            h = self.resnet(i, jnp.concatenate([h, beside], axis=-1), embedding)
            h = self.transformer(i, h, context)
        if following is None:
            return h
        return Upsample(dtype=self.dtype, name="upsamplers_0")(h, *following.shape[1:3])


class ConditionalUNet(nn.Module, kw_only=True):
    """F(x, time), given a context: the tokens of a prompt, to which the transformers attend.

    The defaults are Stable Diffusion 1.5's; fields of levels run from the input inwards.

    widths, blocks: channels and residual blocks of each level; the way up has one block more.
    transformers: blocks of the transformers of each level, the last one's in the middle too; 0 has none on either way.
    attends, attends_up: the levels with transformers on the way down and up, counted from the input.
    heads: of each level. context_width: of tokens. groups, eps: of group norms. embedding_width: 0 for 4·widths[0].
    guidance_width: > 0 accepts `guidance_embedding`, of so many features, see `guidance_waves`.
    pooled_width, sizes, size_width: > 0 accept `pooled`, of so many features, and so many `sizes`, of which the network
        sees so many waves each.   [Podell et al. 2023, SDXL, sec. 2.2]
    cosines_first, shift: of `time_waves`. padding: of downsampling. remat: recompute blocks in the backward pass.
    linear_projection: whether transformers begin and end with matrices in PyTorch's class, and not with 1×1
        convolutions, which are the same but in files. attention: "xla" or "cudnn".
    dtype: of computation; parameters and the output are float32.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    transformers: tuple[int, ...] = (1, 1, 1, 1)
    attends: tuple[bool, ...] = (True, True, True, False)
    attends_up: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int = 768
    groups: int = 32
    eps: float = 1e-5
    activation: str = "silu"
    embedding_width: int = 0
    guidance_width: int = 0
    pooled_width: int = 0
    sizes: int = 0
    size_width: int = 0
    cosines_first: bool = True
    shift: float = 0.0
    padding: int = 1
    linear_projection: bool = False
    remat: bool = False
    attention: str = "xla"
    dtype: Any = jnp.float32

    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        "activation": tuple(ACTIVATIONS), "attention": ("xla", "cudnn"),
    }  # fmt: skip
    """The values that a field may have, by the field."""
    any_shape: ClassVar[bool] = False

    apply = nn.nowrap(with_auto_axes(nn.Module.apply, rows_from=2))

    @property
    def guided(self) -> bool:
        """Says whether the network takes the scale of guidance."""
        return self.guidance_width > 0

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the inputs that come from prompts."""
        return ("context", "pooled", "sizes") if self.pooled_width else ("context",)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "*b"],
        *,
        context: Float[Array, "b n d"] | None = None,
        guidance_embedding: Float[Array, "b g"] | None = None,
        pooled: Float[Array, "b p"] | None = None,
        sizes: Float[Array, "b s"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b h w o"]:
        """F (b, h, w, out_channels), float32.

        x: scaled noised latents of any size. time: (b,) or one, in steps, 0 … 999. context: tokens of the prompts;
        None while parameters are initialised alone. guidance_embedding: None leaves the guidance out. pooled: of the
        prompts. sizes: of SDXL in pixels: the original height and width, the top and left of the crop, the height and
        width of the result.

        Raises: ValueError naming the input that the network lacks, does not take, or that has another width.
        """
        if context is None and self.is_initializing():
            inputs = (1, self.context_width), self.guidance_width, self.pooled_width, self.sizes
            context, guidance_embedding, pooled, sizes = (_zeros(len(x), width) for width in inputs)
        self._check(x, context=context, guidance_embedding=guidance_embedding, pooled=pooled, sizes=sizes)
        embedding = self._embedding(jnp.broadcast_to(time, x.shape[:1]), guidance_embedding, pooled, sizes)
        context = jnp.asarray(context, self.dtype)
        h = Conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        maps = [h]
        levels = range(len(self.widths))
        for level in levels:
            fields = {"ends_smaller": level < levels[-1], "padding": self.padding}
            name, blocks = f"down_blocks_{level}", self.blocks[level]
            down = self._level(DownLevel, name, level, blocks, self.attends[level], **fields)
            h, more = down(h, embedding, context)
            maps += more
        h = self._level(MiddleLevel, "mid_block", levels[-1], 2, True)(h, embedding, context)
        for i, level in enumerate(reversed(levels)):
            blocks = self.blocks[level] + 1
            # the last maps of the way down, the newest first: one for each block
            beside, maps = maps[: -blocks - 1 : -1], maps[:-blocks]
            up = self._level(UpLevel, f"up_blocks_{i}", level, blocks, self.attends_up[level])
            h = up(h, beside, maps[-1] if level else None, embedding, context)
        h = ACTIVATIONS[self.activation](GroupNorm(self.eps, self.groups, self.dtype, name="conv_norm_out")(h))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)

    def _level(self, kind: Any, name: str, level: int, blocks: int, attends: bool, **fields: Any) -> Any:
        return kind(
            width=self.widths[level],
            blocks=blocks,
            transformers=self.transformers[level] if attends else 0,
            heads=self.heads[level],
            groups=self.groups,
            eps=self.eps,
            activation=self.activation,
            attention=self.attention,
            remat=self.remat,
            dtype=self.dtype,
            name=name,
            **fields,
        )

    def _embedding(self, time: Array, guidance_embedding: Any, pooled: Any, sizes: Any) -> Array:
        """Computes the embedding that the residual blocks take, (b, e)."""
        waves = {"cosines_first": self.cosines_first, "shift": self.shift}
        width = self.embedding_width or 4 * self.widths[0]
        embed = TimestepEmbedding(width, self.activation, self.dtype, name="time_embedding")
        embedding = embed(time_waves(time, self.widths[0], **waves), guidance_embedding)
        if not self.size_width:
            return embedding
        # waves of every number by itself, (b·sizes, size_width), then side by side for each sample
        seen = time_waves(sizes.ravel(), self.size_width, **waves).reshape(len(sizes), -1)
        # released networks have silu here, whatever the activation of the other embedding
        added = TimestepEmbedding(width, "silu", self.dtype, name="add_embedding")
        return embedding + added(jnp.concatenate([pooled, seen], axis=1))

    def _check(self, x: Array, **inputs: Array | None) -> None:
        widths = {"guidance_embedding": self.guidance_width, "pooled": self.pooled_width, "sizes": self.sizes}
        for name, width in {"context": self.context_width, **widths}.items():
            value = inputs[name]
            if value is None and width and name != "guidance_embedding":
                raise ValueError(f"{name} must be given to a network that takes it, of {width} features")
            if value is not None and not width:
                raise ValueError(f"{name} was given to a network that does not take it")
            if value is not None and value.shape[-1] != width:
                raise ValueError(f"{name} must have {width} features, got {value.shape}")
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"x must have {self.in_channels} channels, got {x.shape}")


def _zeros(rows: int, width: int | tuple[int, ...]) -> Array | None:
    return jnp.zeros((rows, *(width if isinstance(width, tuple) else (width,)))) if width else None


def prompted_net(
    module: ConditionalUNet,
    steps: int,
    params: Any,
    x: Array,
    c_noise: Array,
    *,
    key: Any = None,
    guidance: Array | None = None,
    **conditions: Any,
) -> Array:
    """F(x, c_noise), (b, h, w, c). c_noise: (b,), step/`steps`. guidance: the scale, (b,) or one, 1 for none, of a
    network that takes it."""
    if guidance is not None:
        scale = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), x.shape[:1])
        conditions["guidance_embedding"] = guidance_waves(scale - 1, module.guidance_width)
    # The networks learned whole steps, and in float32 0.339·1000 is not 339.
    time = steps * c_noise.astype(jnp.float32)
    off = jnp.round(time) - time
    time += jax.lax.stop_gradient(jnp.where(jnp.abs(off) < 1e-3, off, 0))
    out: Any = module.apply({"params": params}, x, time, **conditions)
    return out
