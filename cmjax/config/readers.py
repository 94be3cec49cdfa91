"""Reads the keyword arguments of losses: a reader for each keyword, so that a new method needs no code here.

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
from cmjax.config.model import ModelSpec
from cmjax.core.curricula import Curriculum
from cmjax.core.distances import curvature_speed, speed_by
from cmjax.core.losses import alpha_flow, tangents
from cmjax.core.typing import Distance, Schedule

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
    """Reads the fraction of the batch that learns in another way than the rest."""
    fraction = o.fields.number("fraction", above=0)
    if fraction >= 1:
        raise o.fields.error("fraction", "must be below 1: a fraction of the batch, between 0 and 1, learns otherwise")
    return fraction


def read_alpha(o: Objective) -> Schedule:
    """Reads α-Flow's schedule, which its times and its loss both take."""
    alpha = o.fields.call("alpha", {"sigmoid": alpha_flow.alpha_schedule}, total_steps=o.steps)
    with o.fields.naming("alpha"):
        jax.eval_shape(lambda: alpha(jnp.zeros((), int)))
    return alpha


def read_grid(o: Objective) -> np.ndarray:
    """Reads the grid of `num_scales` points, ascending, which CTM's times and its loss both take."""
    return o.spec.grid(o.fields.integer("num_scales", at_least=3, at_most=10**4))


def as_choice(name: str, value: Any) -> Part:
    """Makes the value an argument of the loss that stays the same."""
    return {"choices": {name: value}}


def _by_step(keyword: str, schedule: Schedule, *, recorded_as: str) -> Part:
    return {"by_step": {keyword: schedule}, "schedules": {recorded_as: schedule}}


def _optional_teacher(o: Objective) -> Part:
    """Reads the teacher where the field names one; else the method learns from data alone."""
    folder = o.fields.path("teacher") if o.fields.has("teacher") else ""
    return {"teacher": folder} if folder else {}


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
    """Reads the weight of the loss. of_t_alone: the method has no r."""
    weight = o.fields.choice("weight", choices.WEIGHTINGS, scalings=o.spec.scalings, **o.spec.constants)
    if o.spec.path_name != "ve" and weight.name in choices.WEIGHTINGS_OF_VE:
        raise o.fields.error("weight", f"is of the path ve, not {o.spec.path_name}; inverse_c_out is of any")
    if of_t_alone and weight.name == "inverse_gap":
        raise o.fields.error("weight", "is 1/(t − r), and both points meet: choose one of t alone")
    return as_choice("weight", weight.make)


def _tried(o: Objective, name: str, of: Mapping[str, Callable], arguments: Callable[[], tuple]) -> Part:
    """Reads a function, and traces it once with such arguments, so that a wrong parameter of it is an error here."""
    function = o.fields.choice(name, of).make
    with o.fields.naming(name):
        jax.eval_shape(lambda: function(*arguments()))
    return as_choice(name, function)


def _distance(o: Objective, name: str = "distance") -> Part:
    chosen = o.fields.choice(name, choices.DISTANCES)
    if chosen.name != "lpips":
        with o.fields.naming(name):
            jax.eval_shape(lambda: chosen.make(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))))
    return _by_distance(name, chosen, lambda distance: distance)


def _speed(o: Objective) -> Part:
    """Reads the distance as a speed, its limit where both points meet; l2 without the field `distance`."""
    _needs_jvp(o)
    if not o.fields.has("distance"):
        return {}
    chosen = o.fields.choice("distance", choices.DISTANCES_OF_SPEED)
    return _by_distance("speed", chosen, curvature_speed if chosen.name == "lpips" else speed_by)


def _by_distance(keyword: str, chosen: Choice, make: Callable[[Distance], Any]) -> Part:
    """Makes an argument of a distance: of LPIPS once its weights are loaded, of the others here."""
    if chosen.name != "lpips":
        return as_choice(keyword, make(chosen.make))
    # Weights are an argument of the compiled step: as constants they would be a part of the program.
    distance, weights = chosen.make()
    made = {keyword: lambda frozen: make(partial(distance, frozen["lpips"]))}
    return {"by_frozen": made, "frozen": {"lpips": weights}}


