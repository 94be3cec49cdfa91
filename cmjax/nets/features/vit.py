"""The vision transformers of DINOv2 and CLIP, for features of images.   [Dosovitskiy et al. 2021]"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from cmjax.nets.features.resize import resized, torch_bicubic

EXACT = jax.lax.Precision.HIGHEST


class Layer(nn.Module):
    """x + s1·attention(norm(x)), then x + s2·mlp(norm(x)); s are learned scales, or 1."""

    heads: int
    eps: float
    scaled: bool
    quick_gelu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], _: None) -> tuple[Float[Array, "b n d"], None]:
        width = x.shape[-1]
        h = nn.LayerNorm(epsilon=self.eps, name="norm1")(x)
        qkv = nn.Dense(3 * width, precision=EXACT, name="qkv")(h)
        # (b, n, 3, heads, c) to q, k and v, (b, n, heads, c) each
        q, k, v = jnp.moveaxis(qkv.reshape(*h.shape[:2], 3, self.heads, -1), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=EXACT) * q.shape[-1] ** -0.5)
        h = jnp.einsum("bhnm,bmhd->bnhd", weights, v, precision=EXACT).reshape(x.shape)
        x = x + self._scale("scale1", width) * nn.Dense(width, precision=EXACT, name="out")(h)
        h = nn.LayerNorm(epsilon=self.eps, name="norm2")(x)
        h = nn.Dense(4 * width, precision=EXACT, name="fc1")(h)
        h = h * jax.nn.sigmoid(1.702 * h) if self.quick_gelu else jax.nn.gelu(h, approximate=False)
        # the pair that `nn.scan` asks for: what is carried on, and what is collected
        return x + self._scale("scale2", width) * nn.Dense(width, precision=EXACT, name="fc2")(h), None

    def _scale(self, name: str, width: int) -> Any:
        if not self.scaled:
            return 1.0
        return self.param(name, nn.initializers.ones, (width,))[None, None]


class ViT(nn.Module):
    """Gives the class token's output (b, width), or (b, embedding) behind a projection, of images (b, side, side, 3)
    that are normalised already. CLIP's normalises the tokens before the first layer as well."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    eps: float
    clip: bool
    embedding: int = 0

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b _"]:
        patch, count = (self.patch, self.patch), (self.side // self.patch) ** 2
        x = nn.Conv(self.width, patch, patch, "VALID", use_bias=not self.clip, precision=EXACT, name="patches")(images)
        token = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
        positions = self.param("positions", nn.initializers.normal(0.02), (count + 1, self.width))
        tokens = jnp.broadcast_to(token, (len(images), 1, self.width))
        x = jnp.concatenate([tokens, x.reshape(len(images), count, self.width)], axis=1) + positions[None]
        if self.clip:
            x = nn.LayerNorm(epsilon=self.eps, name="pre_norm")(x)
        # one layer is traced; the parameters of all are stacked along a first axis
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        x, _ = layers(self.heads, self.eps, not self.clip, self.clip, name="layers")(x, None)
        x = nn.LayerNorm(epsilon=self.eps, name="norm")(x[:, 0])
        if self.embedding:
            x = nn.Dense(self.embedding, use_bias=False, precision=EXACT, name="projection")(x)
        return x

    def parameter_shapes(self) -> Any:
        images = jax.ShapeDtypeStruct((1, self.side, self.side, 3), jnp.float32)
        return jax.eval_shape(self.init, jax.random.key(0), images)["params"]


DINOV2 = ViT(side=224, patch=14, width=1024, depth=24, heads=16, eps=1e-6, clip=False)
"""DINOv2 ViT-L/14 at 224 pixels.   [Oquab et al. 2024]"""
CLIP = ViT(side=336, patch=14, width=1024, depth=24, heads=16, eps=1e-5, clip=True, embedding=768)
"""CLIP ViT-L/14 at 336 pixels.   [Radford et al. 2021]"""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and stds of channels in [0, 1]."""


def dinov2_inputs(images: Num[Array, "b h w 3"], side: int) -> Float[Array, "b _ _ 3"]:
    """Images, 0 to 255, as EDM2's fd_dinov2 feeds them: bicubic (a = −0.5) with antialiasing, not clipped."""
    size = (len(images), side, side, 3)
    return _normalised(jax.image.resize(images.astype(jnp.float32), size, "cubic"), *IMAGENET)


def clip_inputs(images: Num[Array, "b h w 3"], side: int) -> Float[Array, "b _ _ 3"]:
    """Images, 0 to 255, as CMMD's code feeds them: PyTorch's bicubic without antialiasing, not clipped."""
    return _normalised(
        resized(images, torch_bicubic(images.shape[1], side), torch_bicubic(images.shape[2], side)), *CLIPS
    )


def _normalised(images: Float[Array, "b h w 3"], mean: tuple, std: tuple) -> Float[Array, "b h w 3"]:
    shift, scale = (np.asarray(values, np.float32)[None, None, None] for values in (mean, std))
    return (images / 255 - shift) / scale
