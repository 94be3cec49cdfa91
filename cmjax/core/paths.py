"""Gaussian probability paths x_t = a(t)·x0 + b(t)·noise and the probability-flow ODE along them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cmjax.core.typing import Denoiser, Params, Samples, Time
from cmjax.ranges import Count, Inside, Positive
from cmjax.system.mesh import with_auto_axes

_interp = with_auto_axes(jnp.interp)


def per_sample(value: Time | Bool[Array, " b"], x: Array) -> Array:
    """Gives a scalar or (b,) value trailing axes of length one, so that it multiplies `x` (b, ...) sample by sample."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def as_time(t: Time, x: Array) -> Array:
    """t in float32, or in the dtype of x where that is wider: in bfloat16 neighbouring times would be one time."""
    return jnp.asarray(t, _wide(x.dtype))


def widened(x: Samples) -> Samples:
    """x in float32, unless its dtype is wider: the state that a sampler moves along its times."""
    return jnp.asarray(x, _wide(x.dtype))


def _wide(dtype: Any) -> Any:
    """float32, or the dtype where that is wider."""
    return jnp.float64 if dtype == jnp.float64 and jax.config.read("jax_enable_x64") else jnp.float32


def _beside(x: Array, t: Time) -> Array:
    """t beside each sample of x, as `as_time`, or in float64 where it is."""
    t = jnp.asarray(t)
    # a Python number is weakly typed float64 where x64 is enabled, though nobody asked for that precision
    return per_sample(t if t.dtype == jnp.float64 and not t.weak_type else as_time(t, x), x)


