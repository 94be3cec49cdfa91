"""Methods whose target stands at another time than the student: from their fields to a `Method`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.build.choices import (
    CURRICULA,
    INTERVALS,
    ODE_STEPS,
    RATES_BY_GRID,
    Call,
    Frozen,
    Method,
    needs_input,
    needs_path,
    read_distance,
    read_rate,
    read_teacher,
    read_times,
    read_weight,
    try_out,
)
from cmjax.build.model import ModelPlan
from cmjax.core import curricula, losses, pairs
from cmjax.core.guidance import draw_guidance, guided
from cmjax.core.typing import Distance, OdeStep, PairSampler, Params, Schedule, Weight
from cmjax.fields import Fields


@dataclass(frozen=True)
class _Discrete:
    """What these methods choose alike."""

    pairs: PairSampler
    distance: Callable[[Mapping[str, Params]], Distance]
    weight: Weight
    target_rate: Schedule | None
    schedules: Mapping[str, Schedule]
    frozen: Mapping[str, Frozen]

    def method(self, loss: Callable[..., Any], **more: Any) -> Method:
        """loss(call, **options), the options those that the losses share; `more` fields of the method."""

        def evaluate(call: Call):
            return loss(
                call,
                path=call.model.path,
                distance=self.distance(call.frozen),
                weight=self.weight,
                conditions=call.conditions,
            )

        return Method(evaluate, self.pairs, self.target_rate, self.schedules, frozen=self.frozen, **more)


def _on_grid(fields: Fields, plan: ModelPlan, steps: int) -> _Discrete:
    """Neighbours on a Karras grid that grows with the run."""
    curriculum, draw = _read_grid(fields, plan, steps)
    rate = fields.call("target", RATES_BY_GRID, curriculum=curriculum)
    return _chosen(fields, plan, draw, rate, {"num_scales": curriculum})


def _read_grid(fields: Fields, plan: ModelPlan, steps: int) -> tuple[curricula.Curriculum, PairSampler]:
    curriculum = fields.call("curriculum", CURRICULA, total_steps=steps)
    return curriculum, _grid_pairs(fields, plan, curriculum, fields.choice("intervals", INTERVALS))


def _grid_pairs(
    fields: Fields, plan: ModelPlan, curriculum: curricula.Curriculum, probabilities: Callable[..., Any]
) -> PairSampler:
    needs_path(fields, plan, "ve")
    if curriculum.num_scales.min() < 2:
        raise fields.error("curriculum", "a grid has at least 2 points")
    t_min, t_max, rho = (plan.constants[name] for name in ("t_min", "t_max", "rho"))
    try:
        return pairs.grid_pairs(curriculum, t_min=t_min, t_max=t_max, rho=rho, probabilities=probabilities)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error("intervals", str(error)) from error


def _by_ratio(fields: Fields, plan: ModelPlan, steps: int, **times: float) -> _Discrete:
    """t of a distribution, some of whose parameters may be given, and r a share of it that grows with the run."""
    needs_path(fields, plan, "ve")
    stage = fields.call("stages", {"equal": curricula.equal_stages}, total_steps=steps)
    gap = fields.call("gap", {"shrinking": pairs.shrinking_gap}, stage=stage)
    try_out(fields, "gap", lambda: gap(jnp.ones(2), jnp.zeros((), int)))
    draw = pairs.ratio_pairs(read_times(fields, "times", plan, **times), gap)
    return _chosen(fields, plan, draw, read_rate(fields), {"stage": stage})


def _by_skipping(fields: Fields, plan: ModelPlan, steps: int) -> _Discrete:
    """Two of a discrete diffusion model's steps."""
    needs_path(fields, plan, "ddpm vp")
    draw = fields.call("pairs", {"skipping": pairs.skipping_pairs})
    return _chosen(fields, plan, draw, read_rate(fields), {})


def _chosen(
    fields: Fields, plan: ModelPlan, draw: PairSampler, rate: Schedule | None, schedules: dict[str, Schedule]
) -> _Discrete:
    distance, frozen = read_distance(fields)
    reported = schedules | ({} if rate is None else {"target_rate": rate})
    return _Discrete(draw, distance, read_weight(fields, plan), rate, reported, frozen)


