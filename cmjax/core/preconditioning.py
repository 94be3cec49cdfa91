"""Preconditioned networks c_skip·x + c_out·F(c_in·x, c_noise): denoisers, and consistency functions whose boundary
condition f(x, t_min) = x holds by construction."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.paths import per_sample
from cmjax.core.typing import Denoiser, Net, Params, Samples, Time


class Scalings(NamedTuple):
    """The four coefficients at the times t, each of the shape of t."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


Preconditioning = Callable[[Array], Scalings]


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


def _denoise(net: Net, scalings: Preconditioning, params: Params, x: Samples, t: Time, *, key=None, **conditions):
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    c = scalings(t)
    out = net(params, per_sample(c.c_in, x) * x, c.c_noise, key=key, **conditions)
    return per_sample(c.c_skip, x) * x + per_sample(c.c_out, x) * out.astype(x.dtype)


def precondition(net: Net, scalings: Preconditioning) -> Denoiser:
    """The function (params, x, t, *, key, **conditions) -> c_skip·x + c_out·F(c_in·x, c_noise).

    Args:    net: F(params, x, c_noise, *, key, **conditions), any callable. scalings: t (b,) -> `Scalings`, for
             example `partial(consistency, sigma_data=0.5, t_min=0.002)`.
    Returns: a denoiser D (with `edm`) or a consistency function f (with `consistency` or `piecewise`); x is (b, ...),
             t a scalar or (b,), the result of the shape and dtype of x.
    """
    return partial(_denoise, net, scalings)
