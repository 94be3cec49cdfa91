"""Methods whose target stands at another time than the student: from their fields to a `Method`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from cmjax.config.fields import Fields
from cmjax.config.model import ModelPlan
from cmjax.config.objective import (
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
    read_times,
    read_weight,
    try_out,
)
from cmjax.core import curricula, losses, pairs, targets, times
from cmjax.core.pairs import TimesSampler
from cmjax.core.typing import Schedule
from cmjax.training.method import Method


def denoising(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _at_one_time(losses.denoising, fields, plan)


def edm2(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    needs_input(fields, plan, "weight_head", "the log variance of the error is learned")
    return _at_one_time(losses.edm2, fields, plan)


def _at_one_time(loss: Callable[..., Any], fields: Fields, plan: ModelPlan) -> Method:
    loss = partial(loss, weight=read_weight(fields, plan))
    return Method(loss, pairs.single(read_times(fields, "times", plan)))


def ct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _on_grid(losses.ct, fields, plan, steps)


def multistep_ct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    edges = plan.grid(fields.integer("segments", at_least=1) + 1)
    return _on_grid(losses.multistep_ct, fields, plan, steps, within=lambda draw: pairs.segmented(draw, edges))


def cd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _on_grid(_distilling(losses.cd, fields, plan), fields, plan, steps, teacher=read_teacher(fields))


def guided_cd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    guidance, teacher = read_guidance(fields, plan), read_teacher(fields)
    loss = _distilling(losses.guided_cd, fields, plan)
    return _on_grid(loss, fields, plan, steps, guidance=guidance, teacher=teacher)


def lcm(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    needs_path(fields, plan, "ddpm vp")
    draw = fields.call("pairs", {"skipping": pairs.skipping_pairs})
    guidance, teacher = read_guidance(fields, plan), read_teacher(fields)
    loss = _distilling(losses.lcm, fields, plan)
    return _with_distance(loss, fields, plan, draw, read_rate(fields), {}, guidance=guidance, teacher=teacher)


def ict(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    curriculum, draw = _read_grid(fields, plan, steps)
    return Method(losses.ict, draw, schedules={"num_scales": curriculum})


def ect(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _by_ratio(losses.ect, fields, plan, steps, read_times(fields, "times", plan))


def sct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _by_ratio(losses.sct, fields, plan, steps, read_times(fields, "times", plan))


def tcm(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    settings = {name: fields.number(name, above=0) for name in ("boundary", "share", "boundary_weight")}
    boundary, share = settings["boundary"], settings["share"]
    if share >= 1:
        raise fields.error("share", "must be below 1: the share of the batch at the boundary")
    draw = times.held_at(read_times(fields, "times", plan, lowest=boundary), at=boundary, share=share)
    first = read_teacher(fields, "first_stage", "a consistency model, the first stage's")
    of_first = {"teacher": first, "teacher_kind": "consistency", "teacher_as": "first_stage", "share": share}
    return _by_ratio(partial(losses.tcm, **settings), fields, plan, steps, draw, **of_first)


def pd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    curriculum = fields.call("curriculum", {"halving": curricula.halving}, total_steps=steps)
    draw = _grid_pairs(fields, plan, curriculum, pairs.uniform_intervals)
    rate = targets.kept_in_a_stage(curriculum=curriculum)
    loss = partial(losses.pd, rho=plan.constants["rho"])
    return _with_distance(loss, fields, plan, draw, rate, {"num_scales": curriculum})


def _distilling(loss: Callable[..., Any], fields: Fields, plan: ModelPlan) -> Callable[..., Any]:
    return partial(loss, ode_step=fields.choice("ode_step", ODE_STEPS, path=plan.path))


def _on_grid(
    loss: Callable[..., Any],
    fields: Fields,
    plan: ModelPlan,
    steps: int,
    *,
    within: Callable[[TimesSampler], TimesSampler] = lambda draw: draw,
    **more: Any,
) -> Method:
    """Neighbours on a Karras grid that grows with the run. `more`: fields of the method."""
    curriculum, draw = _read_grid(fields, plan, steps)
    rate = fields.call("target", RATES_BY_GRID, curriculum=curriculum)
    return _with_distance(loss, fields, plan, within(draw), rate, {"num_scales": curriculum}, **more)


def _read_grid(fields: Fields, plan: ModelPlan, steps: int) -> tuple[curricula.Curriculum, TimesSampler]:
    curriculum = fields.call("curriculum", CURRICULA, total_steps=steps)
    return curriculum, _grid_pairs(fields, plan, curriculum, fields.choice("intervals", INTERVALS))


def _grid_pairs(
    fields: Fields, plan: ModelPlan, curriculum: curricula.Curriculum, probabilities: Callable[..., Any]
) -> TimesSampler:
    needs_path(fields, plan, "ve")
    if curriculum.num_scales.min() < 2:
        raise fields.error("curriculum", "a grid has at least 2 points")
    t_min, t_max, rho = (plan.constants[name] for name in ("t_min", "t_max", "rho"))
    try:
        return pairs.grid_pairs(curriculum, t_min=t_min, t_max=t_max, rho=rho, probabilities=probabilities)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error("intervals", str(error)) from error


def _by_ratio(
    loss: Callable[..., Any], fields: Fields, plan: ModelPlan, steps: int, draw: times.TimeSampler, **more: Any
) -> Method:
    """t of a distribution, and r a share of it that grows with the run. `more`: fields of the method."""
    needs_path(fields, plan, "ve")
    stage = fields.call("stages", {"equal": curricula.equal_stages}, total_steps=steps)
    gap = fields.call("gap", {"shrinking": pairs.shrinking_gap}, stage=stage)
    try_out(fields, "gap", lambda: gap(jnp.ones(2), jnp.zeros((), int)))
    return _with_distance(
        loss, fields, plan, pairs.ratio_pairs(draw, gap), read_rate(fields), {"stage": stage}, **more
    )  # fmt: skip


def _with_distance(
    loss: Callable[..., Any],
    fields: Fields,
    plan: ModelPlan,
    draw: TimesSampler,
    rate: Schedule | None,
    schedules: dict[str, Schedule],
    **more: Any,
) -> Method:
    """The method of a loss that takes a distance and a weight. `more`: further fields of the method."""
    distance, frozen = read_distance(fields)
    loss = partial(loss, weight=read_weight(fields, plan))
    reported = schedules | ({} if rate is None else {"target_rate": rate})
    return Method(
        loss, draw, rate, by_frozen={"distance": distance}, schedules=reported, frozen=frozen, **more
    )  # fmt: skip
