"""What the fields of an objective may name, and how each is read; a method is a row of these choices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from cmjax.build.model import Model, ModelPlan
from cmjax.core import curricula, distances, pairs, solvers, tangents, times, weightings
from cmjax.core.paths import carry
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import (
    Conditions,
    Denoiser,
    Distance,
    Pair,
    PairSampler,
    Params,
    PerSample,
    PRNGKey,
    Samples,
    Schedule,
    Step,
    TimeSampler,
    Weight,
)
from cmjax.fields import Fields
from cmjax.interop.lpips import load_lpips
from cmjax.nets.lpips import lpips
from cmjax.nets.lpips import parameter_shapes as lpips_shapes
from cmjax.training.step import Objective

TIMES = {
    "lognormal": times.lognormal,
    "logit_normal": times.logit_normal,
    "student": times.student,
    "uniform": times.uniform,
}
INTERVALS = {"uniform": pairs.uniform_intervals, "lognormal": pairs.lognormal_intervals}
CURRICULA = {
    "constant": curricula.constant,
    "square_root_growth": curricula.square_root_growth,
    "doubling": curricula.doubling,
}
RATES = {"stop_gradient": curricula.student_as_target, "ema": curricula.constant_rate}
RATES_BY_GRID = RATES | {"scheduled_ema": curricula.scheduled_rate}
WEIGHTINGS = {
    "uniform": weightings.uniform,
    "inverse_gap": weightings.inverse_gap,
    "inverse_c_out": weightings.inverse_c_out,
    "snr": weightings.snr,
    "snr_plus_one": weightings.snr_plus_one,
    "truncated_snr": weightings.truncated_snr,
    "karras": weightings.karras,
}
ODE_STEPS = {
    "ddim": solvers.ddim_step,
    "euler": solvers.euler_step,
    "heun": solvers.heun_step,
    "midpoint": solvers.midpoint_step,
}
NORMALIZATIONS = {
    "unit_norm": tangents.unit_norm,
    "unit_rms": tangents.unit_rms,
    "clipped": tangents.clipped,
    "none": tangents.unchanged,
}


@dataclass(frozen=True)
class Frozen:
    """Weights that a loss uses and training leaves alone: what reads them, and their shapes, which need no files."""

    load: Callable[[], Params]
    shapes: Callable[[], Any]


def _lpips(*, vgg: str, heads: str, resize: int = 224) -> tuple[Callable, Frozen]:
    """LPIPS, and its weights: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`."""
    return partial(lpips, resize=resize), Frozen(partial(load_lpips, vgg, heads), lpips_shapes)


OF_VE = (weightings.snr, weightings.snr_plus_one, weightings.truncated_snr, weightings.karras)
"""Weights that take the time for the noise level."""
DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "pseudo_huber": distances.pseudo_huber,
    "adaptive": distances.adaptive,
    "lpips": _lpips,
}


@dataclass(frozen=True)
class Call:
    """One evaluation of an objective: the networks, what is trained and what is not, and the batch.

    `teacher`: the denoiser of another run, on this model's path; its parameters are frozen["teacher"].
    """

    model: Model
    teacher: Denoiser
    params: Params
    target_params: Params
    frozen: Mapping[str, Params]
    key: PRNGKey
    x0: Samples
    pair: Pair
    step: Step
    conditions: Conditions


@dataclass(frozen=True)
class Method:
    """How a run learns: `loss` gives one number for each sample of a `Call`, whose pair is one of `pairs`.

    target_rate: of the target's average; None for the student itself. schedules: functions of the step, to report.
    teacher: another run's folder, of a model of the kind `teacher_kind`; "" for none. frozen: weights that the loss
    uses beside. tells_guidance: the network is given a scale of guidance.
    """

    loss: Callable[[Call], PerSample]
    pairs: PairSampler
    target_rate: Schedule | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    teacher: str = ""
    teacher_kind: str = "denoiser"
    frozen: Mapping[str, Frozen] = field(default_factory=dict)
    tells_guidance: bool = False

    def objective(self, model: Model, teacher: FlowMap | None) -> Objective:
        """What `training.step` differentiates. A teacher of another path is carried to the model's."""
        teaches = cast(Denoiser, None if teacher is None else teacher.denoiser)
        if teacher is not None and teacher.path != model.path:
            teaches = carry(teaches, teacher.path, model.path)

        def objective(params, target_params, frozen, key, x0, step, conditions):
            pair, loss_key = self.pair(key, len(x0), step), jax.random.split(key)[1]
            return self.loss(
                Call(model, teaches, params, target_params, frozen, loss_key, x0, pair, step, conditions)
            )  # fmt: skip

        return objective

    def pair(self, key: PRNGKey, batch_size: int, step: Step) -> Pair:
        """The pair that `objective` evaluates, given its key."""
        return self.pairs(jax.random.split(key)[0], batch_size, step)


def read_times(fields: Fields, name: str, plan: ModelPlan, **given: float) -> TimeSampler:
    """The field's distribution of times; `given` are parameters that the method knows already."""
    times = fields.call(name, TIMES, path=plan.path, **_without(plan.constants, "rho"), **given)
    try_out(fields, name, lambda: times(jax.random.key(0), 2))
    if fields.text(name).startswith("logit_normal") and plan.path_name in ("ve", "trig"):
        raise fields.error(name, f"gives times from 0 to 1, which are not of the path {plan.path_name}")
    return times


def read_weight(fields: Fields, plan: ModelPlan) -> Weight:
    weight = fields.choice("weight", WEIGHTINGS, scalings=plan.scalings, **plan.constants)
    if plan.path_name != "ve" and weight.func in OF_VE:
        raise fields.error("weight", f"is of the path ve, not {plan.path_name}; inverse_c_out is of any")
    return weight


def read_distance(fields: Fields) -> tuple[Callable[[Mapping[str, Params]], Distance], dict[str, Frozen]]:
    """A function of what is frozen that gives the distance, and what it needs frozen."""
    chosen = fields.choice("distance", DISTANCES)
    if chosen.func is not _lpips:
        try_out(fields, "distance", lambda: chosen(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))))
        return lambda frozen: chosen, {}
    distance, weights = chosen()
    return lambda frozen: partial(distance, frozen["lpips"]), {"lpips": weights}


def read_rate(fields: Fields, name: str = "target") -> Schedule | None:
    """The rate of the target's average, of a method without a grid."""
    return fields.call(name, RATES, curriculum=curricula.constant(num_scales=2))


def read_teacher(fields: Fields, name: str = "teacher", what: str = "a trained diffusion teacher") -> str:
    teacher = fields.text(name)
    if not teacher:
        raise fields.error(name, f"must name the workdir of {what}")
    return teacher


def needs_path(fields: Fields, plan: ModelPlan, names: str) -> None:
    """Raise ConfigError unless the model's path is among `names`, separated by spaces."""
    if plan.path_name not in names.split():
        raise fields.error("name", f"needs config.model.path={' or '.join(names.split())}, not {plan.path_name}")


def needs_input(fields: Fields, plan: ModelPlan, name: str, why: str) -> None:
    """Raise ConfigError unless the network has what its field `name` adds."""
    if not plan.net.get(name):
        raise fields.error("name", f"{why}: set config.net.{name}")


def needs_jvp(fields: Fields, plan: ModelPlan) -> None:
    """Raise ConfigError where the network has no forward-mode derivative, by which tangents are taken."""
    if plan.net.get("attention") == "cudnn":
        raise fields.error("name", "cuDNN's attention has no forward-mode derivative: set config.net.attention=xla")


def try_out(fields: Fields, name: str, trial: Callable[[], Any]) -> None:
    """Raise ConfigError where the field's choice fails in `trial`, of which nothing is computed."""
    try:
        jax.eval_shape(trial)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error(name, str(error)) from error


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
