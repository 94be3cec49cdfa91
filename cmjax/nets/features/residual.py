"""A small residual classifier of colour images, for features trained on the data set itself."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.layers import to_patches

WIDTHS = (32, 64, 128)


class ResidualClassifier(nn.Module):
    """Images (b, h, w, c) in [-1, 1] -> features (b, 128), a mean over the last stage, and logits (b, classes).

    Three stages, each of which takes squares of 2×2 points as one and ends in a residual block, with group norms, which
    need no running means.   [He et al. 2016; Wu & He 2018]
    """

    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        x = images
        for i, width in enumerate(WIDTHS):
            # a strided convolution's gradient is several times slower on a CPU
            x = nn.Dense(width, use_bias=False, name=f"down{i}")(to_patches(_even(x), 2))
            x = nn.relu(nn.GroupNorm(8, name=f"norm{i}")(x))
            h = nn.Conv(width, (3, 3), use_bias=False, name=f"block{i}a")(x)
            h = nn.relu(nn.GroupNorm(8, name=f"norm{i}a")(h))
            h = nn.Conv(width, (3, 3), use_bias=False, name=f"block{i}b")(h)
            x = nn.relu(x + nn.GroupNorm(8, name=f"norm{i}b", scale_init=nn.initializers.zeros)(h))
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(self.classes, name="head")(features)


def _even(x: Float[Array, "b h w c"]) -> Float[Array, "b h_even w_even c"]:
    """Adds a row or a column of zeros where their number is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
