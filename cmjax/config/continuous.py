"""Methods that differentiate by time, and those of flow maps between any two times: from their fields to a `Method`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.config.choices import (
    NORMALIZATIONS,
    needs_input,
    needs_jvp,
    needs_path,
    read_distance,
    read_guidance,
    read_rate,
    read_speed,
    read_teacher,
    read_time_sampler,
    read_weight,
    try_out,
)
from cmjax.config.fields import Fields
from cmjax.config.model import ModelSpec
from cmjax.core import losses, pairs
from cmjax.core.derivatives import Derivative, central_difference
from cmjax.core.guidance import guided, sample_interval
from cmjax.core.losses import alpha_flow, tangents
from cmjax.core.losses.flow_maps import ALWAYS, Interval
from cmjax.core.pairs import PairSampler
from cmjax.core.typing import PerSample
from cmjax.training.method import Method

GAINS = {"trig": jnp.cos, "linear": jnp.ones_like}
"""Of a path: the bounded factor of its tangent."""
DERIVATIVES = {"jvp": lambda: jax.jvp, "central_difference": central_difference}
PAIRS = {"sorted": pairs.sorted_pairs, "capped": pairs.capped_pairs}
ALPHA_WEIGHTS = {"inverse": alpha_flow.inverse_alpha, "adaptive": alpha_flow.adaptive_alpha}


def scm_ct(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _scm(losses.scm_ct, fields, spec)


def scm_cd(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    """With `guidance`, two numbers, the teacher is guided by a scale between them that the student is given too."""
    teacher = read_teacher(fields)
    if not fields.value("guidance"):
        return _scm(losses.scm_cd, fields, spec, teacher=teacher)
    return _scm(_guided_scm_cd, fields, spec, teacher=teacher, guidance=read_guidance(fields, spec))


def _guided_scm_cd(*inputs: Any, teacher: Callable[..., Any], **choices: Any) -> PerSample:
    return losses.scm_cd(*inputs, teacher=guided(teacher), **choices)


def _scm(loss: Callable[..., Any], fields: Fields, spec: ModelSpec, **more: Any) -> Method:
    needs_path(fields, spec, "trig linear")
    derivative = _read_derivative(fields, spec)
    warmup = fields.call("warmup", {"ramp": tangents.ramp})
    normalize = fields.choice("normalize", NORMALIZATIONS).make
    try_out(fields, "normalize", lambda: normalize(jnp.ones((2, 3))))
    weighted = fields.boolean("learned_weight")
    if weighted:
        needs_input(fields, spec, "weight_head", "learned_weight=True needs a network with a weight head")
    loss = partial(loss, normalize=normalize, gain=GAINS[spec.path_name], weighted=weighted, derivative=derivative)
    times, reported = pairs.single(read_time_sampler(fields, "times", spec)), {"tangent_warmup": warmup}
    return Method(loss, times, by_step={"warmup": warmup}, schedules=reported, **more)


def continuous_ct(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    return _continuous(losses.continuous_ct, fields, spec)


def continuous_cd(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    stop_gradient = fields.boolean("stop_gradient", absent=True)
    loss = partial(losses.continuous_cd, stop_gradient=stop_gradient)
    return _continuous(loss, fields, spec, teacher=read_teacher(fields))


def _continuous(loss: Callable[..., Any], fields: Fields, spec: ModelSpec, **more: Any) -> Method:
    needs_jvp(fields, spec)
    weight = read_weight(fields, spec, of_t_alone=True)
    speed, frozen = read_speed(fields)
    times = pairs.single(read_time_sampler(fields, "times", spec))
    return Method(partial(loss, weight=weight), times, by_frozen={"speed": speed}, frozen=frozen, **more)


def meanflow(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    labels = _read_labels(fields, spec, "drops_first")
    return _regressing(partial(losses.meanflow, **_read_mix(fields, spec)), fields, spec, labels=labels)


def imf(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    """`guidance` is one scale, or two between which each sample's is drawn, as an input of the network.

    `guidance_interval` is one, or "drawn" for each sample, as an input of the network.
    """
    more: dict[str, Any] = {"labels": _read_labels(fields, spec, "drops_first", "keeps_label")}
    loss = partial(losses.imf, velocity_head=bool(spec.net.get("velocity_head")))
    if fields.has("guidance_interval") and fields.value("guidance_interval") == "drawn":
        needs_input(fields, spec, "guided_interval", "the network is given the interval of guidance")
        more["interval"] = sample_interval
    else:
        loss = partial(loss, interval=_read_interval(fields))
    if not isinstance(fields.value("guidance"), int | float):
        return _regressing(loss, fields, spec, guidance=read_guidance(fields, spec, above=0), **more)
    guidance = fields.number("guidance", above=0)
    if guidance != 1:
        _needs_labels(fields, spec, "guidance")
    return _regressing(partial(loss, guidance=guidance), fields, spec, **more)


def _read_mix(fields: Fields, spec: ModelSpec) -> dict[str, Any]:
    """The guidance of a target that mixes velocities; none where a field is absent, as in an older run's record."""
    guidance = fields.number("guidance", above=0, absent=1.0)
    blend = fields.number("blend", at_least=0, absent=0.0)
    for name, value, off in (("guidance", guidance, 1), ("blend", blend, 0)):
        if value != off:
            _needs_labels(fields, spec, name)
    return {"guidance": guidance, "blend": blend, "interval": _read_interval(fields)}


