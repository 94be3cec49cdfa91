"""Rates of the target's average, μ(k) of the optimizer step k: how fast the target follows the student.

A rate of 1 leaves the target unchanged; a rate of 0 replaces it by the student.
"""

import jax.numpy as jnp
import numpy as np

from cmjax.core.curricula import Curriculum
from cmjax.core.typing import Schedule
from cmjax.ranges import Inside


def constant_rate(*, mu: Inside) -> Schedule:
    """Gives the same rate μ at every step, 0 < mu < 1.   [Song et al. 2023, table 3]"""
    _check_rate("mu", mu)
    return lambda step: jnp.asarray(mu)


def scheduled_rate(*, mu0: Inside, curriculum: Curriculum, ema_uses_intervals: bool = False) -> Schedule:
    """μ(k) = exp(s0·ln μ0/N(k)), with s0 = N(0) and 0 < mu0 < 1.   [Song et al. 2023, app. C]

    `ema_uses_intervals` divides by N − 1 instead of N, as the released CIFAR-10 code does.
    """
    _check_rate("mu0", mu0)
    # one rate for each stage of the curriculum, in float64
    rates = np.exp(curriculum.num_scales[0] * np.log(mu0) / (curriculum.num_scales - int(ema_uses_intervals)))
    return lambda step: jnp.asarray(rates)[curriculum.stage(step)]


def kept_in_a_stage(*, curriculum: Curriculum) -> Schedule:
    """Gives the rate 1 within a stage and 0 at its last step: the target is the student as it was when the stage began.

    This is the teacher of progressive distillation.   [Salimans & Ho 2022, alg. 2]
    """
    # the update of `step` makes the parameters of step + 1: a stage's last update gives the next stage its teacher
    return lambda step: jnp.where(curriculum.stage(jnp.asarray(step) + 1) > curriculum.stage(step), 0.0, 1.0)


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {rate}")
