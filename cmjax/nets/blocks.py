"""Blocks of the U-Nets: residual blocks and self-attention. Arrays are NHWC."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.layers import Conv, Dropout, Filter, GroupNorm, Pointwise, Uniform, Xavier, downsample, upsample
from cmjax.system.environment import platform

ATTENTIONS = ("xla", "cudnn")
MODULATIONS = ("shift", "scale_shift", "double_norm")


class ResidualBlock(nn.Module):
    """skip_scale·(shortcut(x) + conv(dropout(silu(modulate(conv(silu(norm(x)))))))), then attention if heads > 0.

    resample: "down" or "up" halves or doubles the size before the first convolution and in the shortcut, where
        `project_resampled` adds a 1×1 convolution even if the width stays.
    modulation: how the embedding e enters, with affine maps s and b of it and the group norm n:
        "shift": n(h + b(e));  "scale_shift": n(h)·(1 + s(e)) + b(e)   [Dhariwal & Nichol 2021];
        "double_norm": n(h)·pn(s(e)) + pn(b(e)), pn(a) = a/√(mean a² + 1e-8)   [Lu & Song 2025, adaptive double norm].
    kernel_init: of the kernels but those of q, k, v and those that end a residual branch, which have their own.
    """

    features: int
    resample: str = ""
    heads: int = 0
    dropout: float = 0.0
    skip_scale: float = 0.5**0.5
    taps: Filter = (1, 1)
    project_resampled: bool = True
    modulation: str = "shift"
    norm_eps: float = 1e-6
    norm_groups: int = 0
    kernel_init: Uniform = Xavier()
    last_kernel_init: Uniform = Xavier(1e-5)
    qkv_kernel_init: Uniform = Xavier(0.2**0.5)
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h_out w_out d"]:
        h = self._conv("conv_0")(self._resampled(nn.silu(self._norm("norm_0")(x))))
        h = nn.silu(self._modulated(h, embedding))
        h = self._conv("conv_1", self.last_kernel_init)(Dropout(self.dropout)(h, deterministic))
        if (self.resample and self.project_resampled) or x.shape[-1] != self.features:
            x = Pointwise(self.features, self.kernel_init, dtype=self.dtype, name="shortcut")(self._resampled(x))
        else:
            x = self._resampled(x)
        x = (x + h) * self.skip_scale
        if self.heads:
            x = SelfAttention(
                self.heads, self.norm_eps, self.norm_groups, self.last_kernel_init, self.qkv_kernel_init,
                self.attention, dtype=self.dtype, name="attention",
            )(x) * self.skip_scale  # fmt: skip
        return x

    def _modulated(self, h: Array, embedding: Array) -> Array:
        width = self.features if self.modulation == "shift" else 2 * self.features
        # (b, 1, 1, width): the same at every position
        affine = nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="affine")(embedding)[
            :, None, None
        ]
        norm = self._norm("norm_1")
        if self.modulation == "shift":
            return norm(h + affine)
        scale, shift = jnp.split(affine, 2, axis=-1)
        if self.modulation == "scale_shift":
            return norm(h) * (1 + scale) + shift
        return norm(h) * pixel_norm(scale) + pixel_norm(shift)

    def _norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.norm_eps, self.norm_groups, dtype=self.dtype, name=name)

    def _conv(self, name: str, init: Uniform | None = None) -> Conv:
        return Conv(self.features, kernel_init=init or self.kernel_init, dtype=self.dtype, name=name)

    def _resampled(self, x: Array) -> Array:
        if not self.resample:
            return x
        return downsample(x, self.taps) if self.resample == "down" else upsample(x, self.taps)


def pixel_norm(a: Float[Array, "*dims c"]) -> Float[Array, "*dims c"]:
    """a/√(mean over channels of a² + 1e-8), in float32."""
    a32 = a.astype(jnp.float32)
    return (a32 * jax.lax.rsqrt(jnp.mean(a32**2, axis=-1, keepdims=True) + 1e-8)).astype(a.dtype)


class SelfAttention(nn.Module):
    """Residual attention over the positions of a feature map: x + proj(attend(qkv(norm(x)))).

    The output channels of `qkv` are ordered (which of q, k, v; head; channel).
    """

    heads: int = 1
    norm_eps: float = 1e-6
    norm_groups: int = 0
    last_kernel_init: Uniform = Xavier(1e-5)
    kernel_init: Uniform = Xavier(0.2**0.5)
    implementation: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = GroupNorm(self.norm_eps, self.norm_groups, dtype=self.dtype, name="norm")(x)
        qkv = Pointwise(3 * c, self.kernel_init, dtype=self.dtype, name="qkv")(normed)
        q, k, v = (part.reshape(b, h * w, self.heads, c // self.heads) for part in jnp.split(qkv, 3, axis=-1))
        attended = attend(q, k, v, implementation=self.implementation).reshape(b, h, w, c)
        return x + Pointwise(c, self.last_kernel_init, dtype=self.dtype, name="proj")(attended)


def attend(
    q: Float[Array, "b n heads c"],
    k: Float[Array, "b m heads c"],
    v: Float[Array, "b m heads c"],
    *,
    implementation: str = "xla",
    causal: bool = False,
) -> Float[Array, "b n heads c"]:
    """softmax(q·k/√c)·v, the softmax in float32.

    implementation: "xla", or "cudnn" for the fused kernels of NVIDIA GPUs, which take half precision alone and have no
    forward-mode derivative: tangent losses need "xla".
    causal: each of n places attends to itself and to those before it alone.
    """
    if platform() != "cpu":
        kernel = "cudnn" if implementation == "cudnn" else "xla"
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel, is_causal=causal)
    # Plain products: three quarters of the time of `jax.nn.dot_product_attention` on a CPU.
    logits = jnp.einsum("bqhc,bkhc->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if causal:
        seen = jnp.tri(*logits.shape[2:], dtype=bool)[None, None]
        logits = jnp.where(seen, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)
