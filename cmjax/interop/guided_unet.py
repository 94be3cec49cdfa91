"""The conditional U-Net as the network of a `Model`, with guidance as its input or by negative prompts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.guidance import mix
from cmjax.nets.conditional_blocks import guidance_waves
from cmjax.nets.conditional_unet import ConditionalUNet


def guided_unet(
    module: ConditionalUNet,
    steps: int,
    params: Any,
    x: Array,
    c_noise: Array,
    *,
    key: Any = None,
    guidance: Array | None = None,
    negative: Mapping[str, Array] | None = None,
    **conditions: Any,
) -> Array:
    """F(x, c_noise) of a U-Net, (b, h, w, c), with its guidance, see `TextToImage.net`. c_noise: (b,), steps/`steps`.

    Raises: ValueError where guidance and negative conditions do not fit the network.
    """

    def apply(x: Array, time: Array, **inputs: Any) -> Array:
        out: Any = module.apply({"params": params}, x, time, **inputs)
        return out

    # The networks learned whole steps, and in float32 0.339·1000 is not 339.
    time = steps * c_noise.astype(jnp.float32)
    off = jnp.round(time) - time
    time += jax.lax.stop_gradient(jnp.where(jnp.abs(off) < 1e-3, off, 0))
    if guidance is not None:
        guidance = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), x.shape[:1])
    if module.guidance_width:
        if negative is not None:
            raise ValueError("negative was given to a network that has its guidance as an input, and takes none")
        seen = None if guidance is None else guidance_waves(guidance - 1, module.guidance_width)
        return apply(x, time, guidance_embedding=seen, **conditions)
    if guidance is None or negative is None:
        if guidance is not None or negative is not None:
            raise ValueError("guidance and negative must be given together to a network without guidance_width")
        return apply(x, time, **conditions)
    both = {name: jnp.concatenate([value, negative[name]]) for name, value in conditions.items()}
    doubled = apply(jnp.concatenate([x, x]), jnp.concatenate([time, time]), **both)
    return mix(doubled[: len(x)], doubled[len(x) :], guidance)
