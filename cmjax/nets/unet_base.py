"""The walk of every U-Net: down through its levels, and up again with what the way down has left."""

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.base import Network
from cmjax.nets.blocks import ATTENTIONS
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
        """The first features (b, h, w, d) of the image."""
        raise NotImplementedError

    def block(self, name: str, width: int, resample: str, attends: bool) -> Callable[[Array, Array, bool], Array]:
        """The block as a function of (h, embedding, deterministic), which gives `width` channels.

        resample: "down" or "up" halves or doubles the size. attends: whether the block ends in self-attention.
        """
        raise NotImplementedError

    def enter(self, name: str, h: Array, image: Array) -> tuple[Array, Array]:
        """The features with which the encoder's level `name` begins, and what the next level gets for `image`.

        h: the halved features of the level before. image: x, or what the level before has returned.
        """
        return h, image

    def join(self, h: Array, skip: Array) -> Array:
        """The input of a decoder's block, from the features below it and those that the encoder left."""
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
            """The block's output. `attends` None: where the resolution asks for it."""
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
            if not levels:
                h = apply(f"{name}_in_0", h, h.shape[-1], attends=True)
                h = apply(f"{name}_in_1", h, h.shape[-1], attends=False)
            else:
                h = apply(f"{name}_up", h, h.shape[-1], "up")
            for i in range(self.blocks + 1):
                attends = False if self.last_attends_alone and i < self.blocks else None
                h = apply(f"{name}_block_{i}", self.join(h, skips.pop()), self.channels * mult, attends=attends)
            levels.append(h)
        channels = self.channels_out(x)
        return from_patches(self.out(levels, channels * self.patch**2), self.patch)
