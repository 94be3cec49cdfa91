"""Methods whose target stands at another time than the student: from their fields to a `Method`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from cmjax.config.choices import (
    CURRICULA,
    INTERVALS,
    ODE_STEPS,
    RATES_BY_GRID,
    needs_input,
    needs_path,
    read_distance,
    read_guidance,
    read_rate,
    read_teacher,
    read_time_sampler,
    read_weight,
    try_out,
)
from cmjax.config.fields import Fields
from cmjax.config.model import ModelSpec
from cmjax.core import curricula, ema_rates, losses, pairs, times
from cmjax.core.pairs import PairSampler
from cmjax.core.typing import Schedule
from cmjax.training.method import Method


def denoising(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _at_one_time(losses.denoising, fields, spec)


def edm2(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    needs_input(fields, spec, "weight_head", "the log variance of the error is learned")
    return _at_one_time(losses.edm2, fields, spec)


def _at_one_time(loss: Callable[..., Any], fields: Fields, spec: ModelSpec) -> Method:
    loss = partial(loss, weight=read_weight(fields, spec))
    return Method(loss, pairs.single(read_time_sampler(fields, "times", spec)))


def ct(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _on_grid(losses.ct, fields, spec, steps)


def multistep_ct(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    edges = spec.grid(fields.integer("segments", at_least=1, at_most=10**5) + 1)
    return _on_grid(losses.multistep_ct, fields, spec, steps, within=lambda draw: pairs.segmented(draw, edges))


def cd(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _on_grid(_distilling(losses.cd, fields, spec), fields, spec, steps, teacher=read_teacher(fields))


def guided_cd(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    guidance, teacher = read_guidance(fields, spec), read_teacher(fields)
    loss = _distilling(losses.guided_cd, fields, spec)
    return _on_grid(loss, fields, spec, steps, guidance=guidance, teacher=teacher)


def lcm(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    needs_path(fields, spec, "ddpm vp")
    draw = fields.call("pairs", {"skipping": pairs.skipping_pairs, "ddim_grid": pairs.ddim_grid_pairs})
    guidance, teacher = read_guidance(fields, spec), read_teacher(fields)
    loss = _distilling(losses.lcm, fields, spec)
    return _with_distance(loss, fields, spec, draw, read_rate(fields), {}, guidance=guidance, teacher=teacher)


def ict(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    curriculum, draw = _read_grid(fields, spec, steps)
    return Method(losses.ict, draw, schedules={"num_scales": curriculum})


def ect(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _by_ratio(losses.ect, fields, spec, steps, read_time_sampler(fields, "times", spec))


def sct(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _by_ratio(losses.sct, fields, spec, steps, read_time_sampler(fields, "times", spec))


def tcm(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    settings = {name: fields.number(name, above=0) for name in ("boundary", "fraction", "boundary_weight")}
    boundary, fraction = settings["boundary"], settings["fraction"]
    if fraction >= 1:
        raise fields.error("fraction", "must be below 1: the fraction of the batch at the boundary")
    draw = times.held_at(read_time_sampler(fields, "times", spec, lowest=boundary), at=boundary, fraction=fraction)
    first = read_teacher(fields, "first_stage", "a consistency model, the first stage's")
    of_first = {"teacher": first, "teacher_kind": "consistency", "teacher_as": "first_stage", "teacher_drops_out": True}
    return _by_ratio(partial(losses.tcm, **settings), fields, spec, steps, draw, fraction=fraction, **of_first)


def pd(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    curriculum = fields.call("curriculum", {"halving": curricula.halving}, total_steps=steps)
    draw = _grid_pairs(fields, spec, curriculum, pairs.uniform_intervals)
    rate = ema_rates.kept_in_a_stage(curriculum=curriculum)
    loss = partial(losses.pd, rho=spec.constants["rho"])
    stages = curriculum.starts.tolist()
    return _with_distance(loss, fields, spec, draw, rate, {"num_scales": curriculum}, stages=stages)


def _distilling(loss: Callable[..., Any], fields: Fields, spec: ModelSpec) -> Callable[..., Any]:
    return partial(loss, ode_step=fields.choice("ode_step", ODE_STEPS, path=spec.path).make)


def _on_grid(
    loss: Callable[..., Any],
    fields: Fields,
    spec: ModelSpec,
    steps: int,
    *,
    within: Callable[[PairSampler], PairSampler] = lambda draw: draw,
    **more: Any,
) -> Method:
    """Neighbours on a Karras grid that grows with the run. `more`: fields of the method."""
    curriculum, draw = _read_grid(fields, spec, steps)
    rate = fields.call("target", RATES_BY_GRID, curriculum=curriculum)
    return _with_distance(loss, fields, spec, within(draw), rate, {"num_scales": curriculum}, **more)


def _read_grid(fields: Fields, spec: ModelSpec, steps: int) -> tuple[curricula.Curriculum, PairSampler]:
    curriculum = fields.call("curriculum", CURRICULA, total_steps=steps)
    return curriculum, _grid_pairs(fields, spec, curriculum, fields.choice("intervals", INTERVALS).make)


def _grid_pairs(
    fields: Fields, spec: ModelSpec, curriculum: curricula.Curriculum, probabilities: Callable[..., Any]
) -> PairSampler:
    needs_path(fields, spec, "ve")
    if curriculum.num_scales.min() < 2:
        raise fields.error("curriculum", "a grid has at least 2 points")
    t_min, t_max, rho = (spec.constants[name] for name in ("t_min", "t_max", "rho"))
    try:
        return pairs.grid_pairs(curriculum, t_min=t_min, t_max=t_max, rho=rho, probabilities=probabilities)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error("intervals", str(error)) from error


def _by_ratio(
    loss: Callable[..., Any], fields: Fields, spec: ModelSpec, steps: int, draw: times.TimeSampler, **more: Any
) -> Method:
    """t of a distribution, and r a fraction of it that grows with the run. `more`: fields of the method."""
    needs_path(fields, spec, "ve")
    stage = fields.call("stages", {"equal": curricula.equal_stages}, total_steps=steps)
    gap = fields.call("gap", {"shrinking": pairs.shrinking_gap}, stage=stage)
    try_out(fields, "gap", lambda: gap(jnp.ones(2), jnp.zeros((), int)))
    return _with_distance(
        loss, fields, spec, pairs.ratio_pairs(draw, gap), read_rate(fields), {"stage": stage}, **more
    )  # fmt: skip


def _with_distance(
    loss: Callable[..., Any],
    fields: Fields,
    spec: ModelSpec,
    draw: PairSampler,
    rate: Schedule | None,
    schedules: dict[str, Schedule],
    **more: Any,
) -> Method:
    """The method of a loss that takes a distance and a weight. `more`: further fields of the method."""
    distance, frozen = read_distance(fields)
    loss = partial(loss, weight=read_weight(fields, spec))
    reported = schedules | ({} if rate is None else {"target_rate": rate})
    return Method(
        loss, draw, rate, by_frozen={"distance": distance}, schedules=reported, frozen=frozen, **more
    )  # fmt: skip
