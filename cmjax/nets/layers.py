"""Layers of U-Nets: convolutions, resampling, group norm, dropout. Arrays are NHWC, parameters float32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Filter = tuple[int, ...]
"""Taps of a symmetric resampling filter of even length, such as (1, 1) or (1, 3, 3, 1); they need not sum to 1."""


@dataclass(frozen=True)
class Uniform:
    """An initialiser of kernels (..., in, out), U(−bound, bound)."""

    gain: float = 1.0

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = self.bound(shape)
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    def bound(self, shape: Sequence[int]) -> float:
        raise NotImplementedError


class Xavier(Uniform):
    """gain·U(−a, a), a = √(6/(fan_in + fan_out)).   [Glorot & Bengio 2010]"""

    def bound(self, shape: Sequence[int]) -> float:
        return self.gain * (6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1]))) ** 0.5


class FanIn(Uniform):
    """gain·U(−a, a), a = 1/√fan_in: how PyTorch starts its layers, and so the networks of Dhariwal & Nichol 2021."""

    def bound(self, shape: Sequence[int]) -> float:
        return self.gain * math.prod(shape[:-1]) ** -0.5


class Conv(nn.Module):
    """3×3 convolution with a bias and `padding` zeros on each side, at every `stride`-th point."""

    features: int
    kernel_init: Uniform = Xavier()
    padding: int = 1
    stride: int = 1
    dtype: Any = jnp.float32

    bias_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out d"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        y = convolve(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), self.padding, self.stride)
        # axes are added by hand in all modules: users may forbid jax.numpy to promote ranks
        return y + bias.astype(self.dtype)[None, None, None]


class Pointwise(nn.Module):
    """1×1 convolution, with a bias by default: the same matrix at every position."""

    features: int
    kernel_init: Uniform = Xavier()
    dtype: Any = jnp.float32
    use_bias: bool = True

    bias_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(self, x: Float[Array, "*dims c"]) -> Float[Array, "*dims d"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = at_every_position(x.astype(self.dtype), jnp.asarray(kernel, self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,))
        return y + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def at_every_position(x: Float[Array, "*dims c"], kernel: Float[Array, "c d"]) -> Float[Array, "*dims d"]:
    """x @ kernel, with the positions as one axis.

    With more, XLA for CPUs transposes the output's gradient for the kernel's, and computes all that it is made of in
    that order, which can take ten times as long as the product.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], padding: int, stride: int = 1) -> Array:
    """Computes the convolution with `padding` zeros on each side, (b, h_out, w_out, d)."""
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def to_patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h_small w_small d"]:
    """Makes each square of size × size pixels one point of d = c·size² channels."""
    b, h, w, c = x.shape
    # (b, rows, columns, size, size, c): a square's pixels stand last
    squares = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return squares.reshape(b, h // size, w // size, size * size * c)


def from_patches(x: Float[Array, "b h_small w_small d"], size: int) -> Float[Array, "b h w c"]:
    """Inverts `to_patches`."""
    b, h, w, d = x.shape
    squares = x.reshape(b, h, w, size, size, d // size**2)
    return squares.swapaxes(2, 3).reshape(b, h * size, w * size, d // size**2)


def downsample(
    x: Float[Array, "b h w c"], taps: Filter, *, padding: int | None = None
) -> Float[Array, "b h_half w_half c"]:
    """Filters with the normalised taps along h and w and keep every second point; zeros outside.

    A weighted sum of strided slices, which is 20 to 50 times faster on a CPU than the same as a depthwise convolution.
    `padding` on each side is len(taps)/2 − 1 by default, which halves an even size exactly.
    """
    return _down(_down(x, 1, taps, padding), 2, taps, padding)


def upsample(x: Float[Array, "b h w c"], taps: Filter) -> Float[Array, "b h_double w_double c"]:
    """Twice the size along h and w: zeros between the points, then the taps, times 4. (1, 1) repeats each point."""
    return _up(_up(x, 1, taps), 2, taps)


def _down(x: Array, axis: int, taps: Filter, padding: int | None) -> Array:
    padding = len(taps) // 2 - 1 if padding is None else padding
    x = _pad(x, axis, padding)
    size = (x.shape[axis] - len(taps)) // 2 + 1
    weights = np.array(taps) / sum(taps)
    # every second point from k on, `size` of them: the stop is one beyond the last
    slices = (jax.lax.slice_in_dim(x, k, k + 2 * size - 1, 2, axis) for k in range(len(taps)))
    return jnp.asarray(sum(float(w) * part for w, part in zip(weights, slices, strict=True)))


def _up(x: Array, axis: int, taps: Filter) -> Array:
    """Even outputs take the odd taps and odd outputs the even ones, each a weighted sum of shifted inputs."""
    size, reach = x.shape[axis], len(taps) // 2 - 1
    # twice, since every other point between is zero
    weights = 2 * np.array(taps) / sum(taps)
    x = _pad(x, axis, (reach + 1) // 2)

    def shifted(phase: int) -> Array:
        # Output 2m + phase is Σ_k taps[k]·x[m + (phase + reach − k)/2] over the k that make the index whole.
        total = 0
        for k in range((phase + reach) % 2, len(taps), 2):
            start = (reach + 1) // 2 + (phase + reach - k) // 2
            total += float(weights[k]) * jax.lax.slice_in_dim(x, start, start + size, 1, axis)
        return jnp.asarray(total)

    pair = jnp.stack([shifted(0), shifted(1)], axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _pad(x: Array, axis: int, amount: int) -> Array:
    if not amount:
        return x
    return jnp.pad(x, [(amount, amount) if a == axis else (0, 0) for a in range(x.ndim)])


class GroupNorm(nn.Module):
    """`group_norm` with learned scales and biases, in `groups` groups, by default min(32, c/4)."""

    eps: float = 1e-6
    groups: int = 0
    dtype: Any = jnp.float32

    scale_init = staticmethod(nn.initializers.ones)
    bias_init = staticmethod(nn.initializers.zeros)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        groups = self.groups or max(1, min(32, channels // 4))
        if channels % groups:
            raise ValueError(f"channels={channels} cannot be split into {groups} groups; choose a multiple of {groups}")
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", self.bias_init, (channels,))
        return group_norm(x, scale, bias, groups=groups, eps=self.eps).astype(self.dtype)


@partial(jax.jit, static_argnames=("groups", "eps"))  # traced once for each shape: networks have a hundred of them
def group_norm(
    x: Float[Array, "b h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"], *, groups: int, eps: float
) -> Float[Array, "b h w c"]:
    """scale·(x − mean)/√(variance + eps) + bias in float32, the moments over positions and `groups` of neighbouring
    channels.   [Wu & He 2018]

    The moments are means over positions for each channel first, so that the large array is read once for each, and
    once more for the result, whatever the number of groups. As the variance is E[x²] − mean², the result's error is up
    to 6e-7·(mean/std)²: 0.006 where a group's mean is 100 times its standard deviation.
    """
    b, _, _, channels = x.shape

    def moment(values: Array) -> Array:
        by_group = jnp.mean(values, (1, 2)).reshape(b, groups, channels // groups).mean(2)
        return jnp.repeat(by_group, channels // groups, axis=1)

    x = x.astype(jnp.float32)
    mean, square = moment(x), moment(x**2)
    # Of neighbouring values rounding can bring the difference below 0.
    slope = scale[None] * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + eps)
    shift = bias[None] - mean * slope
    return x * slope[:, None, None] + shift[:, None, None]


class Dropout(nn.Module):
    """Zeroes each element with probability `rate`, in steps of 2⁻¹⁶, and scale the rest to keep the mean.

    32 random bits serve two elements: random bits are the cost of dropout on a CPU.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*dims c"], deterministic: bool) -> Float[Array, "*dims c"]:
        if deterministic or self.rate == 0:
            return x
        half = -(-x.shape[-1] // 2)
        bits = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], half), jnp.uint32)
        numbers = jnp.concatenate([bits & 0xFFFF, bits >> 16], axis=-1)[..., : x.shape[-1]]
        # the rate as it is rounded here also scales what is kept, so that the mean is exact
        dropped = round(self.rate * 2**16)
        return jnp.where(numbers >= dropped, x * (2**16 / (2**16 - dropped)), 0).astype(x.dtype)
