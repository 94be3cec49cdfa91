"""Reads what a loss takes by keyword: a reader for each keyword, so that a new method needs no code here.

A reader takes an `Objective` and gives fields of `Method`: most the keyword's value, {"choices": {keyword: value}}.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config import choices
from cmjax.config.fields import Choice, Fields
from cmjax.config.methods import method_name
from cmjax.config.model import ModelSpec
from cmjax.core import losses
from cmjax.core.curricula import Curriculum
from cmjax.core.distances import curvature_speed, speed_by
from cmjax.core.guidance import guided, sample_guidance, sample_interval
from cmjax.core.losses import alpha_flow, tangents
from cmjax.core.typing import Distance, PerSample, Schedule

WARMUPS = {"ramp": tangents.ramp}
Part = dict[str, Any]  # fields of `Method`


@dataclass(frozen=True)
class Objective:
    """The section `objective`, with the model and the number of steps of the run, and the curriculum of its grid."""

    fields: Fields
    spec: ModelSpec
    steps: int
    curriculum: Curriculum | None = None


def read_fraction(o: Objective) -> float:
    """The fraction of the batch that learns in another way than the rest."""
    fraction = o.fields.number("fraction", above=0)
    if fraction >= 1:
        raise o.fields.error("fraction", "must be below 1: a fraction of the batch, between 0 and 1, learns otherwise")
    return fraction


def read_alpha(o: Objective) -> Schedule:
    """α-Flow's schedule, which its times and its loss both take."""
    alpha = o.fields.call("alpha", {"sigmoid": alpha_flow.alpha_schedule}, total_steps=o.steps)
    with o.fields.naming("alpha"):
        jax.eval_shape(lambda: alpha(jnp.zeros((), int)))
    return alpha


def read_grid(o: Objective) -> np.ndarray:
    """The grid of `num_scales` points, ascending, which CTM's times and its loss both take."""
    return o.spec.grid(o.fields.integer("num_scales", at_least=3, at_most=10**4))


def _value(name: str, value: Any) -> Part:
    return {"choices": {name: value}}


def _by_step(keyword: str, schedule: Schedule, *, recorded_as: str) -> Part:
    return {"by_step": {keyword: schedule}, "schedules": {recorded_as: schedule}}


def _optional_teacher(o: Objective) -> Part:
    """A teacher where the field names one; else the method learns from data alone."""
    folder = o.fields.path("teacher") if o.fields.has("teacher") else ""
    return {"teacher": folder} if folder else {}


def _optional_scales(o: Objective) -> Part:
    """The scales of guidance that the network takes, where the field `guidance` has two; none where it is ()."""
    return _scales(o, above=0) if o.fields.value("guidance") else {}


def _first_stage(o: Objective) -> Part:
    folder = _folder(o, "first_stage", "a consistency model, the first stage's")
    # The loss evaluates both stages with the same dropout masks.
    return {"teacher": folder, "teacher_as": "first_stage", "teacher_kind": "consistency", "teacher_drops_out": True}


def _folder(o: Objective, name: str, what: str) -> str:
    folder = o.fields.path(name)
    if not folder:
        raise o.fields.error(name, f"must name the workdir of {what}")
    return folder


def _target_params(o: Objective) -> Part:
    rates = choices.RATES if o.curriculum is None else choices.RATES_BY_GRID
    rate = o.fields.call("target", rates, curriculum=o.curriculum)
    return {"target_rate": rate, "schedules": {} if rate is None else {"target_rate": rate}}


def _weight(o: Objective, *, of_t_alone: bool = False) -> Part:
    """of_t_alone: the method knows no r."""
    weight = o.fields.choice("weight", choices.WEIGHTINGS, scalings=o.spec.scalings, **o.spec.constants)
    if o.spec.path_name != "ve" and weight.name in choices.WEIGHTINGS_OF_VE:
        raise o.fields.error("weight", f"is of the path ve, not {o.spec.path_name}; inverse_c_out is of any")
    if of_t_alone and weight.name == "inverse_gap":
        raise o.fields.error("weight", "is 1/(t − r), and both points meet: choose one of t alone")
    return _value("weight", weight.make)


def _tried(o: Objective, name: str, of: Mapping[str, Callable], arguments: Callable[[], tuple]) -> Part:
    """A function, traced once with such arguments, so that what is wrong with its parameters is an error here."""
    function = o.fields.choice(name, of).make
    with o.fields.naming(name):
        jax.eval_shape(lambda: function(*arguments()))
    return _value(name, function)


