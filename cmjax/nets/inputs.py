"""Optional parts of networks: a second time, a scale and an interval of guidance as inputs, a loss weight as output."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.nets.layers import Uniform
from cmjax.nets.magnitude import Fourier, MPLinear

ADDED = frozenset({"time_s", "guidance", "first", "last", "weight_head", "cond_proj"})
"""Modules that a network may have where the one that it starts from has none: `added_scalars`' embeddings and the loss
weight, which leave its function as it is, and an LCM's matrix of guidance, which does not."""


def added_scalars(
    module: nn.Module,
    c_noise: Float[Array, " b"],
    c_noise_s: Array | None,
    guidance: Array | None,
    interval: Array | None = None,
) -> dict[str, Array]:
    """Checks and scales the inputs of `module` beside c_noise, (b,) each, under the names of its embeddings: "time_s",
    "guidance", and "first" and "last" of the interval of guidance (b, 2), by default all times, from 0 to 1.

    The second time stays in the units of c_noise. Of a guidance scale the embedding sees `module.guidance_seen` of it.

    Raises: ValueError naming an input that was given to a network without its field, `two_times` or `guided`, or that
            is missing where the network has it. While parameters are initialized c_noise stands for what is missing.
    """
    scalars = {}
    for name, field, argument, value in (
        ("time_s", "two_times", "c_noise_s", c_noise_s),
        ("guidance", "guided", "guidance", guidance),
    ):
        taken = getattr(module, field)
        if value is not None and not taken:
            raise ValueError(f"{argument} was given to a network with {field}=False")
        if value is None and taken and not module.is_initializing():
            raise ValueError(f"{argument} must be given to a network with {field}=True")
        if taken:
            scalars[name] = c_noise if value is None else value
    if "guidance" in scalars:
        scalars["guidance"] = module.guidance_seen(scalars["guidance"])
    taken = module.guided_interval
    if interval is not None and not taken:
        raise ValueError("interval was given to a network with guided_interval=False")
    if taken:
        # no interval means guidance at all times of the path, 0 to 1
        whole = (jnp.zeros_like(c_noise), jnp.ones_like(c_noise))
        scalars["first"], scalars["last"] = whole if interval is None else (interval[:, 0], interval[:, 1])
    return scalars


class AddedEmbedding(nn.Module):
    """(b, f) waves of a number -> (b, width): two layers, the last of which starts at zero."""

    width: int
    kernel_init: Uniform

    @nn.compact
    def __call__(self, waves: Float[Array, "b f"]) -> Float[Array, "b width"]:
        h = nn.silu(nn.Dense(self.width, kernel_init=self.kernel_init, name="dense_0")(waves))
        return nn.Dense(self.width, kernel_init=nn.initializers.zeros, name="dense_1")(h)


class WeightHead(nn.Module):
    """w(c_noise) = a·Fourier(c_noise) + b: the log variance u of EDM2's loss, the w of sCM's.

    A flow map's weight is a function of both of its times.

    features: of c_noise; the published networks have 128.
    normalized: EDM2's form, whose a has norm 1 and whose b is absent; otherwise w starts at zero.
    [Karras et al. 2024, eq. 21; Lu & Song 2025, eq. 8]
    """

    features: int = 128
    normalized: bool = False

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], c_noise_s: Float[Array, " b"] | None = None) -> Float[Array, " b"]:
        waves = Fourier(self.features, name="fourier")(c_noise)
        if c_noise_s is not None:
            waves = jnp.concatenate([waves, Fourier(self.features, name="fourier_s")(c_noise_s)], axis=1)
        if self.normalized:
            return MPLinear(1, name="linear")(waves)[:, 0]
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="linear")(waves)[:, 0]
