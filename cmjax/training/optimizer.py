"""The optimizer: a chain of Optax transformations whose last member holds every average of the parameters."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from optax import contrib

from cmjax.core.typing import Params, Schedule
from cmjax.ranges import Count, NotNegative, Positive, Rate, Steps

SLOW = 1e-3
"""A weight of the updated parameters below which rounding would stop an average."""


class AveragesState(NamedTuple):
    # updates done: the step of an update that was skipped is not counted
    count: Int[Array, ""]
    averages: dict[str, Params]


def track_averages(rates: Mapping[str, Schedule]) -> optax.GradientTransformation:
    """Tracks exponential moving averages of the *updated* parameters, avg ← μ(k)·avg + (1 − μ(k))·θ_{k+1}.

    Rounding to float32 would stop a slow average at a relative distance of 3e-8/(1 − μ) from a settled parameter, 6e-4
    at μ = 0.99995. So a dither of at most half a unit in the last place is added before rounding.

    Leaves the updates as they are. Stands last in a chain, where the updates are the ones that will be applied.

    Args: rates: for each average its name and the rate μ as a function of the optimizer step.
    """

    def init(params):
        # copies, as a donated state may not hold one buffer twice
        copies = {name: jax.tree.map(jnp.copy, params) for name in rates}
        return AveragesState(jnp.zeros((), jnp.int32), copies)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("track_averages needs the parameters: call update(updates, state, params)")
        updated = optax.apply_updates(params, updates)
        averages = {
            name: jax.tree.map(partial(_average, 1 - rate(state.count), state.count), state.averages[name], updated)
            for name, rate in rates.items()
        }
        return updates, AveragesState(state.count + 1, averages)

    return optax.GradientTransformation(init, update)


def _average(weight: Array, step: Array, average: Array, updated: Array) -> Array:
    weight = jnp.asarray(weight, average.dtype)  # of a schedule in float64, where that is enabled
    size = jnp.abs(average)
    # a unit in the last place: the distance to the next float32 number
    unit = jnp.nextafter(size, jnp.full_like(size, jnp.inf)) - size
    # the dither, in [−1/2, 1/2): multiples of the golden ratio, whose fraction of 2³² this is, fill it evenly
    turned = jnp.asarray(step).astype(jnp.uint32) * jnp.uint32(2654435769)
    dither = (turned >> 8).astype(jnp.float32) / 2**24 - 0.5
    # the difference first: (1 − weight)·average is rounded, by more than what is added
    slow = average + (weight * (updated - average) + dither.astype(average.dtype) * unit)
    quick = (1 - weight) * average + weight * updated
    # at weight 0 the dither alone would move the average
    return jnp.where(weight >= SLOW, quick, jnp.where(weight > 0, slow, average))


def muon(*, beta: Rate = 0.95, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8) -> optax.GradientTransformation:
    """Muon: the momentum of each matrix is made orthogonal; biases and scales are Adam's.   [Jordan et al. 2024]

    A convolution's kernel is a matrix of all its inputs by its outputs. An update's root mean square is 0.2, about that
    of Adam's, so that Adam's learning rates serve.   [Liu et al. 2025, eq. 4]

    Args: beta: rate of the momentum. b1, b2: of Adam's moments. eps: added to the divisors of both.
    """
    # A learning rate of -1 leaves the gradient's sign, as other rules do: `make_optimizer` applies the real one.
    return contrib.muon(
        -1.0,
        beta=beta,
        eps=eps,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=as_matrices,
    )


def as_matrices(params: Params) -> Any:
    """Gives the axes of each parameter's matrix: its inputs are all axes but the last, its outputs the last. None for
    vectors and numbers, which Adam updates."""

    def axes(parameter: Array) -> contrib.MuonDimensionNumbers | None:
        if parameter.ndim < 2:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(parameter.ndim - 1)), parameter.ndim - 1)

    return jax.tree.map(axes, params)


class RestartedState(NamedTuple):
    count: Int[Array, ""]
    state: Any


def restarted(rule: optax.GradientTransformation, starts: Sequence[int]) -> optax.GradientTransformation:
    """Makes a rule that forgets its state before each of the updates `starts`, as if a run began there."""

    def init(params):
        return RestartedState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(updates, state, params=None):
        begins = jnp.any(state.count == jnp.asarray(starts, jnp.int32))
        # a rule may be called without parameters; the updates have their shapes
        first = rule.init(updates if params is None else params)
        kept = jax.tree.map(lambda new, old: jnp.where(begins, new, old), first, state.state)
        updates, kept = rule.update(updates, kept, params)
        return updates, RestartedState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def project(projection: Callable[[Params], Params]) -> optax.GradientTransformation:
    """Change the updates so that the updated parameters are the `projection` of what they would have been."""

    def update(updates, params):
        return jax.tree.map(jnp.subtract, projection(optax.apply_updates(params, updates)), params)

    return optax.stateless(update)


def averages(opt_state: Any) -> dict[str, Params]:
    """Gives the averages that are held by the last member of the chain, by name."""
    last = opt_state[-1]
    if not isinstance(last, AveragesState):
        raise ValueError("the optimizer state does not end in the averages of the parameters")
    return last.averages


def make_optimizer(
    rule: optax.GradientTransformation,
    *,
    learning_rate: Schedule,
    clip_norm: float,
    weight_decay: float,
    average_rates: Mapping[str, Schedule],
    projection: Callable[[Params], Params] | None = None,
) -> optax.GradientTransformation:
    """clip → rule (Adam, RAdam, …) → decoupled weight decay → learning rate → projection → averages.

    Args: rule: such as `optax.scale_by_radam()`. clip_norm: largest global gradient norm; 0 does not clip.
          projection: of the updated parameters, onto those that the network is to have; None for no such step.
    """

    def update(updates, state, params=None):
        # Optax's rules raise a rate to the power of an int32 count, which JAX refuses where it promotes no types
        with jax.numpy_dtype_promotion("standard"):
            return rule.update(updates, state, params)

    # identity, not left out: the state's structure, and so its checkpoints, stays the same without it
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.GradientTransformation(rule.init, update),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
        # after the learning rate: it must see the parameters that would result
        *([project(projection)] if projection else []),
        track_averages(average_rates),
    )


def constant_schedule(*, peak: float, total_steps: int, warmup_steps: Steps = 0) -> Schedule:
    """Keeps the learning rate `peak` after a linear warm-up."""
    return _warmed_up(optax.constant_schedule(peak), peak, warmup_steps)


def cosine_schedule(*, peak: float, total_steps: int, warmup_steps: Steps = 0) -> Schedule:
    """Falls from `peak` to zero along a half cosine, after a linear warm-up."""
    return _warmed_up(optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1)), peak, warmup_steps)


def linear_schedule(*, peak: float, total_steps: int, warmup_steps: Steps = 0) -> Schedule:
    """Falls from `peak` to zero along a line, after a linear warm-up."""
    decay = optax.linear_schedule(peak, 0.0, max(total_steps - warmup_steps, 1))
    return _warmed_up(decay, peak, warmup_steps)


def inverse_sqrt_schedule(
    *, peak: float, total_steps: int, batch_size: int, flat_steps: Count, warmup_mimg: NotNegative
) -> Schedule:
    """peak/√(max(step/flat_steps, 1)), after a linear warm-up of `warmup_mimg` million images.   [Karras et al. 2024,
    eq. 67]"""
    if flat_steps <= 0 or warmup_mimg < 0:
        raise ValueError(f"flat_steps must be positive and warmup_mimg at least 0, got {flat_steps}, {warmup_mimg}")

    def rate(step):
        # as int32, step · batch_size would overflow at 2³¹ images
        step = jnp.asarray(step, float)
        warm = jnp.minimum(step * batch_size / (warmup_mimg * 1e6), 1) if warmup_mimg else 1.0
        return peak * warm / jnp.sqrt(jnp.maximum(step / flat_steps, 1))

    return rate


def _warmed_up(schedule: Schedule, peak: float, warmup_steps: int) -> Schedule:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
    if warmup_steps:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), schedule], [warmup_steps])
    # an int32 count in a schedule's arithmetic is refused where JAX promotes no types
    return lambda step: schedule(jnp.asarray(step, float))
