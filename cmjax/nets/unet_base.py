"""The parts that all U-Nets share: the embedding of the noise level, and the walk down and up through the levels."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cmjax.nets.base import Network
from cmjax.nets.blocks import ATTENTIONS
from cmjax.nets.inputs import AddedEmbedding
from cmjax.nets.layers import from_patches, to_patches
from cmjax.ranges import Count


class UNetBase(Network, kw_only=True):
    """A U-Net, whose levels halve the height and width. Its blocks and what stands around them are the subclass's.

    A subclass has `embed`, `stem`, `block` and `out`; it has `enter` and `join` where it differs from those here.

    channels: width of the first level; channel_mult: width of each level over `channels`, one level for each halving.
    blocks: residual blocks of a level. attention_resolutions: heights at which its blocks end in self-attention.
    patch: the first level's points are squares of patch × patch pixels, so that all of its work falls by patch²; its
        height is the image's over patch.   [Hoogeboom et al. 2023, simple diffusion, sec. 3.3]
    out_channels: by default those of x. attention: "xla" or "cudnn" (see `attend`).
    remat: recompute each block in the backward pass.
    """

    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    patch: Count = 1
    out_channels: int | None = None
    attention: str = "xla"
    remat: bool = False

    choices: ClassVar = {"attention": ATTENTIONS}
    last_attends_alone: ClassVar[bool] = False
    """Whether in the decoder only a level's last block has self-attention."""

    def stem(self, x: Array) -> Array:
        """Makes the first features (b, h, w, d) of the image."""
        raise NotImplementedError

    def block(self, name: str, width: int, resample: str, attends: bool) -> Callable[[Array, Array, bool], Array]:
        """Makes the block as a function of (h, embedding, deterministic), which gives `width` channels.

        resample: "down" or "up" halves or doubles the size. attends: whether the block ends in self-attention.
        """
        raise NotImplementedError

    def enter(self, name: str, h: Array, image: Array) -> tuple[Array, Array]:
        """Gives the features with which the encoder's level `name` begins, and what the next level gets for `image`.

        h: the halved features of the level before. image: x, or what the level before has returned.
        """
        return h, image

    def join(self, h: Array, skip: Array) -> Array:
        """Joins the input of a decoder's block, from the features below it and those that the encoder left."""
        return jnp.concatenate([h, skip], axis=-1)

    def out(self, levels: list[Array], channels: int) -> Array:
        """F (b, h, w, channels) from the decoder's features of each level, the smallest first."""
        raise NotImplementedError

    def check(self, x: Array) -> None:
        depth = len(self.channel_mult)
        multiple = self.patch * 2 ** (depth - 1)
        if x.shape[1] % multiple or x.shape[2] % multiple:
            of_patches = f" of patches of {self.patch}×{self.patch} pixels" if self.patch > 1 else ""
            raise ValueError(
                f"height and width must be multiples of {multiple} for the {depth} levels of channel_mult{of_patches}, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )

    def body(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h w d"]:
        def apply(name: str, h: Array, width: int, resample: str = "", *, attends: bool | None = None) -> Array:
            """Applies the block. `attends` None: where the resolution asks for it."""
            if attends is None:
                attends = not resample and h.shape[1] in self.attention_resolutions
            return self.block(name, width, resample, attends)(h, embedding, deterministic)

        image = to_patches(x.astype(self.dtype), self.patch)
        h = self.stem(image)
        skips, levels = [h], []
        for level, mult in enumerate(self.channel_mult):
            name = f"encoder_{level}"
            if level:
                h, image = self.enter(name, apply(f"{name}_down", h, h.shape[-1], "down"), image)
                skips.append(h)
            for i in range(self.blocks):
                h = apply(f"{name}_block_{i}", h, self.channels * mult)
                skips.append(h)
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            name = f"decoder_{level}"
            # the smallest level begins with two blocks more, of which the first attends
            if not levels:
                h = apply(f"{name}_in_0", h, h.shape[-1], attends=True)
                h = apply(f"{name}_in_1", h, h.shape[-1], attends=False)
            else:
                h = apply(f"{name}_up", h, h.shape[-1], "up")
            # one more than in the encoder, for the skip of the stem or of the halving
            for i in range(self.blocks + 1):
                attends = False if self.last_attends_alone and i < self.blocks else None
                # the newest skip first: each has the size of what it is joined to
                h = apply(f"{name}_block_{i}", self.join(h, skips.pop()), self.channels * mult, attends=attends)
            levels.append(h)
        channels = self.channels_out(x)
        return from_patches(self.out(levels, channels * self.patch**2), self.patch)


class Embedding(nn.Module, kw_only=True):
    """(c_noise, label, augment, scalars) -> (b, 4·channels), the vector that conditions every block.

    A subclass has `waves`, and its own initialisers.
    """

    channels: int
    num_classes: int
    augment_dim: int
    dtype: Any

    kernel_init: ClassVar[Any]
    augment_init: ClassVar[Any]
    label_first: ClassVar[bool]
    """Whether labels enter before the two layers, as DDPM++ has them, or after, as ADM."""

    def waves(self) -> Callable[[Float[Array, " b"]], Float[Array, "b f"]]:
        """Makes the function of c_noise that gives the embedding's input."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        c_noise: Float[Array, " b"],
        label: Int[Array, " b"],
        augment: Float[Array, "b a"],
        scalars: Mapping[str, Float[Array, " b"]],
    ) -> Float[Array, "b e"]:
        waves, init, width = self.waves(), self.kernel_init, 4 * self.channels
        h = waves(c_noise.astype(jnp.float32))  # float32 whatever the dtype of computation: angles are large
        one_hot = jax.nn.one_hot(label, self.num_classes)  # zeros for -1, no class
        if self.num_classes and self.label_first:
            # times √classes, a one-hot row has a mean square of 1
            h += nn.Dense(h.shape[-1], kernel_init=init, name="label")(one_hot * np.sqrt(self.num_classes))
        if self.augment_dim:
            h += nn.Dense(h.shape[-1], use_bias=False, kernel_init=self.augment_init, name="augment")(augment)
        h = nn.silu(nn.Dense(width, kernel_init=init, name="dense_0")(h))
        h = nn.Dense(width, kernel_init=init, name="dense_1")(h)
        for name, value in scalars.items():
            h += AddedEmbedding(width, init, name=name)(waves(value.astype(jnp.float32)))
        if self.num_classes and not self.label_first:
            # a table of vectors from N(0, 1), as PyTorch's Embedding starts
            h += nn.Dense(width, use_bias=False, kernel_init=nn.initializers.normal(1.0), name="label")(one_hot)
        return nn.silu(h).astype(self.dtype)