def flat(x: Array) -> Float[Array, "b size"]:
    """Puts each sample's elements in one row."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


@dataclass(frozen=True)
class Path:
    """Holds the signal scale a(t), the noise scale b(t) and their derivatives, elementwise functions of time.

    `time_of`: noise level σ -> the time t with b(t)/a(t) = σ, for functions that need times outside a grid.
    `spaced_by_level`: True where samplers space their steps by noise level, as Karras et al. do, and not by time.
    `signal_ends`: the time at which a = 0 and the noise level is infinite; inf where there is no such time.
    `straight`: True where x_t is (1 − t)·x0 + t·noise·k, so that the velocity of one sample does not change.
    `name`: as which it is shown.
    """

    a: Callable[[Array], Array]
    b: Callable[[Array], Array]
    da: Callable[[Array], Array]
    db: Callable[[Array], Array]
    time_of: Callable[[Array], Array] | None = field(default=None, kw_only=True)
    spaced_by_level: bool = field(default=False, kw_only=True)
    signal_ends: float = field(default=math.inf, kw_only=True)
    straight: bool = field(default=False, kw_only=True)
    name: str = field(default="Path(…)", kw_only=True)

    def __repr__(self) -> str:
        return self.name

    def add_noise(self, x0: Samples, noise: Samples, t: Time) -> Samples:
        """x_t = a(t)·x0 + b(t)·noise."""
        t = _beside(x0, t)
        return self.a(t) * x0 + self.b(t) * noise

    def time_at(self, noise_level: Time) -> Array:
        """Gives the time at which b/a is `noise_level`. Raises: ValueError where the path was made without
        `time_of`."""
        if self.time_of is None:
            raise ValueError("this needs a path that knows the time of a noise level: give Path(..., time_of=...)")
        return self.time_of(jnp.asarray(noise_level))

    def noise_level(self, t: Time) -> Array:
        """Gives the noise level b/a: the noise std of x_t/a(t), which is a state of the `ve` path."""
        t = jnp.asarray(t)
        return self.b(t) / self.a(t)

    def conditional_velocity(self, x0: Samples, noise: Samples, t: Time) -> Samples:
        """Computes the velocity a'·x0 + b'·noise of one sample. Its mean given x_t is the velocity of the
        probability-flow ODE.

        [Lipman et al. 2023]
        """
        t = _beside(x0, t)
        return self.da(t) * x0 + self.db(t) * noise

    def velocity(self, x: Samples, denoised: Samples, t: Time) -> Samples:
        """dx/dt of the probability-flow ODE, a'·D + b'·(x − a·D)/b, from D = E[x0 | x_t = x].   [Song et al. 2021]

        On the `ve` path this is (x − D)/t. Undefined (nan) where b(t) = 0.
        """
        t = _beside(x, t)
        return self.da(t) * denoised + self.db(t) / self.b(t) * (x - self.a(t) * denoised)

    def denoised(self, x: Samples, velocity: Samples, t: Time) -> Samples:
        """D from a velocity, (b·v − b'·x)/(a'·b − a·b'): the inverse of `velocity`. Where b(t) = 0 it is x/a."""
        t = _beside(x, t)
        a, b, da, db = self.a(t), self.b(t), self.da(t), self.db(t)
        return (b * velocity - db * x) / (da * b - a * db)

    def ddim(self, x: Samples, denoised: Samples, t: Time, r: Time) -> Samples:
        """Computes the state at time r with the same noise as x at t: a_r·D + b_r/b_t·(x − a_t·D).

        On the `ve` and linear paths this is an Euler step. Where b(r) = 0 it is D itself.
        [Song et al. 2021, DDIM, eq. 12]
        """
        t, r = (_beside(x, time) for time in (t, r))
        return self.a(r) * denoised + self.b(r) / self.b(t) * (x - self.a(t) * denoised)

    def ddim_inverse(self, x_r: Samples, x_t: Samples, t: Time, r: Time) -> Samples:
        """Computes the denoised D with which `ddim` moves x_t to x_r: (x_r − β·x_t)/(a_r − β·a_t) with β = b_r/b_t, r <
        t.

        [Salimans & Ho 2022, app. G]
        """
        t, r = (_beside(x_t, time) for time in (t, r))
        ratio = self.b(r) / self.b(t)
        return (x_r - ratio * x_t) / (self.a(r) - ratio * self.a(t))


ve = Path(
    a=jnp.ones_like,
    b=lambda t: t,
    da=jnp.zeros_like,
    db=jnp.ones_like,
    time_of=lambda level: level,
    spaced_by_level=True,
    name="paths.ve",
)
"""x_t = x0 + t·noise: time is the noise std.   [Karras et al. 2022; Song et al. 2023]"""

linear = Path(
    a=lambda t: 1 - t,
    b=lambda t: t,
    da=lambda t: -jnp.ones_like(t),
    db=jnp.ones_like,
    time_of=lambda level: level / (1 + level),
    signal_ends=1.0,
    straight=True,
    name="paths.linear",
)
"""x_t = (1 − t)·x0 + t·noise, t in [0, 1]: flow matching.   [Lipman et al. 2023; Liu et al. 2023]"""


# cached: paths hold lambdas and compare by them, so only one object for equal arguments equals itself
@lru_cache
def linear_to(*, noise_scale: Positive) -> Path:
    """x_t = (1 − t)·x0 + t·k·noise, t in [0, 1], with k the `noise_scale`: `linear` for images of many pixels, whose
    neighbours are alike.   [Lu et al. 2026, pMF, the released code]"""
    return replace(
        linear,
        b=lambda t: noise_scale * t,
        db=lambda t: jnp.full_like(t, noise_scale),
        time_of=lambda level: level / (noise_scale + level),
        name=f"paths.linear_to(noise_scale={noise_scale:g})",
    )


def check_is_path(path: Any) -> None:
    """Raise TypeError for what is no path, such as `paths.trig` without its call."""
    if not isinstance(path, Path):
        got = f"the function {path.__name__}, which makes one" if callable(path) else repr(path)
        raise TypeError(f"path must be a path, such as paths.ve or paths.trig(sigma_data=0.5), got {got}")


@lru_cache
def trig(*, sigma_data: float) -> Path:
    """TrigFlow: x_t = cos t·x0 + σ_d·sin t·noise, t in [0, π/2].   [Lu & Song 2025, sec. 3]"""
    return Path(
        a=jnp.cos,
        b=lambda t: sigma_data * jnp.sin(t),
        da=lambda t: -jnp.sin(t),
        db=lambda t: sigma_data * jnp.cos(t),
        time_of=lambda level: jnp.arctan(level / sigma_data),
        spaced_by_level=True,
        signal_ends=math.pi / 2,
        name=f"paths.trig(sigma_data={sigma_data:g})",
    )


@lru_cache
def vp(*, beta_min: Positive = 0.1, beta_max: Positive = 20.0) -> Path:
    """ln a² = −β_min·t − (β_max − β_min)·t²/2, b² = 1 − a², t in (0, 1].   [Song et al. 2021, VP-SDE, eq. 33]"""
    slope = beta_max - beta_min

    def time_of(level):  # the positive root of slope·t²/2 + β_min·t = ln(1 + level²)
        target = 2 * jnp.log1p(level**2)
        # the root as 2c/(b + √…): (√… − b)/a cancels at small levels
        return target / (beta_min + jnp.sqrt(beta_min**2 + slope * target))

    name = f"paths.vp(beta_min={beta_min:g}, beta_max={beta_max:g})"
    return _variance_preserving(lambda t: -beta_min * t - slope * t**2 / 2, time_of, name)


@lru_cache
def ddpm(
    *,
    schedule: Literal["linear", "scaled_linear"] = "linear",
    beta_start: Inside = 1e-4,
    beta_end: Inside = 0.02,
    steps: Count = 1000,
) -> Path:
    """Makes the path of discrete diffusion: step i is at time t = i/steps, with a² = Π_{j≤i}(1 − β_j) and b² = 1 − a².

    Between steps ln a² is interpolated linearly. `schedule`: "linear" spaces β_j evenly [Ho et al. 2020],
    "scaled_linear" spaces √β_j evenly; with 0.00085 and 0.012 the latter is the schedule of Stable Diffusion.

    Raises: ValueError naming the argument that is out of range.
    """
    if schedule not in ("linear", "scaled_linear"):
        raise ValueError(f"schedule must be linear or scaled_linear, got {schedule!r}")
    if not 0 < beta_start <= beta_end < 1 or steps < 2:
        raise ValueError(
            f"0 < beta_start <= beta_end < 1 and steps >= 2 are needed, got {beta_start}, {beta_end}, {steps}"
        )
    power = 1 if schedule == "linear" else 2
    betas = np.linspace(beta_start ** (1 / power), beta_end ** (1 / power), steps) ** power
    name = f"paths.ddpm(schedule={schedule!r}, beta_start={beta_start:g}, beta_end={beta_end:g}, steps={steps})"
    return replace(table(tuple(np.cumsum(np.log1p(-betas)).tolist())), name=name)


@lru_cache
def table(log_signal: tuple[float, ...]) -> Path:
    """Makes the path of a descending table of ln a², with b² = 1 − a²: entry i is at time t = i/len(table).

    Beyond both ends ln a² continues with the slope of the nearest interval. A compiled program may round the last time
    to above its entry, and the velocity must not be 0 there.

    Raises: ValueError where the table has fewer than two entries, is not below 0, or is not descending.
    """
    values = np.asarray(log_signal, np.float64)
    if len(values) < 2 or values[0] >= 0 or (np.diff(values) >= 0).any():
        raise ValueError("the table of ln a² must be descending, below 0, and have two entries or more")
    places = np.arange(len(values)) / len(values)

    def time_of(level):
        # a² + b² = 1 and level = b/a: −ln a² = ln(1 + level²), which rises where ln a² falls
        drop = jnp.log1p(jnp.asarray(level, float) ** 2)
        return _interp(drop, jnp.asarray(-values, drop.dtype), jnp.asarray(places, drop.dtype))

    def log_signal_at(t):
        t = jnp.asarray(t, float)  # the table takes the precision of t: JAX caches how it first converted a numpy array
        known = jnp.asarray(places, t.dtype), jnp.asarray(values, t.dtype)
        return _interp(t, *known, left="extrapolate", right="extrapolate")

    return _variance_preserving(log_signal_at, time_of, f"paths.table(of {len(values)} entries)")


def _variance_preserving(log_signal: Callable[[Array], Array], time_of: Callable[[Array], Array], name: str) -> Path:
    """Makes the path with a² = exp(log_signal(t)) and b² = 1 − a²."""

    def signal(t):
        return jnp.exp(log_signal(t) / 2)

    def noise(t):
        # √(1 − a²), without the cancellation near t = 0, where a is 1
        return jnp.sqrt(-jnp.expm1(log_signal(t)))

    return Path(signal, noise, _derivative(signal), _derivative(noise), time_of=time_of, name=name)


def _derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Makes the derivative of an elementwise function."""
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _carried(denoiser: Denoiser, source: Path, path: Path, params: Params, x: Samples, t: Time, **inputs: Any):
    t = as_time(t, x)
    source_t = source.time_at(path.noise_level(t))
    # the state that both paths share is x_t/a(t)
    scale = per_sample(source.a(source_t) / path.a(t), x)
    return denoiser(params, scale * x, source_t, **inputs).astype(x.dtype)


def carry(denoiser: Denoiser, source: Path, path: Path) -> Denoiser:
    """Turns the denoiser of `source` into a denoiser of `path`: D'(x, t) = D(x·a_s/a_t, s), where s has the noise level
    of t.

    This is exact: at one noise level b/a, x_t/a(t) has the same distribution on every path. It is undefined where
    a(t) = 0.
    [Karras et al. 2022, app. B; Lu & Song 2025, eq. 12]
    """
    return partial(_carried, denoiser, source, path)
