"""Classifier-free guidance, and the labels that training leaves out for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cmjax.core.paths import per_sample
from cmjax.core.typing import PerSample, PRNGKey, Samples, Time

NO_LABEL = -1
"""What networks take for no class."""


def drop_labels(key: PRNGKey, label: Int[Array, " b"], *, rate: float) -> Int[Array, " b"]:
    """Each label with probability `rate` replaced by no class.   [Ho & Salimans 2022, alg. 1]"""
    return jnp.where(jax.random.uniform(key, label.shape) < rate, NO_LABEL, label)


def draw_guidance(key: PRNGKey, batch_size: int, *, low: float, high: float) -> PerSample:
    """Scales (b,) uniform on [low, high], for a student that learns them all.   [Luo et al. 2023, LCM, alg. 1]"""
    return jax.random.uniform(key, (batch_size,), minval=low, maxval=high)


def mix(conditional: Samples, unconditional: Samples, guidance: Time) -> Samples:
    """(1 − w)·unconditional + w·conditional: w = 1 is no guidance.   [Ho & Salimans 2022, eq. 6, with their w + 1]"""
    w = per_sample(guidance, conditional)
    return unconditional + w * (conditional - unconditional)


def _guided(denoiser: Callable[..., Samples], *args: Any, guidance: Time, label: Int[Array, " b"], **inputs: Any):
    conditional = denoiser(*args, label=label, **inputs)
    unconditional = denoiser(*args, label=jnp.full_like(label, NO_LABEL), **inputs)
    return mix(conditional, unconditional, guidance)


def guided(denoiser: Callable[..., Samples]) -> Callable[..., Samples]:
    """The denoiser with two more arguments, `guidance` and `label`: the mix of D with `label` (b,) and D without.

    `guidance`: a scalar or (b,), 1 for the conditional denoiser itself; two evaluations. On any Gaussian path the
    velocity and the score of the mix are the mixes of theirs. The denoiser may take parameters first or have them
    bound, and flow maps are taken as well.
    """
    return partial(_guided, denoiser)
