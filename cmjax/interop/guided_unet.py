"""The conditional U-Net as the network of a `Model`, with guidance as its input or by negative prompts."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.guidance import mix
from cmjax.nets.conditional_unet import ConditionalUNet, prompted_net


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
    if module.guidance_width:
        if negative is not None:
            raise ValueError("negative was given to a network that has its guidance as an input, and takes none")
        return prompted_net(module, steps, params, x, c_noise, guidance=guidance, **conditions)
    if guidance is None or negative is None:
        if guidance is not None or negative is not None:
            raise ValueError("guidance and negative must be given together to a network without guidance_width")
        return prompted_net(module, steps, params, x, c_noise, **conditions)
    both = {name: jnp.concatenate([value, negative[name]]) for name, value in conditions.items()}
    doubled = prompted_net(module, steps, params, *(jnp.concatenate([part, part]) for part in (x, c_noise)), **both)
    return mix(doubled[: len(x)], doubled[len(x) :], jnp.asarray(guidance, jnp.float32))
