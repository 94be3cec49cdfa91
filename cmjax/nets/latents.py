"""An autoencoder with its weights: images to latents and back as pure functions, large images in parts."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax import checks
from cmjax.nets.autoencoder import AutoencoderKL
from cmjax.system.content import content_key
from cmjax.system.mesh import with_auto_axes

Samples = Array | np.ndarray


@partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["module", "scale", "shift", "sample_size"]
)
@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Holds an `AutoencoderKL` bound to its parameters. `encode` and `decode` are pure functions of arrays.

    It is a pytree whose leaves are the parameters: a jitted function may close over it or take it as an argument, as in
    `jax.jit(Autoencoder.decode)(autoencoder, latents)`. Both functions speak of the autoencoder's own latents z; a
    network sees them as (z − shift)·scale, which are `scaled(z)`.

    scale, shift: a number for each channel of latents; None where the file of the weights leaves them open.
    sample_size: height and width of the images that it was trained with; only the tiles' default size depends on it.
    """

    params: Any
    module: AutoencoderKL
    scale: tuple[float, ...] | None
    shift: tuple[float, ...] | None
    sample_size: int

    @property
    def factor(self) -> int:
        """Height and width of an image over those of its latents."""
        return self.module.factor

    @property
    def latent_channels(self) -> int:
        return self.module.latent_channels

    @property
    def weights_key(self) -> str:
        """A key of the weights and the module's fields but the dtype, for the manifest of encoded data."""
        names = {f.name for f in dataclasses.fields(self.module)} - {"parent", "name", "dtype"}
        return content_key(self.params, {name: getattr(self.module, name) for name in names})

    def encode(self, images: Samples) -> tuple[Array, Array]:
        """Encodes images (b, h, w, c) in [−1, 1]: mean and log variance (b, h/factor, w/factor, l) of their latents.

        Raises: TypeError where images are no floats; ValueError where their channels or their size do not fit.
        """
        images = _checked("images", images, self.module.channels, multiple=self.factor)
        return self._apply("encode", images)

    def decode(self, latents: Samples) -> Array:
        """Decodes latents (b, h, w, l) as images (b, h·factor, w·factor, c), in about [−1, 1] and not clipped.

        Raises: TypeError where latents are no floats; ValueError where their channels do not fit.
        """
        latents = _checked("latents", latents, self.latent_channels)
        return self._apply("decode", latents)

    def decode_tiled(self, latents: Samples, *, tile: int | None = None, overlap: float = 0.25) -> Array:
        """Decodes large images in overlapping squares, one after the other, in the memory that one takes.

        The squares have one size, so that one program serves all, and cover the latents evenly. The image is their
        mean, with weights that fall to 0 towards those edges of a square beyond which others go on. Squares do not see
        one another, and each has group norms of its own: images differ a little from those of `decode`, and are the
        same where one square holds all.

        Args:   tile: side of a square of latents, by default that of an image of `sample_size`.
                overlap: least part of the side that neighbours share.
        Raises: as `decode`; ValueError where tile or overlap is out of range.
        """
        latents = _checked("latents", latents, self.latent_channels)
        return _in_squares(self, latents, "decode", *self._squares_of(tile, overlap))

    def encode_tiled(self, images: Samples, *, tile: int | None = None, overlap: float = 0.25) -> tuple[Array, Array]:
        """Encodes large images in overlapping squares, as `decode_tiled` decodes them: mean and log variance.

        Args:   tile, overlap: of latents, as there. Raises: as `encode`; ValueError where tile or overlap is out of
                range.
        """
        images = _checked("images", images, self.module.channels, multiple=self.factor)
        moments = _in_squares(self, images, "encode", *self._squares_of(tile, overlap))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, logvar

    def _squares_of(self, tile: int | None, overlap: float) -> tuple[int, float]:
        tile = max(1, self.sample_size // self.factor) if tile is None else tile
        if tile < 1 or not 0 <= overlap < 1:
            raise ValueError(f"tile={tile}, overlap={overlap}: tile must be at least 1, overlap must lie in [0, 1)")
        return tile, overlap

    def _apply(self, method: str, x: Array) -> Any:
        return self.module.apply({"params": self.params}, x, method=method)

    def scaled(self, latents: Samples) -> Array:
        """Returns (latents − shift)·scale for each channel, as networks see latents.

        Raises: ValueError where the scale is not known, or latents have other channels.
        """
        latents, scale, shift = self._affine(latents)
        return (latents - shift) * scale

    def unscaled(self, latents: Samples) -> Array:
        """Returns latents/scale + shift, the inverse of `scaled`, for `decode`. Raises: as `scaled`."""
        latents, scale, shift = self._affine(latents)
        return latents / scale + shift

    def _affine(self, latents: Samples) -> tuple[Array, Array, Array]:
        """Gives the latents, and scale and shift with as many axes."""
        if self.scale is None or self.shift is None:
            raise ValueError(
                "the weights' file does not say how networks see its latents: give it to load_autoencoder, as scale="
                "0.18215 (Stable Diffusion), scale=0.13025 (SDXL) or statistics='latents_stats.pt' (VA-VAE)"
            )
        checks.floating("latents", latents)
        latents = jnp.asarray(latents)
        if latents.shape[-1:] != (self.latent_channels,):
            raise ValueError(f"latents must have {self.latent_channels} channels in the last axis, got {latents.shape}")
        scale, shift = (jnp.asarray(values, latents.dtype) for values in (self.scale, self.shift))
        axes = tuple(range(latents.ndim - 1))
        return latents, jnp.expand_dims(scale, axes), jnp.expand_dims(shift, axes)

    def __repr__(self) -> str:
        parameters = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return (
            f"Autoencoder(factor={self.factor}, latent_channels={self.latent_channels}, scale={self.scale}, "
            f"shift={self.shift}, parameters={parameters:,})"
        )


def _checked(name: str, x: Samples, channels: int, multiple: int = 1) -> Array:
    checks.floating(name, x)
    x = jnp.asarray(x)
    uneven = x.ndim == 4 and any(length % multiple or not length for length in x.shape[1:3])
    if x.ndim != 4 or x.shape[3] != channels or uneven:
        sizes = f", h and w multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name} must be of the shape (b, h, w, {channels}){sizes}; got {x.shape}")
    return x


