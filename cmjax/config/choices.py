"""What the fields of an objective may name, and how each is read; a method is a row of these choices."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from cmjax.config.fields import Fields
from cmjax.config.model import ModelSpec
from cmjax.core import couplings, curricula, distances, ema_rates, ode, pairs, times, weightings
from cmjax.core.distances import Speed
from cmjax.core.guidance import sample_guidance
from cmjax.core.losses import tangents
from cmjax.core.typing import Distance, Params, PerSample, Samples, Schedule, TimeSampler, Weight
from cmjax.interop.lpips import load_lpips
from cmjax.nets.features.lpips import lpips
from cmjax.nets.features.lpips import parameter_shapes as lpips_shapes
from cmjax.ranges import Within
from cmjax.training.method import FrozenWeights

TIME_SAMPLERS = {
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
NO_AVERAGE = "stop_gradient"
"""The target of a method that needs no average: the student itself, without gradient."""
RATES = {NO_AVERAGE: lambda: None, "ema": ema_rates.constant_rate}
RATES_BY_GRID = RATES | {"scheduled_ema": ema_rates.scheduled_rate}
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
    "ddim": ode.ddim_step,
    "euler": ode.euler_step,
    "heun": ode.heun_step,
    "midpoint": ode.midpoint_step,
}
NORMALIZATIONS = {
    "unit_norm": tangents.unit_norm,
    "unit_rms": tangents.unit_rms,
    "clipped": tangents.clipped,
    "none": tangents.unchanged,
}


def _lpips(
    *,
    vgg: str,
    heads: str,
    resize: Annotated[int, Within(16, 4096)] = 224,
    pooling: Literal["max", "average"] = "max",
) -> tuple[Callable, FrozenWeights]:
    """LPIPS, and its weights: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`.

    `pooling`: "max" as VGG16 was trained and LPIPS published; "average" in the released runs on ImageNet and LSUN.
    """
    pool = {"max": "max", "average": "avg"}[pooling]
    return partial(lpips, resize=resize, pool=pool), FrozenWeights(partial(load_lpips, vgg, heads), lpips_shapes)


COUPLINGS = {"independent": lambda: None, "minibatch_ot": couplings.minibatch_ot}
OF_VE = ("snr", "snr_plus_one", "truncated_snr", "karras")
"""Weights that take the time for the noise level."""
DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "linf": distances.linf,
    "huber": distances.huber,
    "pseudo_huber": distances.pseudo_huber,
    "adaptive": distances.adaptive,
    "lpips": _lpips,
}

DISTANCES_OF_SPEED = {
    **{name: DISTANCES[name] for name in ("l1", "l2", "linf", "lpips")},
    "norm": lambda x, y: distances.pseudo_huber(x, y, c=0.0),
}


def read_time_sampler(fields: Fields, name: str, spec: ModelSpec, **given: float) -> TimeSampler:
    """The field's distribution of times; `given` are parameters that the method knows already."""
    chosen = fields.choice(name, TIME_SAMPLERS, path=spec.path, **_without(spec.constants, "rho"), **given)
    times = fields.called(name, chosen)
    try_out(fields, name, lambda: times(jax.random.key(0), 2))
    if chosen.name == "logit_normal" and spec.path_name in ("ve", "trig"):
        raise fields.error(name, f"gives times from 0 to 1, which are not of the path {spec.path_name}")
    return times


def read_weight(fields: Fields, spec: ModelSpec, *, of_t_alone: bool = False) -> Weight:
    """The field `weight`. of_t_alone: the method knows no r."""
    weight = fields.choice("weight", WEIGHTINGS, scalings=spec.scalings, **spec.constants)
    if spec.path_name != "ve" and weight.name in OF_VE:
        raise fields.error("weight", f"is of the path ve, not {spec.path_name}; inverse_c_out is of any")
    if of_t_alone and weight.name == "inverse_gap":
        raise fields.error("weight", "is 1/(t − r), and both points meet: choose one of t alone")
    return weight.make


def read_distance(fields: Fields) -> tuple[Callable[[Mapping[str, Params]], Distance], dict[str, FrozenWeights]]:
    """A function of what is frozen that gives the distance, and what it needs frozen."""
    chosen = fields.choice("distance", DISTANCES)
    if chosen.name != "lpips":
        distance = chosen.make
        try_out(fields, "distance", lambda: distance(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))))
        return lambda frozen: distance, {}
    distance, weights = chosen.make()
    return lambda frozen: partial(distance, frozen["lpips"]), {"lpips": weights}


def read_speed(fields: Fields) -> tuple[Callable[[Mapping[str, Params]], Speed], dict[str, FrozenWeights]]:
    """As `read_distance`: the speed that a distance becomes where both points meet; l2 unless the field is there."""
    if not fields.has("distance"):
        return lambda frozen: distances.speed_by(distances.l2), {}
    chosen = fields.choice("distance", DISTANCES_OF_SPEED)
    if chosen.name != "lpips":
        return lambda frozen: distances.speed_by(chosen.make), {}
    distance, weights = chosen.make()
    return lambda frozen: distances.curvature_speed(partial(distance, frozen["lpips"])), {"lpips": weights}


def read_rate(fields: Fields) -> Schedule | None:
    """The rate of the target's average, of a method without a grid."""
    return fields.call("target", RATES)


def read_coupling(fields: Fields, spec: ModelSpec) -> Callable[..., Samples] | None:
    """(x0, noise, times, labels) -> the noise of each sample; None where it is independent, as without the field."""
    if not fields.has("coupling"):
        return None
    chosen = fields.choice("coupling", COUPLINGS, path=spec.path)
    if chosen.name == "independent":
        return None
    try_out(fields, "coupling", lambda: chosen.make(jnp.zeros((2, 8)), jnp.zeros((2, 8)), jnp.ones(2), None))
    return chosen.make


def read_guidance(fields: Fields, spec: ModelSpec, *, above: float | None = None) -> Callable[..., PerSample]:
    """(key, batch_size) -> scales (b,), uniform between the two numbers of the field `guidance`, or of its density."""
    needs_input(fields, spec, "guided", "the student is given the scale of guidance")
    needs_input(fields, spec, "class_conditional", "guidance is by classes")
    if isinstance(fields.value("guidance"), str | Mapping):
        chosen = fields.choice("guidance", {"power": sample_guidance})
        if not chosen.parameters["low"] <= chosen.parameters["high"]:
            raise fields.error("guidance", "low must be at most high")
        return chosen.make
    scales = fields.numbers("guidance")
    if len(scales) != 2 or not 0 <= scales[0] <= scales[1]:
        raise fields.error("guidance", "must be the smallest and the largest scale, like (1.0, 3.0); 1 is no guidance")
    if above is not None and scales[0] <= above:
        raise fields.error("guidance", f"must be above {above}")
    return partial(sample_guidance, low=scales[0], high=scales[1])


def read_teacher(fields: Fields, name: str = "teacher", what: str = "a trained diffusion teacher") -> str:
    teacher = fields.path(name)
    if not teacher:
        raise fields.error(name, f"must name the workdir of {what}")
    return teacher


def needs_path(fields: Fields, spec: ModelSpec, names: str) -> None:
    """Raise ConfigError unless the model's path is among `names`, separated by spaces."""
    if spec.path_name not in names.split():
        raise fields.error("name", f"needs config.model.path={' or '.join(names.split())}, not {spec.path_name}")


def needs_input(fields: Fields, spec: ModelSpec, name: str, why: str) -> None:
    """Raise ConfigError unless the network has what its field `name` adds."""
    if not spec.net.get(name):
        raise fields.error("name", f"{why}: set config.net.{name}")


def needs_jvp(fields: Fields, spec: ModelSpec, *, otherwise: str = "") -> None:
    """Raise ConfigError where the network has no forward-mode derivative, by which tangents are taken."""
    if spec.net.get("attention") == "cudnn":
        problem = "cuDNN's attention has no forward-mode derivative: set config.net.attention=xla"
        raise fields.error("name", problem + otherwise)


def try_out(fields: Fields, name: str, trial: Callable[[], Any]) -> None:
    """Raise ConfigError where the field's choice fails in `trial`, of which nothing is computed."""
    try:
        jax.eval_shape(trial)
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error(name, str(error)) from error


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
