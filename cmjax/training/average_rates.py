"""The averages of the parameters that a run keeps: their names, and their rates as functions of the step."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.core.typing import Schedule
from cmjax.ranges import NotNegative, Positive, Rate
from cmjax.training import posthoc

TARGET = "target"
"""The name of the average that consistency losses use as θ⁻."""


def average_name(index: int) -> str:
    """Gives the name, in the optimizer's state and in checkpoints, of an average that is kept for sampling."""
    return f"ema{index}"


EMA = average_name(0)
"""The average that samples are made with unless another is asked for."""
NEGLIGIBLE = 1e-6
"""A fraction of an average that counts as none."""


def ema(*, rate: Rate, batch_size: int, corrected: bool = True) -> Schedule:
    """μ = `rate`, corrected for its start: μ_k = μ(1 − μ^k)/(1 − μ^(k+1)) after k updates, so that the average is
    (1 − μ)·Σ μ^(k−i)·θ_i / (1 − μ^k) of θ_1 … θ_k alone, as Adam's moments are.   [Kingma & Ba 2015, sec. 3]

    Without the correction the first parameters keep a weight of μ^k, as in most published recipes.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    # μ = 0 copies the parameters, and has no logarithm
    if not corrected or rate == 0:
        return lambda step: jnp.asarray(rate, float)
    log_rate = math.log(rate)

    def corrected_rate(step):
        # 1 − μ^k in float32 keeps few digits while k is small
        done = jnp.asarray(step, float)
        return rate * jnp.expm1(done * log_rate) / jnp.expm1((done + 1) * log_rate)

    return corrected_rate


def half_life(*, mimg: Positive, batch_size: int, ramp_up: NotNegative = 0.05) -> Schedule:
    """μ = 2^(−batch/half-life), the half-life in images: `mimg` million, or `ramp_up` of the images seen if that is
    fewer; ramp_up = 0 turns that off.   [Karras et al. 2022, table 7]"""
    if mimg <= 0 or ramp_up < 0:
        raise ValueError(f"mimg must be positive and ramp_up at least 0, got {mimg} and {ramp_up}")

    def rate(step):
        images = mimg * 1e6
        if ramp_up:
            images = jnp.minimum(images, ramp_up * batch_size * jnp.asarray(step, jnp.float32))
        # no images seen: μ = 0, so that the first update replaces the parameters that training starts from
        return 0.5 ** (batch_size / jnp.maximum(images, 1e-8))

    return rate


def power(*, std: Positive, batch_size: int) -> Schedule:
    """μ = (1 − 1/t)^(γ+1), t the updates done with this one: the average weighs update τ by τ^γ, and the first replaces
    what was there.   [Karras et al. 2024, eqs. 126 and 127]

    `std` is the width of these weights as a fraction of t, as 0.05 or 0.1; `posthoc` makes other widths of kept ones.
    """
    exponent = posthoc.exponent(std)

    def rate(step):
        done = jnp.asarray(step, float) + 1
        # 1 − 1/t in float32 keeps few digits of 1/t
        return jnp.exp((exponent + 1) * jnp.log1p(-1 / done))

    return rate


def fraction_of_first(rate: Schedule, updates: int, *, first: int) -> float:
    """Gives the weight that the parameters of the `first` updates and earlier have in an average after `updates`.

    It is Π μ(k) over k = first … updates − 1.
    """
    rates, fraction, stop = jax.jit(jax.vmap(rate)), 1.0, updates
    # the last ones first: most averages forget soon
    while stop > first and fraction > NEGLIGIBLE:
        start = max(stop - 2**16, first)
        # of one size, to compile once
        steps = np.arange(stop - 2**16, stop).clip(0)
        # entries below `start` lie before the first update, or were counted already: the slice leaves them out
        fraction *= float(np.prod(np.asarray(rates(steps), np.float64)[start - stop :]))
        stop = start
    return fraction
