"""The base of every network: its call, the checks of its inputs, its added scalars and its loss weight."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.nets.inputs import WeightHead, added_scalars
from cmjax.ranges import Rate
from cmjax.system.mesh import with_auto_axes


class Network(nn.Module, kw_only=True):
    """F(x, c_noise), of the shape of the scaled noised sample x.

    A network is a subclass with its fields, `embed` and `body`, and `check` where its fields can be wrong. The fields
    here are those that every network has.

    dropout: probability, inside each block. num_classes: > 0 accepts `label`.
    two_times: the network takes a second time, `c_noise_s`, as flow maps do. guided: it takes `guidance`, a scale of
        classifier-free guidance; guided_interval: `interval` too, the first and the last time at which it is guided.
        What is added for them starts at zero (see `added_scalars`).
    velocity_head: the last layer has twice the channels, of F and of the velocity at one time, which sampling ignores.
    weight_head: > 0 adds a `WeightHead` of that many features, the learned loss weight of tangent losses.
    dtype: of computation; parameters and the output are float32.
    """

    dropout: Rate = 0.0
    num_classes: int = 0
    two_times: bool = False
    guided: bool = False
    guided_interval: bool = False
    velocity_head: bool = False
    weight_head: int = 0
    dtype: Any = jnp.float32

    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The values that a field may have, by the field."""
    any_shape: ClassVar[bool] = False
    """Whether samples may have any number of axes: signals and points as well as images."""
    normalized_head: ClassVar[bool] = False
    """Whether the weight head has EDM2's form."""

    # Flax's layers do not say how their outputs lie, as Explicit axes want it; arguments 0 and 1, the module and its
    # variables, have no axis of samples
    apply = nn.nowrap(with_auto_axes(nn.Module.apply, rows_from=2))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *dims"],
        c_noise: Float[Array, " b"],
        *,
        label: Any = None,
        augment: Float[Array, "b a"] | None = None,
        c_noise_s: Float[Array, " b"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        interval: Float[Array, "b 2"] | None = None,
        deterministic: bool = True,
        return_weight: bool = False,
        return_velocity: bool = False,
    ) -> Any:
        """F (b, ...), float32; with `return_weight` the pair of it and the weight head's w (b,), with `return_velocity`
        the pair of it and the velocity head's v (b, ...).

        x: the scaled noised sample. c_noise: (b,) the network's time. label: (b,) or one; -1, None: no class.
        augment: how x was augmented, of a network with augment_dim; None for samples as they are.
        c_noise_s: (b,) the second time, of a network with two_times. guidance: (b,) the scale, of one with guided.
        interval: of guidance, of one with guided_interval; None for all times.
        deterministic: False draws dropout masks from the rng "dropout".

        Raises: ValueError naming the field that has a wrong value, or the input that the network does not take.
        """
        augment_dim = getattr(self, "augment_dim", 0)
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if label is not None and not self.num_classes:
            raise ValueError("label was given to a network with num_classes=0")
        if augment is not None and not augment_dim:
            raise ValueError("augment was given to a network with augment_dim=0")
        if return_weight and not self.weight_head:
            raise ValueError("return_weight=True was asked of a network with weight_head=0")
        if return_velocity and not self.velocity_head:
            raise ValueError("return_velocity=True was asked of a network with velocity_head=False")
        self.check(x)
        scalars = added_scalars(self, c_noise, c_noise_s, guidance, interval)
        # a network with classes always gets labels, and one without ignores them: `embed` has one case
        label = checks.as_labels(-1 if label is None else label, x.shape[0], self.num_classes or None)
        augment = jnp.zeros((*c_noise.shape, augment_dim)) if augment is None else augment
        # float32 whatever the dtype of computation: the scalings and the loss go on from here
        out = jnp.asarray(self.body(x, self.embed(c_noise, label, augment, scalars), deterministic), jnp.float32)
        if self.velocity_head:
            out, velocity = jnp.split(out, 2, axis=-1)
            if return_velocity:
                return out, velocity
        if not self.weight_head:
            return out
        second = None
        if self.two_times:
            # None only while parameters are initialised
            second = jnp.zeros_like(c_noise) if c_noise_s is None else c_noise_s
        weight = WeightHead(self.weight_head, self.normalized_head, name="weight_head")(c_noise, second)
        return (out, weight) if return_weight else out

    def check(self, x: Array) -> None:
        """Raises ValueError naming a field whose value is wrong, or does not fit x."""

    def guidance_seen(self, guidance: Array) -> Array:
        """Gives what the embedding sees of the scale of guidance ω, (b,): arcsinh(ω)/2.

        Smooth, near linear up to 1 and logarithmic above, it takes [0, 15] to [0, 1.7], which is where times lie.
        """
        return jnp.arcsinh(guidance) / 2

    def embed(self, c_noise: Array, label: Array, augment: Array, scalars: Mapping[str, Array]) -> Array:
        """Makes the vector that conditions every block, (b, e).

        label: (b,), -1 for no class. augment: (b, a). scalars: (b,) each, as of `added_scalars`; each has an embedding
        of its name whose output starts at zero.
        """
        raise NotImplementedError

    def body(self, x: Array, embedding: Array, deterministic: bool) -> Array:
        """F (b, ...), of `channels_out` channels."""
        raise NotImplementedError

    def channels_out(self, x: Array) -> int:
        """Gives the channels of the last layer."""
        return (getattr(self, "out_channels", None) or x.shape[-1]) * (2 if self.velocity_head else 1)


def block_class(kind: Any, *, remat: bool) -> Any:
    """Gives the class of a block of (h, embedding, deterministic), whose backward pass recomputes it if `remat`."""
    # counting self, argument 3 is `deterministic`, by which the block is traced
    return nn.remat(kind, static_argnums=(3,)) if remat else kind
