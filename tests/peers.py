"""The toy networks on which the peers' numbers were recorded, as parity/README.md defines them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from cmjax.core.paths import Path, per_sample, ve
from cmjax.core.preconditioning import consistency, edm, precondition


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
    return precondition(toy, partial(thousandfold, scalings=consistency, sigma_data=0.5, t_min=t_min))


DENOISER = precondition(toy, partial(thousandfold, scalings=edm, sigma_data=0.5))


def toy_denoiser(x, t, *, key=None):
    """The denoiser of the peers' samplers."""
    t = per_sample(t, x)
    return x * 0.25 / (0.25 + t**2) + 0.1 * jnp.tanh(x) * t / (1 + t)


@dataclass(frozen=True)
class RecordedNoise(Path):
    """The `ve` path with noise that was drawn elsewhere."""

    recorded: Any = None

    def add_noise(self, x0, noise, t):
        return super().add_noise(x0, self.recorded, t)


def with_noise(noise):
    return RecordedNoise(ve.a, ve.b, ve.da, ve.db, jnp.asarray(noise))
