"""Gaussian probability paths x_t = a(t)·x0 + b(t)·noise and the probability-flow ODE along them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.typing import Samples, Time


def per_sample(value: Time, x: Array) -> Array:
    """Give a scalar or (b,) array trailing axes of length one, so that it multiplies `x` (b, ...) sample by sample."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


@dataclass(frozen=True)
class Path:
    """The signal scale a(t), the noise scale b(t) and their derivatives, elementwise functions of time.

    `time_of`: noise level σ -> the time t with b(t)/a(t) = σ, for what moves between noise levels off a grid of times.
    """

    a: Callable[[Array], Array]
    b: Callable[[Array], Array]
    da: Callable[[Array], Array]
    db: Callable[[Array], Array]
    time_of: Callable[[Array], Array] | None = field(default=None, kw_only=True)

    def add_noise(self, x0: Samples, noise: Samples, t: Time) -> Samples:
        """x_t = a(t)·x0 + b(t)·noise."""
        t = per_sample(t, x0)
        return self.a(t) * x0 + self.b(t) * noise

    def time_at(self, noise_level: Time) -> Array:
        """The time at which b/a is `noise_level`. Raises: ValueError where the path was made without `time_of`."""
        if self.time_of is None:
            raise ValueError("this needs a path that knows the time of a noise level: give Path(..., time_of=...)")
        return self.time_of(jnp.asarray(noise_level))

    def velocity(self, x: Samples, denoised: Samples, t: Time) -> Samples:
        """dx/dt of the probability-flow ODE, a'·D + b'·(x − a·D)/b, from D = E[x0 | x_t = x].   [Song et al. 2021]

        On the `ve` path this is (x − D)/t. Undefined (nan) where b(t) = 0.
        """
        t = per_sample(t, x)
        return self.da(t) * denoised + self.db(t) / self.b(t) * (x - self.a(t) * denoised)

    def ddim(self, x: Samples, denoised: Samples, t: Time, r: Time) -> Samples:
        """The point at time r with the noise of x at t, a_r·D + b_r/b_t·(x − a_t·D).   [Song et al. 2021, DDIM, eq. 12]

        On the `ve` and linear paths this is an Euler step. At b(r) = 0, D itself.
        """
        t, r = per_sample(t, x), per_sample(r, x)
        return self.a(r) * denoised + self.b(r) / self.b(t) * (x - self.a(t) * denoised)


ve = Path(a=jnp.ones_like, b=lambda t: t, da=jnp.zeros_like, db=jnp.ones_like, time_of=lambda level: level)
"""x_t = x0 + t·noise: time is the noise std.   [Karras et al. 2022; Song et al. 2023]"""