def _derivative(o: Objective) -> Part:
    """Reads how the derivative by time is taken, by default in forward mode."""
    chosen = o.fields.choice("derivative", choices.DERIVATIVES) if o.fields.has("derivative") else None
    if chosen is None or chosen.name == "jvp":
        step = 0.03 if o.spec.kind == "flow_map" else 0.3  # the best in half precision, which is all that cuDNN's has
        _needs_jvp(o, otherwise=f", or config.objective.derivative=central_difference(step={step})")
        return as_choice("derivative", jax.jvp)
    if o.spec.preconditioning == "trig_edm":
        raise o.fields.error("derivative", "must be jvp with preconditioning trig_edm: ln tan t ends where t does")
    return as_choice("derivative", chosen.make())


def _weighted(o: Objective) -> Part:
    weighted = o.fields.boolean("learned_weight")
    if weighted:
        needs_input(o, "weight_head", "learned_weight=True needs a network with a weight head")
    return as_choice("weighted", weighted)


def _weight_head(o: Objective) -> Part:
    needs_input(o, "weight_head", "the log variance of the error is learned")
    return {}


def _drops_first(o: Objective) -> Part:
    """Reads whether labels are left out of the first samples, which have s = t, or of any."""
    chosen = _of_labels(o, "drops_first")
    if chosen and not o.fields.choice("pairs", choices.PAIRS).parameters.get("exact"):
        raise o.fields.error("drops_first", "needs config.objective.pairs with exact=True, so that these have s = t")
    return {"labels": {"drop_first": chosen}}


def _of_labels(o: Objective, name: str) -> bool:
    if chosen := o.fields.boolean(name, absent=False):
        needs_input(o, "class_conditional", f"{name}=True needs labels")
    return chosen


def needs_input(o: Objective, name: str, why: str) -> None:
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
    "derivative": _derivative,
    "distance": _distance,
    "drops_first": _drops_first,
    "first_stage": _first_stage,
    "fraction": lambda o: {"choices": {"fraction": read_fraction(o)}, "fraction": read_fraction(o)},
    "gain": lambda o: as_choice("gain", choices.GAINS[o.spec.path_name]),
    "grid": lambda o: as_choice("grid", read_grid(o)),
    # the loss also takes the labels that the network goes without
    "keeps_label": lambda o: {"labels": {"keep_labels": _of_labels(o, "keeps_label")}},
    "normalize": lambda o: _tried(o, "normalize", choices.NORMALIZATIONS, lambda: (jnp.ones((2, 3)),)),
    "ode_step": lambda o: as_choice("ode_step", o.fields.choice("ode_step", choices.ODE_STEPS, path=o.spec.path).make),
    "map_weight": lambda o: as_choice("weight", o.fields.choice("weight", choices.MAP_WEIGHTINGS).make),
    "optional_map_weight": lambda o: READERS["map_weight"](o) if o.fields.has("weight") else {},
    "optional_teacher": _optional_teacher,
    "perceptual": lambda o: _distance(o, "perceptual") if o.fields.value("perceptual", absent="") else {},
    "rho": lambda o: as_choice("rho", o.spec.constants["rho"]),
    "speed": _speed,
    "target_params": _target_params,
    "teacher": lambda o: {"teacher": _folder(o, "teacher", "a trained diffusion teacher")},
    "velocity_head": lambda o: as_choice("velocity_head", bool(o.spec.net.get("velocity_head"))),
    "warmup": lambda o: _by_step("warmup", o.fields.call("warmup", WARMUPS), recorded_as="tangent_warmup"),
    "weight": _weight,
    "weight_head": _weight_head,
    "weight_of_t": partial(_weight, of_t_alone=True),
    "weighted": _weighted,
}
"""Keyword of a loss, or the name that a row of `METHODS` has for it -> its reader."""
