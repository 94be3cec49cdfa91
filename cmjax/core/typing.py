"""Names for the types that the library uses. Everything in `core` takes callables like these, never a Module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

Params = Any
"""A pytree of arrays."""

Samples = Float[Array, "b *dims"]
"""A batch of data of any rank: images (b, h, w, c) in [-1, 1], or points (b, d)."""

Shape = Sequence[Any]
"""The shape of samples, (b, ...): numbers, or a symbolic batch size as in `jax.export`."""

PerSample = Float[Array, " b"]
Time = Float[Array, ""] | Float[Array, " b"] | float
"""One time for the whole batch, or one for each sample. On the `ve` path a time is the noise std."""

TimeGrid = Sequence[float] | Float[Array, " n"] | Float[np.ndarray, " n"]
"""Times that a sampler steps through, such as (80.0, 0.8) or a reversed `karras_grid`."""

PRNGKey = Key[Array, ""] | UInt32[Array, " size"]
Keys = PRNGKey | Key[Array, " b"] | UInt32[Array, "b size"]
"""One key for the whole batch, or one for each sample; typed, or the numbers that `jax.random.PRNGKey` gives."""

Step = Int[Array, ""] | int
Schedule = Callable[[Any], Any]
"""A function of the (traced) optimizer step."""

Conditions = Mapping[str, Array]
"""Keyword inputs of the network besides x and the time, such as `label` (b,) int32."""


@runtime_checkable
class Net(Protocol):
    """The raw network F(params, x, c_noise), any callable: a lambda, a Linen, NNX or Equinox module's function.

    x (b, ...) is scaled by c_in, c_noise (b,) encodes the time; the result has the shape of x. `key`: for dropout;
    None means evaluation. `conditions` come from a batch, such as `label` (b,).

    A network may support more, by taking these keywords:
        c_noise_s: (b,), the second time of a flow map.
        return_velocity: True asks for (F, v), with v (b, ...) from a second head that learns the velocity at one time.
        return_weight: True asks for (F, w), with w (b,) from a weight head that learns the loss weight of each time.
    """

    def __call__(self, params: Params, x: Array, c_noise: Array, *, key: Any = None, **conditions: Any) -> Array: ...


@runtime_checkable
class Denoiser(Protocol):
    """The estimate of the clean data, D(x, t) or f(x, t), as a function of parameters. It has the shape of `x`."""

    def __call__(self, params: Params, x: Array, t: Time, *, key: Any = None, **conditions: Any) -> Array: ...


Velocity = Callable[[Array, Any], Array]
"""dx/dt of an ODE as a function of (x, t), parameters bound."""

OdeStep = Callable[[Velocity, Array, Any, Any], Array]
"""(velocity, x, t, r) -> the state at time r of the solution through x at time t."""

Integrator = Callable[[Velocity, Array, Array], Array]
"""(velocity, x, times) -> the state at times[-1] of the solution through x at times[0]; times (n,) rise or fall."""

BoundDenoiser = Callable[[Array, Any], Array]
"""D(x, t) with parameters and conditions bound: (x, t) -> the estimate of the clean data."""

Trajectory = Callable[[BoundDenoiser, Array, Any], Array]
"""(denoise, x, times) -> the states (n, b, ...) at the descending times (n,) of the solution through x at times[0]."""

Noises = Callable[[Any], Array]
"""index -> a unit Gaussian of the samples' shape, independent for each index."""


@runtime_checkable
class Solver(Protocol):
    """Goes from the state x at times[0] to samples: along the descending positive `times` (n,), and then to time 0.

    `to_zero=False` stops at times[-1].
    """

    def __call__(
        self, denoise: BoundDenoiser, x: Array, times: Array, noises: Noises, *, path: Any, to_zero: bool = True
    ) -> Array: ...


Distance = Callable[[Array, Array], Array]
"""(x, y), both (b, ...) -> (b,), one distance for each sample."""

Weight = Callable[[Array, Array], Array]
"""(t, r), the student's and the target's times (b,) -> (b,), the loss weight of each sample."""


TimeSampler = Callable[[PRNGKey, int], PerSample]
"""(key, batch_size) -> times (b,)."""