def _read_interval(fields: Fields) -> Interval:
    """The first and the last time of guidance: all times where the field is absent."""
    if not fields.has("guidance_interval"):
        return ALWAYS
    interval = fields.numbers("guidance_interval")
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise fields.error("guidance_interval", "must be the first and the last time of guidance, like (0.0, 1.0)")
    return interval[0], interval[1]


def _read_clip(fields: Fields) -> float:
    """The largest value of a target's elements; absent: no limit."""
    return fields.number("clip", above=0) if fields.has("clip") else math.inf


def _needs_labels(fields: Fields, spec: ModelSpec, name: str) -> None:
    if not spec.net["class_conditional"]:
        off = 1 if name == "guidance" else 0
        raise fields.error(name, f"needs labels: set config.net.class_conditional=True, or {name} to {off}")


def _regressing(loss: Callable[..., Any], fields: Fields, spec: ModelSpec, **more: Any) -> Method:
    loss = partial(loss, derivative=_read_derivative(fields, spec))
    distance, frozen = read_distance(fields)
    return Method(loss, _two_times(fields, spec), by_frozen={"distance": distance}, frozen=frozen, **more)


def _read_labels(fields: Fields, spec: ModelSpec, *names: str) -> dict[str, bool]:
    """Whether labels are left out of the first samples, which have s = t, and whether the loss has them all too."""
    chosen = [name for name in names if fields.boolean(name, absent=False)]
    for name in chosen:
        needs_input(fields, spec, "class_conditional", f"{name}=True needs labels")
    if "drops_first" in chosen and not fields.choice("pairs", PAIRS).parameters.get("exact"):
        raise fields.error("drops_first", "needs config.objective.pairs with exact=True, so that these have s = t")
    return {"drop_first": "drops_first" in chosen, "keep_labels": "keeps_label" in chosen}


def _read_derivative(fields: Fields, spec: ModelSpec) -> Derivative:
    """How the derivative by time is taken: by forward mode where nothing is said."""
    chosen = fields.choice("derivative", DERIVATIVES) if fields.has("derivative") else None
    if chosen is None or chosen.name == "jvp":
        step = 0.03 if spec.kind == "flow_map" else 0.3  # the best in half precision, which is all that cuDNN's has
        needs_jvp(fields, spec, otherwise=f", or config.objective.derivative=central_difference(step={step})")
        return jax.jvp
    if spec.preconditioning == "trig_edm":
        raise fields.error("derivative", "must be jvp with preconditioning trig_edm: ln tan t ends where t does")
    return chosen.make()


def _two_times(fields: Fields, spec: ModelSpec) -> PairSampler:
    drawn, other = (read_time_sampler(fields, name, spec) for name in ("times", "times_s"))
    chosen = fields.choice("pairs", PAIRS).make
    try:
        return chosen(drawn, other)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error("pairs", str(error)) from error


def shortcut(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    distance, frozen = read_distance(fields)
    fraction = fields.number("fraction", above=0)
    if fraction >= 1:
        raise fields.error(
            "fraction", "must lie between 0 and 1: the part of the batch that learns from its own half steps"
        )
    draw = fields.call("pairs", {"dyadic": pairs.dyadic_pairs}, fraction=fraction, t_max=spec.constants["t_max"])
    rate = read_rate(fields)
    reported = {} if rate is None else {"target_rate": rate}
    guidance = fields.number("guidance", above=0, absent=1.0)
    if guidance != 1:
        _needs_labels(fields, spec, "guidance")
    loss = partial(losses.shortcut, fraction=fraction, guidance=guidance, clip=_read_clip(fields))
    return Method(
        loss, draw, rate, by_frozen={"distance": distance}, schedules=reported, frozen=frozen, fraction=fraction
    )


def alphaflow(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    derivative = _read_derivative(fields, spec)
    weight = fields.choice("weight", ALPHA_WEIGHTS).make
    try_out(fields, "weight", lambda: weight(jnp.ones(2), jnp.ones(2)))
    alpha = fields.call("alpha", {"sigmoid": alpha_flow.alpha_schedule}, total_steps=steps)
    try_out(fields, "alpha", lambda: alpha(jnp.zeros((), int)))
    times = pairs.between(_two_times(fields, spec), alpha)
    loss = partial(
        losses.alphaflow, weight=weight, derivative=derivative, clip=_read_clip(fields), **_read_mix(fields, spec)
    )
    return Method(loss, times, by_step={"alpha": alpha}, schedules={"alpha": alpha})
