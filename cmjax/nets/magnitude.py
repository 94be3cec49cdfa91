"""Layers that preserve magnitude: unit variance in, unit variance out.   [Karras et al. 2024]"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Float, Key

from cmjax.nets.layers import at_every_position, convolve


@dataclass(frozen=True)
class Normal:
    """An initialiser, N(0, std²)."""

    std: float = 1.0

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return self.std * jax.random.normal(key, tuple(shape), dtype)


@partial(jax.jit, static_argnames="axes")  # traced once for each shape: EDM2 has two hundred of them
def normalize(x: Float[Array, "*dims c"], axes: int | tuple[int, ...] = -1) -> Float[Array, "*dims c"]:
    """x/(rms(x) + 1e-4), the root mean square over `axes`: pixel norm over the channels, in float32."""
    x32 = x.astype(jnp.float32)
    # Without a floor the root's derivative at zeros is infinite, and the gradient nan.
    rms = jnp.sqrt(jnp.mean(x32**2, axes, keepdims=True) + 1e-12)
    return (x32 / (rms + 1e-4)).astype(x.dtype)


def normalize_weights(params: Any) -> Any:
    """Gives each `kernel` (..., in, out) root mean square 1 for each output; other parameters stay as they are.

    Forced weight normalisation. Kernels are normalised whenever they are used, so that this changes no output; it keeps
    updates, whose size does not depend on the kernel's, from being worth ever less as the kernels grow.
    [Karras et al. 2024, eq. 66]
    """

    def project(path: Any, leaf: Array) -> Array:
        return normalize(leaf, tuple(range(leaf.ndim - 1))) if path[-1].key == "kernel" else leaf

    return tree_map_with_path(project, params)


def mp_silu(x: Float[Array, "*dims c"]) -> Float[Array, "*dims c"]:
    """silu(x)/0.596, of unit mean square where x ~ N(0, 1).   [eq. 81]"""
    return nn.silu(x) / 0.596


def mp_sum(a: Float[Array, "*dims c"], b: Float[Array, "*dims c"], balance: float) -> Float[Array, "*dims c"]:
    """((1 − t)·a + t·b)/√((1 − t)² + t²) with the balance t.   [eq. 88]"""
    return ((1 - balance) * a + balance * b) / float(np.hypot(1 - balance, balance))


def mp_concat(a: Float[Array, "*dims c"], b: Float[Array, "*dims d"], balance: float) -> Float[Array, "*dims c+d"]:
    """a and b along the channels, scaled so that b has the fraction t of the whole's magnitude.   [eq. 103]"""
    c, d = a.shape[-1], b.shape[-1]
    scale = float(np.sqrt(c + d) / np.hypot(1 - balance, balance))
    return jnp.concatenate([a * (scale * (1 - balance) / c**0.5), b * (scale * balance / d**0.5)], axis=-1)


class Fourier(nn.Module):
    """√2·cos(c_noise·frequencies + phases), the frequencies 2π·N(0, 1) and the phases uniform; float32.   [eq. 75]"""

    features: int

    frequencies_init = staticmethod(Normal(2 * np.pi))
    phases_init = staticmethod(nn.initializers.uniform(2 * np.pi))

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"]) -> Float[Array, "b f"]:
        # Constants that a checkpoint must carry: among the parameters, and never trained.
        frequencies = jax.lax.stop_gradient(self.param("frequencies", self.frequencies_init, (self.features,)))
        phases = jax.lax.stop_gradient(self.param("phases", self.phases_init, (self.features,)))
        return 2**0.5 * jnp.cos(c_noise.astype(jnp.float32)[:, None] * frequencies[None] + phases[None])


class MPLinear(nn.Module):
    """x @ w·gain along the channels, where w is the kernel with unit norm for each output. No bias.   [eq. 47]"""

    features: int
    dtype: Any = jnp.float32

    kernel_init = staticmethod(Normal())
    window: ClassVar[tuple[int, ...]] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "*dims c"], gain: Float[Array, ""] | float = 1.0) -> Float[Array, "*dims d"]:
        kernel = self.param("kernel", self.kernel_init, (*self.window, x.shape[-1], self.features))
        fan_in = kernel.size // kernel.shape[-1]
        # The gain goes into the kernel, in float32: there is less of it than of the output.
        # a root mean square of 1, over √fan_in, is a norm of 1
        unit = (normalize(kernel, tuple(range(kernel.ndim - 1))) * (gain / fan_in**0.5)).astype(self.dtype)
        return convolve(x.astype(self.dtype), unit, 1) if self.window else at_every_position(x.astype(self.dtype), unit)


class MPConv(MPLinear):
    """3×3 convolution by gain·w, where w is the kernel with unit norm for each output; zeros outside. No bias."""

    window = (3, 3)
