"""Methods that differentiate by time, and those of flow maps between any two times: from their fields to a `Method`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.build.choices import (
    NORMALIZATIONS,
    Call,
    Method,
    needs_input,
    needs_jvp,
    needs_path,
    read_distance,
    read_rate,
    read_teacher,
    read_times,
    read_weight,
    try_out,
)
from cmjax.build.discrete import read_guidance
from cmjax.build.model import ModelPlan
from cmjax.core import curricula, flow_losses, pairs, tangent_losses
from cmjax.core.guidance import guided
from cmjax.core.tangent_losses import velocity_of, velocity_of_data
from cmjax.core.typing import PairSampler
from cmjax.core.weightings import inverse_gap
from cmjax.fields import Fields

GAINS = {"trig": jnp.cos, "linear": jnp.ones_like}
"""Of a path: the bounded prefactor of its tangent."""


def _scm(fields: Fields, plan: ModelPlan, give: Callable, *, teacher: str = "") -> Method:
    """give(call) -> (what gives the velocity, the conditions, the key)."""
    needs_path(fields, plan, "trig linear")
    needs_jvp(fields, plan)
    warmup = fields.call("warmup", {"ramp": curricula.ramp})
    normalize = fields.choice("normalize", NORMALIZATIONS)
    try_out(fields, "normalize", lambda: normalize(jnp.ones((2, 3))))
    weighted = fields.boolean("learned_weight")
    if weighted:
        needs_input(fields, plan, "weight_head", "learned_weight=True needs a network with a weight head")

    def loss(call: Call):
        give_velocity, conditions, key = give(call)
        return tangent_losses.scm_loss(
            call.model.net, call.params, key, call.x0, call.pair.t,
            path=plan.path, scalings=plan.scalings, give_velocity=give_velocity, warmup=warmup(call.step),
            normalize=normalize, gain=GAINS[plan.path_name], weighted=weighted, conditions=conditions,
        )  # fmt: skip

    draw = pairs.with_clean(read_times(fields, "times", plan))
    return Method(loss, draw, schedules={"tangent_warmup": warmup}, teacher=teacher)


def _continuous(fields: Fields, plan: ModelPlan, give: Callable, *, teacher: str = "") -> Method:
    needs_jvp(fields, plan)
    weight = read_weight(fields, plan)
    if weight.func is inverse_gap:
        raise fields.error("weight", "is 1/(t − r), and both points meet: choose one of t alone")

    def loss(call: Call):
        give_velocity, conditions, key = give(call)
        return tangent_losses.continuous_consistency_loss(
            call.model.net, call.params, key, call.x0, call.pair.t,
            path=plan.path, scalings=plan.scalings, give_velocity=give_velocity, weight=weight, conditions=conditions,
        )  # fmt: skip

    return Method(loss, pairs.with_clean(read_times(fields, "times", plan)), teacher=teacher)


def _from_data(call: Call) -> tuple[Any, Any, Any]:
    return velocity_of_data, call.conditions, call.key


def _from_teacher(call: Call) -> tuple[Any, Any, Any]:
    return velocity_of(call.teacher, call.frozen["teacher"]), call.conditions, call.key


def scm_ct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _scm(fields, plan, _from_data)


def scm_cd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    """With `guidance`, two numbers, the teacher is guided by a scale between them that the student is given too."""
    if not fields.value("guidance"):
        return _scm(fields, plan, _from_teacher, teacher=read_teacher(fields))
    draw = read_guidance(fields, plan)

    def give(call: Call):
        guidance_key, key = jax.random.split(call.key)
        conditions = {**call.conditions, "guidance": draw(guidance_key, len(call.x0))}
        return velocity_of(guided(call.teacher), call.frozen["teacher"]), conditions, key

    return replace(_scm(fields, plan, give, teacher=read_teacher(fields)), tells_guidance=True)


def continuous_ct(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _continuous(fields, plan, _from_data)


def continuous_cd(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    return _continuous(fields, plan, _from_teacher, teacher=read_teacher(fields))


def _two_times(fields: Fields, plan: ModelPlan) -> PairSampler:
    drawn, other = (read_times(fields, name, plan) for name in ("times", "times_s"))
    apart = fields.number("apart", at_least=0)
    if apart > 1:
        raise fields.error("apart", "must lie in [0, 1]: the share of the batch with s below t")
    return pairs.sorted_pairs(drawn, other, apart=apart)


def mean_flow(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    settings = {"guidance": fields.number("guidance", above=0), "blend": fields.number("blend", at_least=0)}
    return _flow_method(flow_losses.mean_flow_loss, fields, plan, settings)


def improved_mean_flow(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    settings = {"guidance": fields.number("guidance", above=0)}
    return _flow_method(flow_losses.improved_mean_flow_loss, fields, plan, settings)


def _flow_method(loss: Callable, fields: Fields, plan: ModelPlan, settings: dict[str, float]) -> Method:
    needs_jvp(fields, plan)
    distance, frozen = read_distance(fields)
    for name, off in (("guidance", 1.0), ("blend", 0.0)):
        if settings.get(name, off) != off and not plan.net["class_conditional"]:
            raise fields.error(name, f"needs labels: set config.net.class_conditional=True, or {name} to {off}")

    def evaluate(call: Call):
        return loss(
            call.model.net, call.params, call.key, call.x0, call.pair,
            path=plan.path, distance=distance(call.frozen), conditions=call.conditions, **settings,
        )  # fmt: skip

    return Method(evaluate, _two_times(fields, plan), frozen=frozen)


def shortcut(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    distance, frozen = read_distance(fields)
    share = fields.number("share", above=0)
    if share >= 1:
        raise fields.error(
            "share", "must lie between 0 and 1: the part of the batch that learns from its own half steps"
        )
    draw = fields.call("pairs", {"dyadic": pairs.dyadic_pairs}, share=share, t_max=plan.constants["t_max"])

    def loss(call: Call):
        return flow_losses.shortcut_loss(
            call.model.net, call.params, call.target_params, call.key, call.x0, call.pair,
            path=plan.path, share=share, distance=distance(call.frozen), conditions=call.conditions,
        )  # fmt: skip

    rate = read_rate(fields)
    return Method(loss, draw, rate, {} if rate is None else {"target_rate": rate}, frozen=frozen)


def alpha_flow(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    distance, frozen = read_distance(fields)
    alpha = fields.call("alpha", {"sigmoid": curricula.sigmoid_fall}, total_steps=steps)
    try_out(fields, "alpha", lambda: alpha(jnp.zeros((), int)))

    def loss(call: Call):
        return flow_losses.alpha_flow_loss(
            call.model.net, call.params, call.target_params, call.key, call.x0, call.pair,
            path=plan.path, alpha=alpha(call.step), distance=distance(call.frozen), conditions=call.conditions,
        )  # fmt: skip

    return Method(loss, pairs.between(_two_times(fields, plan), alpha), schedules={"alpha": alpha}, frozen=frozen)
