"""Curricula: the number of grid points N(k), and the stage of a run, as functions of the optimizer step k.

A curriculum is a table of stages made on the host in exact arithmetic; the traced step only selects a row, so one
compilation serves a whole run.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from cmjax.core.typing import Schedule, Step
from cmjax.ranges import Count, Within


@dataclass(frozen=True)
class Curriculum:
    """Stages of constant `num_scales`: stage i begins at step `starts[i]`; `starts[0]` is 0."""

    starts: Int[np.ndarray, " stages"]
    num_scales: Int[np.ndarray, " stages"]

    def stage(self, step: Step) -> Int[Array, ""]:
        """Gives the index of the stage that `step` belongs to."""
        # "right", because a step that equals a start belongs to the stage that begins there
        return jnp.searchsorted(jnp.asarray(self.starts), jnp.asarray(step), side="right") - 1

    def __call__(self, step: Step) -> Int[Array, ""]:
        """N at `step`."""
        return jnp.asarray(self.num_scales)[self.stage(step)]


def constant(*, num_scales: Count) -> Curriculum:
    """Gives the same N at every step.   [Song et al. 2023, consistency distillation]"""
    return Curriculum(np.zeros(1, np.int32), np.full(1, num_scales, np.int32))


def square_root_growth(*, s0: Count, s1: Count, total_steps: int) -> Curriculum:
    """N(k) = ⌈√(k/K·((s1+1)² − s0²) + s0²) − 1⌉ + 1, K = total_steps.   [Song et al. 2023, app. C]

    N is the smallest integer with N² >= k/K·((s1+1)² − s0²) + s0². So N exceeds j from the first integer k that is
    above K·(j² − s0²)/((s1+1)² − s0²). This is computed with integers only, without rounding.

    Args:   s0: N at step 0, >= 2. s1: N − 1 at step K, >= s0. total_steps: K >= 1.
    Raises: ValueError naming the argument that is out of range.

    >>> curriculum = square_root_growth(s0=2, s1=150, total_steps=800_000)
    >>> int(curriculum(0)), int(curriculum(1)), int(curriculum(800_000))
    (2, 3, 151)
    """
    _check_growth(s0, s1, total_steps)
    passed = range(s0, s1 + 1)
    starts = [0] + [total_steps * (j**2 - s0**2) // ((s1 + 1) ** 2 - s0**2) + 1 for j in passed]
    return _stages(starts, [s0] + [j + 1 for j in passed])


def doubling(*, s0: Count, s1: Count, total_steps: int) -> Curriculum:
    """N(k) = min(s0·2^⌊k/K'⌋, s1) + 1, K' = ⌊K/(log2⌊s1/s0⌋ + 1)⌋.   [Song & Dhariwal 2024, sec. 3.4]

    Args:   s0: intervals at step 0, >= 2. s1: intervals at the end, >= s0. total_steps: K, at least the number of
            stages.
    Raises: ValueError naming the argument that is out of range.
    """
    _check_growth(s0, s1, total_steps)
    length = int(total_steps / (math.log2(s1 // s0) + 1))
    if length < 1:
        raise ValueError(f"total_steps must be at least the number of stages, got {total_steps}")
    # K' rounds s1/s0 down, as the paper does; s1 may also cut the last doubling short, and that is a stage too
    stages = math.ceil(math.log2(s1 / s0)) + 1
    return _stages([i * length for i in range(stages)], [min(s0 * 2**i, s1) + 1 for i in range(stages)])


def halving(*, start: Count, end: Count, total_steps: int, doubled: Annotated[int, Within(0, 64)] = 0) -> Curriculum:
    """Stages of `start`, start/2, …, `end` intervals; N = intervals + 1.   [Salimans & Ho 2022, alg. 2]

    The last `doubled` stages are twice as long as the others, which are equally long. With end = 1 and doubled = 2 they
    are those of two steps and of one, as in the released CIFAR-10 code of Song et al. 2023.

    Raises: ValueError where start is not end times a power of two, doubled is above the number of stages, or
            total_steps is below it, with doubled stages counted twice.
    """
    # 0.5 is no whole number, and refused below
    count = math.log2(start / end) + 1 if start >= end >= 1 else 0.5
    if count != int(count):
        raise ValueError(f"start must be end times a power of two, got {start} and {end}")
    stages = int(count)
    if not 0 <= doubled <= stages:
        raise ValueError(f"doubled must lie between 0 and the number of stages, {stages}, got {doubled}")
    if total_steps < stages + doubled:
        twice = ", of which the doubled count twice" if doubled else ""
        raise ValueError(f"total_steps must be at least the number of stages, {stages}{twice}, got {total_steps}")
    before = [i + max(i - (stages - doubled), 0) for i in range(stages)]  # in lengths of the first stage
    starts = [units * total_steps // (stages + doubled) for units in before]
    return _stages(starts, [start // 2**i + 1 for i in range(stages)])


def equal_stages(*, count: Count, total_steps: int) -> Schedule:
    """step -> its stage, from 0 to count − 1; all stages are equally long.   [Geng et al. 2024, ECT]"""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    # a run of no steps must not divide by 0, and the step after the last one begins no new stage
    return lambda step: jnp.minimum(jnp.asarray(step) * count // max(total_steps, 1), count - 1)


def _check_growth(s0: int, s1: int, total_steps: int) -> None:
    if s0 < 2:
        raise ValueError(f"s0 must be at least 2, got {s0}")
    if s1 < s0:
        raise ValueError(f"s1 must be at least s0={s0}, got {s1}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")


def _stages(starts: list[int], num_scales: list[int]) -> Curriculum:
    """Makes the curriculum. In a short run several stages may start at one step: only the last of them is kept."""
    kept = [i for i in range(len(starts)) if i + 1 == len(starts) or starts[i] < starts[i + 1]]
    return Curriculum(np.array(starts, np.int32)[kept], np.array(num_scales, np.int32)[kept])
