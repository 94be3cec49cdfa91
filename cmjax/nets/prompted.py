"""A U-Net that sees prompts as the network of a `Model`: its times in [0, 1], its scale of guidance as embedded."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.nets.conditional_blocks import guidance_waves
from cmjax.nets.conditional_unet import ConditionalUNet

STEPS = 1000
"""Of the diffusion models that these networks come from, where nothing else is said."""


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