def _distance(o: Objective, name: str = "distance") -> Part:
    chosen = o.fields.choice(name, choices.DISTANCES)
    if chosen.name != "lpips":
        with o.fields.naming(name):
            jax.eval_shape(lambda: chosen.make(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))))
    return _by_distance(name, chosen, lambda distance: distance)


def _speed(o: Objective) -> Part:
    """The speed that a distance becomes where both points meet; l2 unless the field `distance` is there."""
    _needs_jvp(o)
    if not o.fields.has("distance"):
        return {}
    chosen = o.fields.choice("distance", choices.DISTANCES_OF_SPEED)
    return _by_distance("speed", chosen, curvature_speed if chosen.name == "lpips" else speed_by)


def _by_distance(keyword: str, chosen: Choice, make: Callable[[Distance], Any]) -> Part:
    """Makes an argument of a distance: of LPIPS once its weights are loaded, of the others here."""
    if chosen.name != "lpips":
        return _value(keyword, make(chosen.make))
    # Weights are an argument of the compiled step: as constants they would be a part of the program.
    distance, weights = chosen.make()
    made = {keyword: lambda frozen: make(partial(distance, frozen["lpips"]))}
    return {"by_frozen": made, "frozen": {"lpips": weights}}


def _derivative(o: Objective) -> Part:
    """The derivative by time, by default in forward mode."""
    chosen = o.fields.choice("derivative", choices.DERIVATIVES) if o.fields.has("derivative") else None
    if chosen is None or chosen.name == "jvp":
        step = 0.03 if o.spec.kind == "flow_map" else 0.3  # the best in half precision, which is all that cuDNN's has
        _needs_jvp(o, otherwise=f", or config.objective.derivative=central_difference(step={step})")
        return _value("derivative", jax.jvp)
    if o.spec.preconditioning == "trig_edm":
        raise o.fields.error("derivative", "must be jvp with preconditioning trig_edm: ln tan t ends where t does")
    return _value("derivative", chosen.make())


def _weighted(o: Objective) -> Part:
    weighted = o.fields.boolean("learned_weight")
    if weighted:
        _needs_input(o, "weight_head", "learned_weight=True needs a network with a weight head")
    return _value("weighted", weighted)


def _weight_head(o: Objective) -> Part:
    _needs_input(o, "weight_head", "the log variance of the error is learned")
    return {}


def _guidance(o: Objective) -> Part:
    return _scale_of_labels(o, "guidance", off=1, above=0)


def _scale_of_labels(o: Objective, name: str, *, off: int, **bounds: float) -> Part:
    """One number, which needs labels unless it is `off`, as where the field is absent from an older run's record."""
    value = o.fields.number(name, absent=float(off), **bounds)
    if value != off and not o.spec.net["class_conditional"]:
        raise o.fields.error(name, f"needs labels: set config.net.class_conditional=True, or {name} to {off}")
    return _value(name, value)


def _scale_or_scales(o: Objective) -> Part:
    """One scale, or two between which each sample's is chosen, as an input of the network."""
    return _guidance(o) if isinstance(o.fields.value("guidance"), int | float) else _scales(o, above=0)


def _scales(o: Objective, *, above: float | None = None) -> Part:
    """(key, batch_size) -> scales (b,), uniform between the two numbers of the field `guidance`, or of its density."""
    _needs_input(o, "guided", "the student is given the scale of guidance")
    _needs_input(o, "class_conditional", "guidance is by classes")
    if isinstance(o.fields.value("guidance"), str | Mapping):
        chosen = o.fields.choice("guidance", {"power": sample_guidance})
        if not chosen.parameters["low"] <= chosen.parameters["high"]:
            raise o.fields.error("guidance", "low must be at most high")
        return {"guidance": chosen.make}
    scales = o.fields.numbers("guidance")
    if len(scales) != 2 or not 0 <= scales[0] <= scales[1]:
        problem = "must be the smallest and the largest scale, like (1.0, 3.0); 1 is no guidance"
        raise o.fields.error("guidance", problem)
    if above is not None and scales[0] <= above:
        raise o.fields.error("guidance", f"must be above {above}")
    return {"guidance": partial(sample_guidance, low=scales[0], high=scales[1])}


def _guided_teacher(o: Objective) -> Part:
    """With `guidance`, two numbers, the teacher is guided by a scale between them, an input of the student."""
    if not o.fields.value("guidance"):
        return {}
    return {"loss": partial(_with_guided_teacher, getattr(losses, method_name(o.fields))), **_scales(o)}


def _with_guided_teacher(
    loss: Callable[..., PerSample], *inputs: Any, teacher: Callable[..., Any], **choices: Any
) -> PerSample:
    return loss(*inputs, teacher=guided(teacher), **choices)


