"""Names for what the library passes around. Everything in `core` takes callables like these, never a Module."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

Params = Any
"""A pytree of arrays."""

Samples = Float[Array, "b *dims"]
"""A batch of data of any rank: images (b, h, w, c) in [-1, 1], or points (b, d)."""

PerSample = Float[Array, " b"]
Time = Float[Array, ""] | Float[Array, " b"] | float
"""One time for the whole batch, or one for each sample. On the `ve` path a time is the noise std."""

PRNGKey = Key[Array, ""]
Keys = Key[Array, ""] | Key[Array, " b"]
"""One key for the whole batch, or one for each sample."""

Step = Int[Array, ""] | int
Schedule = Callable[[Any], Any]
"""A function of the (traced) optimizer step."""

Conditions = Mapping[str, Array]
"""Keyword inputs of the network beside x and the time, such as `label` (b,) int32."""


@runtime_checkable
class Net(Protocol):
    """The raw network F(x, c_noise): what preconditioning turns into a denoiser or a consistency function.

    `key` draws dropout masks; None means evaluation mode.
    """

    def __call__(self, params: Params, x: Array, c_noise: Array, *, key: Any = None, **conditions: Any) -> Array: ...


@runtime_checkable
class Denoiser(Protocol):
    """The estimate of the clean data, D(x, t) or f(x, t), as a function of parameters. Shape of `x` in and out."""

    def __call__(self, params: Params, x: Array, t: Time, *, key: Any = None, **conditions: Any) -> Array: ...


@runtime_checkable
class FlowNet(Protocol):
    """A flow map Φ(x, t, s), the state at time s of the PF-ODE through x at t, as a function of parameters."""

    def __call__(self, params: Params, x: Array, t: Time, s: Time, *, key: Any = None, **conditions: Any) -> Array: ...


Velocity = Callable[[Array, Any], Array]
"""dx/dt of an ODE as a function of (x, t), parameters bound."""

OdeStep = Callable[[Velocity, Array, Any, Any], Array]
"""(velocity, x, t, r) -> the state at time r of the solution through x at time t."""

Integrator = Callable[[Velocity, Array, Array], Array]
"""(velocity, x, times) -> the state at times[-1] of the solution through x at times[0]; times (n,) in either order."""

BoundDenoiser = Callable[[Array, Any], Array]
"""D(x, t) with parameters and conditions bound: (x, t) -> the estimate of the clean data."""

Noises = Callable[[Any], Array]
"""index -> a unit Gaussian of the samples' shape, independent for each index."""


@runtime_checkable
class Solver(Protocol):
    """From the state x at times[0] to samples: along the descending positive `times` (n,), and from the last to 0."""

    def __call__(self, denoise: BoundDenoiser, x: Array, times: Array, noises: Noises, *, path: Any) -> Array: ...


Distance = Callable[[Array, Array], Array]
"""(x, y), both (b, ...) -> (b,), one distance for each sample."""

Weight = Callable[[Array, Array], Array]
"""(t, r), the student's and the target's times (b,) -> (b,), the loss weight of each sample."""


TimeSampler = Callable[[PRNGKey, int], PerSample]
"""(key, batch_size) -> times (b,)."""


class Pair(NamedTuple):
    """Times (b,) on one trajectory, s <= r <= t: the student's input is at `t`, the target's at `r`.

    `s` is the destination of a flow map; None where it is the model's own end.
    """

    t: Array
    r: Array
    s: Array | None = None

    @property
    def destination(self) -> Array:
        """s. Raises: ValueError where there is none."""
        if self.s is None:
            raise ValueError("this objective needs pairs with a destination s, such as those of pairs.sorted_pairs")
        return self.s


PairSampler = Callable[[PRNGKey, int, Step], Pair]
"""(key, batch_size, step) -> Pair. A curriculum lives here."""
