"""Classifier-free guidance, and the random removal of labels that it needs in training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cmjax.core.paths import per_sample
from cmjax.core.typing import PerSample, PRNGKey, Samples, Time

NO_LABEL = -1
"""The label that tells a network that there is no class."""


def drop_labels(key: PRNGKey, label: Int[Array, " b"], *, rate: float) -> Int[Array, " b"]:
    """The labels (b,), each replaced by `NO_LABEL` with probability `rate`.   [Ho & Salimans 2022, alg. 1]"""
    return jnp.where(jax.random.uniform(key, label.shape) < rate, NO_LABEL, label)


def draw_guidance(key: PRNGKey, batch_size: int, *, low: float, high: float) -> PerSample:
    """Scales (b,) uniform on [low, high], for a student that learns them all.   [Luo et al. 2023, LCM, alg. 1]"""
    return jax.random.uniform(key, (batch_size,), minval=low, maxval=high)


def mix(conditional: Samples, unconditional: Samples, guidance: Time) -> Samples:
    """The guided estimate (1 − w)·unconditional + w·conditional; w = 1 means no guidance.

    [Ho & Salimans 2022, eq. 6; our w is their w + 1]
    """
    w = per_sample(guidance, conditional)
    return unconditional + w * (conditional - unconditional)


def _guided(denoiser: Callable[..., Samples], *args: Any, guidance: Time, label: Int[Array, " b"], **inputs: Any):
    conditional = denoiser(*args, label=label, **inputs)
    unconditional = denoiser(*args, label=jnp.full_like(label, NO_LABEL), **inputs)
    return mix(conditional, unconditional, guidance)


def guided(denoiser: Callable[..., Samples]) -> Callable[..., Samples]:
    """The denoiser with two more arguments, `guidance` and `label` (b,): the `mix` of D with and without the label.

    `guidance`: a scalar or (b,); 1 gives the conditional denoiser. A call takes two evaluations. On any Gaussian path
    the velocity of the mix is the mix of the two velocities, and likewise for the score. The denoiser may take
    parameters first or have them bound. A flow map can take its place.
    """
    return partial(_guided, denoiser)