def _interval(o: Objective) -> Part:
    """The first and the last time of guidance: all times where the field is absent."""
    if not o.fields.has("guidance_interval"):
        return {}
    interval = o.fields.numbers("guidance_interval")
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= max(1.0, o.spec.constants["t_max"]):
        raise o.fields.error("guidance_interval", "must be the first and the last time of guidance, like (0.0, 1.0)")
    return _value("interval", interval)


def _interval_or_intervals(o: Objective) -> Part:
    """One interval, or "drawn" for each sample, as an input of the network."""
    if not o.fields.has("guidance_interval") or o.fields.value("guidance_interval") != "drawn":
        return _interval(o)
    _needs_input(o, "guided_interval", "the network is given the interval of guidance")
    return {"interval": sample_interval}


def _drops_first(o: Objective) -> Part:
    """Labels are left out of the first samples, which have s = t, or of any."""
    chosen = _of_labels(o, "drops_first")
    if chosen and not o.fields.choice("pairs", choices.PAIRS).parameters.get("exact"):
        raise o.fields.error("drops_first", "needs config.objective.pairs with exact=True, so that these have s = t")
    return {"labels": {"drop_first": chosen}}


def _of_labels(o: Objective, name: str) -> bool:
    if chosen := o.fields.boolean(name, absent=False):
        _needs_input(o, "class_conditional", f"{name}=True needs labels")
    return chosen


def _needs_input(o: Objective, name: str, why: str) -> None:
    """Raise ConfigError unless the network has what its field `name` adds."""
    if not o.spec.net.get(name):
        raise o.fields.error("name", f"{why}: set config.net.{name}")


def _needs_jvp(o: Objective, *, otherwise: str = "") -> None:
    """Raise ConfigError where the network has no forward-mode derivative, by which tangents are taken."""
    if o.spec.net.get("attention") == "cudnn":
        problem = "cuDNN's attention has no forward-mode derivative: set config.net.attention=xla"
        raise o.fields.error("name", problem + otherwise)


READERS: dict[str, Callable[[Objective], Part]] = {
    "alpha": lambda o: _by_step("alpha", read_alpha(o), recorded_as="alpha"),
    "alpha_weight": lambda o: _tried(o, "weight", choices.ALPHA_WEIGHTS, lambda: (jnp.ones(2), jnp.ones(2))),
    "blend": lambda o: _scale_of_labels(o, "blend", off=0, at_least=0),
    "derivative": _derivative,
    "distance": _distance,
    "drops_first": _drops_first,
    "first_stage": _first_stage,
    "fraction": lambda o: {"choices": {"fraction": read_fraction(o)}, "fraction": read_fraction(o)},
    "gain": lambda o: _value("gain", choices.GAINS[o.spec.path_name]),
    "grid": lambda o: _value("grid", read_grid(o)),
    "guidance": _guidance,
    "guided_teacher": _guided_teacher,
    "interval": _interval,
    "interval_or_intervals": _interval_or_intervals,
    # the loss also takes the labels that the network goes without
    "keeps_label": lambda o: {"labels": {"keep_labels": _of_labels(o, "keeps_label")}},
    "normalize": lambda o: _tried(o, "normalize", choices.NORMALIZATIONS, lambda: (jnp.ones((2, 3)),)),
    "ode_step": lambda o: _value("ode_step", o.fields.choice("ode_step", choices.ODE_STEPS, path=o.spec.path).make),
    "map_weight": lambda o: _value("weight", o.fields.choice("weight", choices.MAP_WEIGHTINGS).make),
    "optional_map_weight": lambda o: READERS["map_weight"](o) if o.fields.has("weight") else {},
    "optional_scales": _optional_scales,
    "optional_teacher": _optional_teacher,
    "perceptual": lambda o: _distance(o, "perceptual") if o.fields.value("perceptual", absent="") else {},
    "rho": lambda o: _value("rho", o.spec.constants["rho"]),
    "scale_or_scales": _scale_or_scales,
    "scales": _scales,
    "speed": _speed,
    "target_params": _target_params,
    "teacher": lambda o: {"teacher": _folder(o, "teacher", "a trained diffusion teacher")},
    "velocity_head": lambda o: _value("velocity_head", bool(o.spec.net.get("velocity_head"))),
    "warmup": lambda o: _by_step("warmup", o.fields.call("warmup", WARMUPS), recorded_as="tangent_warmup"),
    "weight": _weight,
    "weight_head": _weight_head,
    "weight_of_t": partial(_weight, of_t_alone=True),
    "weighted": _weighted,
}
"""By the keyword of a loss, or by the name that a row of `METHODS` has for it."""
