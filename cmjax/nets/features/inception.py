"""InceptionV3 as the graph of 2015-12-05 has it, which every published FID is of.

It is not the Inception of torchvision: average pools leave padding out of their mean, the last block pools by maxima,
and images come through TensorFlow 1's bilinear resize. Modules are named as PyTorch's ports name them; their batch
normalisation is folded into the convolutions.   [Szegedy et al. 2016; Heusel et al. 2017]
"""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from cmjax.nets.features.resize import resized, tf1_bilinear

SIDE, CLASSES = 299, 1008
SPATIAL = 7
"""Channels of mixed_6/conv that sFID takes.   [Nash et al. 2021]"""

Size = int | tuple[int, int]


class Block(nn.Module):
    """Convolutions with a ReLU behind each, side by side. stride: of the last in each branch, which is then unpadded.

    branches: (name, channels, size) of each branch's convolutions; a last element of several is a fork whose ends
    stand side by side. pool: "avg", "max", or "" for none; pool_channels: 0 where no convolution stands behind it.
    """

    branches: tuple[tuple[Any, ...], ...]
    pool: str
    pool_channels: int = 0
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """Gives each branch's end by its last convolution's name, in order."""
        ends = {}
        for branch in self.branches:
            h = x
            for i, layer in enumerate(branch):
                last = i == len(branch) - 1
                # a fork ends its branch, and all of its ends count
                if isinstance(layer[0], tuple):
                    ends |= {name: conv(name, width, size)(h) for name, width, size in layer}
                    break
                name, width, size = layer
                h = conv(name, width, size, self.stride if last else 1)(h)
                if last:
                    ends[name] = h
        if self.pool == "avg":
            pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        else:
            strides, padding = ((2, 2), "VALID") if self.stride == 2 else ((1, 1), "SAME")
            pooled = nn.max_pool(x, (3, 3), strides, padding)
        ends["branch_pool"] = conv("branch_pool", self.pool_channels, 1)(pooled) if self.pool_channels else pooled
        return ends


def conv(name: str, channels: int, size: Size, stride: int = 1, padding: str | None = None):
    """Makes a convolution with a ReLU, padded to the same size unless it strides."""
    kernel = (size, size) if isinstance(size, int) else size
    padding = padding or ("SAME" if stride == 1 else "VALID")
    # products in TF32 or bfloat16, which accelerators take by default, would move the published values
    layer = nn.Conv(channels, kernel, (stride, stride), padding=padding, precision=jax.lax.Precision.HIGHEST, name=name)
    return lambda x: nn.relu(layer(x))


DOUBLE = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))


def _a(pool: int) -> dict[str, Any]:
    five = (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    return {"branches": ((("branch1x1", 64, 1),), five, DOUBLE), "pool": "avg", "pool_channels": pool}


def _c(width: int) -> dict[str, Any]:
    seven = (("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1)))
    sizes = (1, (7, 1), (1, 7), (7, 1))
    double = tuple((f"branch7x7dbl_{i + 1}", width, size) for i, size in enumerate(sizes))
    double += (("branch7x7dbl_5", 192, (1, 7)),)
    return {"branches": ((("branch1x1", 192, 1),), seven, double), "pool": "avg", "pool_channels": 192}


def _d() -> dict[str, Any]:
    three = (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3))
    seven = (("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)))
    return {"branches": (three, (*seven, ("branch7x7x3_4", 192, 3))), "pool": "max", "stride": 2}


def _e(pool: str) -> dict[str, Any]:
    three = (("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))))
    fork = (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1)))
    double = (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork)
    return {"branches": ((("branch1x1", 320, 1),), three, double), "pool": pool, "pool_channels": 192}


BLOCKS: dict[str, dict[str, Any]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": {"branches": ((("branch3x3", 384, 3),), DOUBLE), "pool": "max", "stride": 2},
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e("avg"),
    "Mixed_7c": _e("max"),
}


class Inception(nn.Module):
    """images (b, h, w, 3), 0 to 255 -> "features" (b, 2048), the mean over pool_3; "spatial" (b, 2023), of
    mixed_6/conv; "probabilities" (b, 1008), of logits without bias as the Inception Score has them."""

    @nn.compact
    def __call__(self, images: Num[Array, "b h w 3"]) -> dict[str, Float[Array, "b _"]]:
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
        x = resized(images, tf1_bilinear(images.shape[1], SIDE), tf1_bilinear(images.shape[2], SIDE))
        # the graph's own scaling, a little less than [-1, 1]
        x = (x - 128) / 128
        x = conv("Conv2d_1a_3x3", 32, 3, 2)(x)
        x = conv("Conv2d_2a_3x3", 32, 3, padding="VALID")(x)
        x = pool(conv("Conv2d_2b_3x3", 64, 3)(x))
        x = conv("Conv2d_3b_1x1", 80, 1)(x)
        x = pool(conv("Conv2d_4a_3x3", 192, 3, padding="VALID")(x))
        spatial = x
        for name, block in BLOCKS.items():
            ends = Block(**block, name=name)(x)
            if name == "Mixed_6d":
                # the first 7 channels of 17×17 places, 2023 numbers
                spatial = ends["branch1x1"][..., :SPATIAL]
            x = jnp.concatenate(list(ends.values()), axis=-1)
        features = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        return {
            "features": features,
            "spatial": spatial.reshape(len(spatial), -1),
            "probabilities": jax.nn.softmax(head(features)),
        }


@cache
def parameter_shapes() -> Any:
    """Gives the shapes of `Inception`'s parameters."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
