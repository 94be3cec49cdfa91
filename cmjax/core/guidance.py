"""Guidance: classifier-free, by a weaker model, in an interval; and the random removal of labels in training."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmjax.core.paths import per_sample
from cmjax.core.typing import PerSample, PRNGKey, Samples, Time
from cmjax.ranges import NotNegative, Positive

NO_LABEL = -1
"""The label of no class."""


def drop_labels(key: PRNGKey, label: Int[Array, " b"], *, rate: float, first: bool = False) -> Int[Array, " b"]:
    """Replaces each of the labels (b,) by `NO_LABEL` with probability `rate`.   [Ho & Salimans 2022, alg. 1]

    first: as many labels, but of the first samples: those with s = t, where pairs are sampled with `exact`.
    [Geng et al. 2025, MeanFlow, the released code]
    """
    # `first` moves these labels, and keeps their random number
    dropped = jax.random.uniform(key, label.shape) < rate
    if first:
        dropped = jnp.arange(label.shape[0]) < jnp.sum(dropped)
    return jnp.where(dropped, NO_LABEL, label)


def sample_guidance(
    key: PRNGKey, batch_size: int, *, low: Positive, high: Positive, power: NotNegative = 0.0
) -> PerSample:
    """Scales w (b,) on [low, high] of density ∝ w^−power, for a student that learns them all.

    power = 0 is uniform [Luo et al. 2023, LCM, alg. 1]; 1, from 1 to 8, is log-uniform [Geng et al. 2025, iMF].
    """
    u = jax.random.uniform(key, (batch_size,))
    # the inverse of the distribution function, which is a logarithm at power 1
    if power == 1:
        return low * jnp.exp(u * math.log(high / low))
    first, last = low ** (1 - power), high ** (1 - power)
    return (first + u * (last - first)) ** (1 / (1 - power))


def sample_interval(key: PRNGKey, t: PerSample, s: PerSample) -> Float[Array, "b 2"]:
    """Samples the first and the last time of guidance, uniform on [0, ½] and [½, 1], for a student that learns them
    all.

    Where s = t it is all times, from 0 to 1.   [Geng et al. 2025, iMF, the released code]
    """
    intervals = jax.random.uniform(key, (t.shape[0], 2), t.dtype) / 2 + jnp.array([[0, 0.5]], t.dtype)
    return jnp.where((s < t)[:, None], intervals, jnp.array([[0, 1]], t.dtype))


def mix(conditional: Samples, unconditional: Samples, guidance: Time, *, channels: int | None = None) -> Samples:
    """Computes the guided estimate (1 − w)·unconditional + w·conditional; w = 1 means no guidance.

    channels: only so many of the first are guided, the others are the conditional's; None: all. DiT's, SiT's and
    LightningDiT's released code guide three, of latents too, and their published metrics are of that.
    [Ho & Salimans 2022, eq. 6; our w is their w + 1. Peebles & Xie 2023, the released code]
    """
    w = per_sample(guidance, conditional)
    mixed = unconditional + w * (conditional - unconditional)
    if channels is None:
        return mixed
    # (1, …, c): which channels are guided
    first = jnp.arange(conditional.shape[-1]).reshape((1,) * (conditional.ndim - 1) + (-1,)) < channels
    return jnp.where(first, mixed, conditional)


def _guided(
    denoiser: Callable[..., Samples],
    channels: int | None,
    *args: Any,
    guidance: Time,
    negative: Mapping[str, Array] | None = None,
    **inputs: Any,
) -> Samples:
    without = {"label": jnp.full_like(inputs["label"], NO_LABEL)} if negative is None else negative
    # two calls and no doubled batch: the samples stay on their devices, and the memory of one call is enough
    conditional, unconditional = denoiser(*args, **inputs), denoiser(*args, **{**inputs, **without})
    return mix(conditional, unconditional, guidance, channels=channels)


def guided(denoiser: Callable[..., Samples], *, channels: int | None = None) -> Callable[..., Samples]:
    """Makes the denoiser with more arguments, `guidance`, and `label` (b,) or `negative`: the `mix` of D with and
    without the label, or with its conditions and the `negative` ones, such as those of the empty prompt, by name.

    `guidance`: a scalar or (b,); 1 gives the conditional denoiser. A call takes two evaluations. On any Gaussian path
    the velocity of the mix is the mix of the two velocities, and likewise for the score. The denoiser may take
    parameters first or have them bound. A flow map can take its place. channels: how many are guided, see `mix`.
    """
    return partial(_guided, denoiser, channels)


def _autoguided(
    denoiser: Callable[..., Samples], weak: Callable[..., Samples], params, *args, guidance: Time, **inputs
):
    main_params, weak_params = params
    return mix(denoiser(main_params, *args, **inputs), weak(weak_params, *args, **inputs), guidance)


def autoguided(denoiser: Callable[..., Samples], weak: Callable[..., Samples]) -> Callable[..., Samples]:
    """Autoguidance: the denoiser led away from a weaker one, (1 − w)·D_weak + w·D.   [Karras et al. 2024, autoguidance]

    The weaker one is smaller or less trained, on the same data, path and conditions. The result takes the parameters of
    both, (params, weak_params), and one more argument, `guidance`, w: a scalar or (b,). A call takes two evaluations.
    """
    return partial(_autoguided, denoiser, weak)


def _limited(denoiser: Callable[..., Samples], low: float, high: float, params, x, t: Time, *args, guidance, **inputs):
    scale = jnp.where((low < jnp.asarray(t)) & (jnp.asarray(t) <= high), guidance, 1.0)
    return denoiser(params, x, t, *args, guidance=scale, **inputs)


def limited(denoiser: Callable[..., Samples], *, low: float, high: float) -> Callable[..., Samples]:
    """Guidance in an interval: `denoiser` with the scale w at times low < t <= high, and with 1, none, elsewhere.

    [Kynkäänniemi et al. 2024, guidance interval]

    Args: denoiser: (params, x, t, ..., guidance=w), for example `guided(D)`, or a network that takes the scale.
          low, high: times of its path, noise levels on the path `ve`.
    """
    return partial(_limited, denoiser, low, high)