@partial(with_auto_axes, rows_from=1)
def _in_squares(autoencoder: Autoencoder, inputs: Array, method: str, tile: int, overlap: float) -> Array:
    """Applies `encode` or `decode` to inputs (b, h, w, c) in squares of `tile` latents a side. A mean and its log
    variance lie side by side along the channels."""
    factor, encodes = autoencoder.factor, method == "encode"
    before, after = (factor, 1) if encodes else (1, factor)  # points of a side of the inputs and outputs, for a latent
    (b, *size, channels), outputs = inputs.shape, autoencoder.module.out_channels
    size, outputs = [length // before for length in size], 2 * autoencoder.latent_channels if encodes else outputs
    height, width = (min(tile, length) for length in size)
    rows, down = _squares(size[0], height, overlap, after)
    columns, across = _squares(size[1], width, overlap, after)

    def add(so_far: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        row, column = place
        y, x = rows[row], columns[column]
        square = (b, height * before, width * before, channels)
        part = getattr(autoencoder, method)(jax.lax.dynamic_slice(inputs, (0, y * before, x * before, 0), square))
        part = jnp.concatenate(part, axis=-1) if encodes else part
        # (1, rows, columns, 1): falls towards the edges that other squares overlap
        weight = (down[row][:, None] * across[column][None])[None, :, :, None]
        corner = (0, y * after, x * after, 0)
        # squares overlap: each adds its weighted part to what is there
        here = jax.lax.dynamic_slice(so_far, corner, part.shape)
        return jax.lax.dynamic_update_slice(so_far, here + part * weight.astype(part.dtype), corner), None

    nothing = jnp.zeros((b, *(after * length for length in size), outputs), inputs.dtype)
    row, column = jnp.meshgrid(jnp.arange(len(rows)), jnp.arange(len(columns)), indexing="ij")
    return jax.lax.scan(add, nothing, (row.ravel(), column.ravel()))[0]


def _squares(length: int, side: int, overlap: float, factor: int) -> tuple[Array, Array]:
    """Along one axis: where squares begin, (n,), and the weights of their outputs, (n, side·factor).

    At each point of the output the weights of all squares have the sum 1.
    """
    step = max(1, math.floor(side * (1 - overlap)))
    count = 1 + math.ceil((length - side) / step)
    starts = np.round(np.linspace(0, length - side, count)).astype(int)
    # from 0 to 1 over the overlap
    slope = np.minimum((np.arange(side * factor) + 0.5) / max(1.0, overlap * side * factor), 1)
    weights = np.ones((count, side * factor))
    # the image's own edges have no slope
    weights[1:] *= slope[None]
    weights[:-1] *= slope[None, ::-1]
    pixels = starts[:, None] * factor + np.arange(side * factor)[None]
    total = np.zeros(length * factor)
    np.add.at(total, pixels, weights)
    return jnp.asarray(starts), jnp.asarray(weights / total[pixels], jnp.float32)