def denoising(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    weight = read_weight(fields, plan)

    def loss(call: Call):
        return losses.denoising_loss(
            call.model.denoiser, call.params, call.key, call.x0, call.pair,
            path=call.model.path, weight=weight, conditions=call.conditions,
        )  # fmt: skip

    return Method(loss, pairs.with_clean(read_times(fields, "times", plan)))


def edm2(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    needs_input(fields, plan, "weight_head", "the log variance of the error is learned")
    weight = read_weight(fields, plan)

    def loss(call: Call):
        return losses.uncertain_denoising_loss(
            call.model.net, call.params, call.key, call.x0, call.pair,
            path=plan.path, scalings=plan.scalings, weight=weight, conditions=call.conditions,
        )  # fmt: skip

    return Method(loss, pairs.with_clean(read_times(fields, "times", plan)))


def _data_method(loss: Callable[..., Any], choose: Callable[..., _Discrete]) -> Callable[..., Method]:
    """The reader of a method that needs nothing but data, given its loss and its pairs."""

    def read(fields: Fields, plan: ModelPlan, steps: int) -> Method:
        def evaluate(call: Call, **options: Any):
            return loss(
                call.model.denoiser, call.params, call.target_params, call.key, call.x0, call.pair, **options
            )  # fmt: skip

        return choose(fields, plan, steps).method(evaluate)

    return read


ct = _data_method(losses.consistency_training_loss, _on_grid)
ect = _data_method(losses.easy_consistency_tuning_loss, _by_ratio)
sct = _data_method(losses.stable_consistency_tuning_loss, _by_ratio)


def ict(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    curriculum, draw = _read_grid(fields, plan, steps)

    def loss(call: Call):
        return losses.improved_consistency_training_loss(
            call.model.denoiser, call.params, call.key, call.x0, call.pair,
            path=call.model.path, conditions=call.conditions,
        )  # fmt: skip

    return Method(loss, draw, schedules={"num_scales": curriculum})


def multistep_ct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    edges = plan.grid(fields.integer("segments", at_least=1) + 1)
    chosen = _on_grid(fields, plan, steps)

    def evaluate(call: Call, **options: Any):
        return losses.multistep_consistency_training_loss(
            call.model.denoiser, call.params, call.target_params, call.key, call.x0, call.pair, **options
        )  # fmt: skip

    return replace(chosen.method(evaluate), pairs=pairs.segmented(chosen.pairs, edges))


def tcm(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    settings = {name: fields.number(name, above=0) for name in ("boundary", "share", "boundary_weight")}
    chosen = _by_ratio(fields, plan, steps, lowest=settings["boundary"])
    if settings["share"] > 1:
        raise fields.error("share", "must be at most 1")

    def evaluate(call: Call, **options: Any):
        return losses.truncated_consistency_training_loss(
            call.model.denoiser, call.params, call.target_params, call.key, call.x0, call.pair,
            first_stage=call.teacher, first_params=call.frozen["teacher"], **settings, **options,
        )  # fmt: skip

    first = read_teacher(fields, "first_stage", "a consistency model, the first stage's")
    return chosen.method(evaluate, teacher=first, teacher_kind="consistency")


def _distill(call: Call, *, ode_step: OdeStep, teacher, conditions, **options: Any):
    return losses.consistency_distillation_loss(
        call.model.denoiser, call.params, call.target_params, call.key, call.x0, call.pair,
        teacher=teacher, teacher_params=call.frozen["teacher"], ode_step=ode_step, conditions=conditions, **options,
    )  # fmt: skip


def cd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    ode_step = fields.choice("ode_step", ODE_STEPS, path=plan.path)

    def evaluate(call: Call, **options: Any):
        return _distill(call, ode_step=ode_step, teacher=call.teacher, **options)

    return _on_grid(fields, plan, steps).method(evaluate, teacher=read_teacher(fields))


def _guided_method(choose: Callable[..., _Discrete]) -> Callable[..., Method]:
    """The reader of a distillation whose teacher is guided by a scale that the student is given too."""

    def read(fields: Fields, plan: ModelPlan, steps: int) -> Method:
        ode_step = fields.choice("ode_step", ODE_STEPS, path=plan.path)
        draw = read_guidance(fields, plan)

        def evaluate(call: Call, conditions, **options: Any):
            guidance_key, key = jax.random.split(call.key)
            told = {**conditions, "guidance": draw(guidance_key, len(call.x0))}
            return _distill(
                replace(call, key=key), ode_step=ode_step, teacher=guided(call.teacher), conditions=told, **options
            )

        return choose(fields, plan, steps).method(evaluate, teacher=read_teacher(fields), tells_guidance=True)

    return read


guided_cd = _guided_method(_on_grid)
lcm = _guided_method(_by_skipping)


def read_guidance(fields: Fields, plan: ModelPlan) -> Callable[..., Any]:
    """(key, batch_size) -> scales (b,), uniform between the two numbers of the field `guidance`."""
    needs_input(fields, plan, "guided", "the student is given the scale of guidance")
    needs_input(fields, plan, "class_conditional", "the teacher is guided by its classes")
    scales = fields.numbers("guidance")
    if len(scales) != 2 or not 0 <= scales[0] <= scales[1]:
        raise fields.error("guidance", "must be the smallest and the largest scale, like (1.0, 3.0); 1 is no guidance")
    return partial(draw_guidance, low=scales[0], high=scales[1])


def progressive(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    curriculum = fields.call("curriculum", {"halving": curricula.halving}, total_steps=steps)
    draw = _grid_pairs(fields, plan, curriculum, pairs.uniform_intervals)
    weight = read_weight(fields, plan)
    distance, frozen = read_distance(fields)

    def loss(call: Call):
        return losses.progressive_distillation_loss(
            call.model.denoiser, call.params, call.key, call.x0, call.pair,
            path=call.model.path, teacher=call.model.denoiser, teacher_params=call.target_params,
            rho=plan.constants["rho"], distance=distance(call.frozen), weight=weight, conditions=call.conditions,
        )  # fmt: skip

    rate = curricula.kept_in_a_stage(curriculum=curriculum)
    schedules = {"num_scales": curriculum}
    return Method(loss, draw, rate, schedules, frozen=frozen)
