"""The toy networks on which the peers' numbers were recorded, as parity/README.md defines them."""

from functools import partial

import jax.numpy as jnp

from cmjax import Model
from cmjax.core.paths import per_sample, ve
from cmjax.core.preconditioning import consistency, edm


def toy(w, x, tau, *, key=None):
    """The peers' raw network with parameters w (6,)."""
    tau = tau.reshape(-1, *(1,) * (x.ndim - 1))
    mean = jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return w[0] * jnp.tanh(w[1] * x) + w[2] * jnp.cos(w[3] + 1e-3 * tau) * x + w[4] * mean + w[5]


def thousandfold(t, *, scalings, **constants):
    """The peers' PyTorch code feeds its networks 1000·ln(t)/4."""
    c = scalings(t, **constants)
    return c._replace(c_noise=1000 * c.c_noise)


def student(t_min=0.002):
    """The toy network as a consistency function."""
    return Model(toy, ve, partial(thousandfold, scalings=consistency, sigma_data=0.5, t_min=t_min))


DENOISER = Model(toy, ve, partial(thousandfold, scalings=edm, sigma_data=0.5))


def toy_denoiser(x, t, *, key=None):
    """The denoiser of the peers' samplers."""
    t = per_sample(t, x)
    return x * 0.25 / (0.25 + t**2) + 0.1 * jnp.tanh(x) * t / (1 + t)
