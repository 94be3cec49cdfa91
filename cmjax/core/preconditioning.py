"""Preconditioned networks c_skip·x + c_out·F(c_in·x, c_noise): denoisers, consistency functions and flow maps, whose
boundary condition holds by construction."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.paths import Path, per_sample
from cmjax.core.typing import Denoiser, FlowNet, Net, Params, Samples, Time


class Scalings(NamedTuple):
    """The coefficients at the times t, each of the shape of t. `c_noise_s`: the second time input of a flow map."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    c_noise_s: Array | None = None


Preconditioning = Callable[[Array], Scalings]
FlowPreconditioning = Callable[[Array, Array], Scalings]
"""(t, s), s the destination -> Scalings with c_skip = 1 and c_out = 0 at s = t."""


def edm(t: Array, *, sigma_data: float) -> Scalings:
    """The denoiser's preconditioning, unit variance in and out at every noise level.   [Karras et al. 2022, table 1]"""
    variance = t**2 + sigma_data**2
    return Scalings(
        c_skip=sigma_data**2 / variance,
        c_out=t * sigma_data / jnp.sqrt(variance),
        c_in=1 / jnp.sqrt(variance),
        c_noise=jnp.log(t) / 4,
    )


def consistency(t: Array, *, sigma_data: float, t_min: float) -> Scalings:
    """`edm` shifted so that c_skip = 1 and c_out = 0 at t = t_min.   [Song et al. 2023, eq. 5 and app. C]"""
    base = edm(t, sigma_data=sigma_data)
    gap = t - t_min
    return base._replace(c_skip=sigma_data**2 / (gap**2 + sigma_data**2), c_out=sigma_data * gap * base.c_in)


def piecewise(t: Array, *, t_min: float) -> Scalings:
    """x itself at t = t_min, the bare network above it.   [Song et al. 2023, eq. 4]"""
    at_boundary = (t <= t_min).astype(jnp.result_type(t, jnp.float32))
    return Scalings(c_skip=at_boundary, c_out=1 - at_boundary, c_in=jnp.ones_like(at_boundary), c_noise=jnp.log(t) / 4)


def trig(t: Array, *, sigma_data: float) -> Scalings:
    """TrigFlow: cos t·x − σ_d·sin t·F(x/σ_d, t), where σ_d·F is the velocity.   [Lu & Song 2025, eq. 5]"""
    return Scalings(jnp.cos(t), -sigma_data * jnp.sin(t), jnp.full_like(t, 1 / sigma_data), t)


def trig_edm(t: Array, *, sigma_data: float) -> Scalings:
    """`edm` carried to the TrigFlow path: for the parameters of a `ve` model as they are.   [Lu & Song 2025, app. B]"""
    level = jnp.log(sigma_data) + jnp.log(jnp.tan(t))
    return Scalings(jnp.cos(t), sigma_data * jnp.sin(t), jnp.full_like(t, 1 / sigma_data), level / 4)


def linear(t: Array) -> Scalings:
    """x − t·F(x, t), where F is the velocity: flow matching.   [Lipman et al. 2023]"""
    return Scalings(jnp.ones_like(t), -t, jnp.ones_like(t), t)


def linear_flow(t: Array, s: Array) -> Scalings:
    """x − (t − s)·F(x, t, t − s), where F is the mean velocity between s and t.   [Geng et al. 2025, eq. 3 and 12]"""
    return Scalings(jnp.ones_like(t), s - t, jnp.ones_like(t), t, t - s)


def epsilon(t: Array, *, path: Path) -> Scalings:
    """(x − b·F)/a, where F is the noise: what DDPM predicts.   [Ho et al. 2020, eq. 11]"""
    a = path.a(t)
    return Scalings(1 / a, -path.b(t) / a, jnp.ones_like(t), t)


def v_prediction(t: Array, *, path: Path) -> Scalings:
    """a·x − b·F, where F = a·noise − b·x0; for paths with a² + b² = 1.   [Salimans & Ho 2022, app. D]"""
    return Scalings(path.a(t), -path.b(t), jnp.ones_like(t), t)


PREDICTIONS = {"epsilon": epsilon, "v": v_prediction}


def lcm(
    t: Array, *, path: Path, prediction: str = "epsilon", scaling: float = 10_000.0, sigma_data: float = 0.5
) -> Scalings:
    """σ_d²/(τ² + σ_d²)·x + τ/√(τ² + σ_d²)·D, τ = scaling·t, with D of a teacher that predicts the noise or v.

    [Luo et al. 2023, latent consistency models, sec. 3; `scaling` is 10 for each of 1000 steps]
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    teacher = PREDICTIONS[prediction](t, path=path)
    tau = scaling * t
    of_x, of_denoised = sigma_data**2 / (tau**2 + sigma_data**2), tau / jnp.sqrt(tau**2 + sigma_data**2)
    return teacher._replace(c_skip=of_x + of_denoised * teacher.c_skip, c_out=of_denoised * teacher.c_out)


def apply_net(net: Net, params: Params, x: Samples, scalings: Scalings, **inputs: Any) -> Any:
    """F(c_in·x, c_noise), with the second time where the scalings have one; `inputs` as they are."""
    if scalings.c_noise_s is not None:
        inputs["c_noise_s"] = scalings.c_noise_s
    return net(params, per_sample(scalings.c_in, x) * x, scalings.c_noise, **inputs)


def combine(scalings: Scalings, x: Samples, out: Array) -> Samples:
    """c_skip·x + c_out·F, of the dtype of x."""
    return per_sample(scalings.c_skip, x) * x + per_sample(scalings.c_out, x) * out.astype(x.dtype)


def _denoise(net: Net, scalings: Preconditioning, params: Params, x: Samples, t: Time, *, key=None, **conditions):
    c = scalings(_times(t, x))
    return combine(c, x, apply_net(net, params, x, c, key=key, **conditions))


def _flow(net: Net, scalings: FlowPreconditioning, params: Params, x: Samples, t: Time, s: Time, *, key=None, **inputs):
    c = scalings(_times(t, x), _times(s, x))
    return combine(c, x, apply_net(net, params, x, c, key=key, **inputs))


def _times(t: Time, x: Samples) -> Array:
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])


def precondition(net: Net, scalings: Preconditioning) -> Denoiser:
    """The function (params, x, t, *, key, **conditions) -> c_skip·x + c_out·F(c_in·x, c_noise).

    Args:    net: F(params, x, c_noise, *, key, **conditions), any callable. scalings: t (b,) -> `Scalings`, for
             example `partial(consistency, sigma_data=0.5, t_min=0.002)`.
    Returns: a denoiser D (with `edm`) or a consistency function f (with `consistency` or `piecewise`); x is (b, ...),
             t a scalar or (b,), the result of the shape and dtype of x.
    """
    return partial(_denoise, net, scalings)


def precondition_flow(net: Net, scalings: FlowPreconditioning) -> FlowNet:
    """The flow map (params, x, t, s, *, key, **conditions) -> the state at time s of the PF-ODE through x at t.

    Args: net: F(params, x, c_noise, *, c_noise_s, key, **conditions). scalings: (t, s), both (b,) -> `Scalings`, such
          as `linear_flow`.
    """
    return partial(_flow, net, scalings)
