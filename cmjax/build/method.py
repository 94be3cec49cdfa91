"""The training objective of a configuration: a method is a row of choices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from cmjax.build.model import Model
from cmjax.core import curricula, distances, losses, pairs, paths, solvers, weightings
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import Conditions, Distance, PairSampler, Params, Schedule, Weight
from cmjax.fields import Fields
from cmjax.interop.lpips import load_lpips
from cmjax.nets.lpips import lpips
from cmjax.training.step import Objective

TIMES = {"lognormal": pairs.lognormal_times}
INTERVALS = {"uniform": pairs.uniform_intervals, "lognormal": pairs.lognormal_intervals}
CURRICULA = {
    "constant": curricula.constant,
    "square_root_growth": curricula.square_root_growth,
    "doubling": curricula.doubling,
}
TARGETS = {
    "stop_gradient": curricula.student_as_target,
    "ema": curricula.constant_rate,
    "scheduled_ema": curricula.scheduled_rate,
}
WEIGHTINGS = {
    "uniform": weightings.uniform,
    "inverse_gap": weightings.inverse_gap,
    "snr": weightings.snr,
    "snr_plus_one": weightings.snr_plus_one,
    "truncated_snr": weightings.truncated_snr,
    "karras": weightings.karras,
}
ODE_STEPS = {"euler": solvers.euler_step, "heun": solvers.heun_step, "midpoint": solvers.midpoint_step}


def _lpips(*, vgg: str, heads: str, resize: int = 224) -> tuple[Callable, Callable]:
    """LPIPS, and the loader of its weights: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`."""
    return partial(lpips, resize=resize), partial(load_lpips, vgg, heads)


DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "pseudo_huber": distances.pseudo_huber,
    "lpips": _lpips,
}


@dataclass(frozen=True)
class Method:
    """An objective that waits for its networks. `frozen` loads what it uses and training leaves alone."""

    objective: Callable[[Model, FlowMap | None], Objective]
    target_rate: Schedule | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    teacher: str = ""
    frozen: Mapping[str, Callable[[], Params]] = field(default_factory=dict)


def _read_denoising(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    times = fields.call("times", TIMES)
    weight = fields.choice("weight", WEIGHTINGS, **constants)

    def objective(model, teacher):
        def loss(params, target_params, frozen, key, x0, step, conditions):
            pair_key, loss_key = jax.random.split(key)
            pair = times(pair_key, len(x0), step)
            return losses.denoising_loss(
                model.denoiser, params, loss_key, x0, pair, path=paths.ve, weight=weight, conditions=conditions
            )

        return loss

    return Method(objective)


@dataclass(frozen=True)
class _Consistency:
    """What CT and CD choose alike."""

    pairs: PairSampler
    distance: Callable[[Mapping[str, Params]], Distance]
    weight: Weight
    schedules: Mapping[str, Schedule]
    target_rate: Schedule | None
    frozen: Mapping[str, Callable[[], Params]]

    def options(self, frozen: Mapping[str, Params], conditions: Conditions) -> dict[str, Any]:
        """The keyword arguments that the two losses share."""
        return {
            "path": paths.ve,
            "distance": self.distance(frozen),
            "weight": self.weight,
            "conditions": conditions,
        }


def _read_consistency(fields: Fields, constants: Mapping[str, float], steps: int) -> _Consistency:
    curriculum = fields.call("curriculum", CURRICULA, total_steps=steps)
    grid = {name: constants[name] for name in ("t_min", "t_max", "rho")}
    draw = pairs.grid_pairs(curriculum, probabilities=fields.choice("intervals", INTERVALS), **grid)
    weight = fields.choice("weight", WEIGHTINGS, **constants)
    distance, frozen = _read_distance(fields)
    target_rate = fields.call("target", TARGETS, curriculum=curriculum)
    schedules = {"num_scales": curriculum} | ({} if target_rate is None else {"target_rate": target_rate})
    return _Consistency(draw, distance, weight, schedules, target_rate, frozen)


def _read_training(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    chosen = _read_consistency(fields, constants, steps)

    def objective(model, teacher):
        def loss(params, target_params, frozen, key, x0, step, conditions):
            pair_key, loss_key = jax.random.split(key)
            pair = chosen.pairs(pair_key, len(x0), step)
            options = chosen.options(frozen, conditions)
            return losses.consistency_training_loss(
                model.denoiser, params, target_params, loss_key, x0, pair, **options
            )

        return loss

    return Method(objective, chosen.target_rate, chosen.schedules, frozen=chosen.frozen)


def _read_distillation(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    chosen = _read_consistency(fields, constants, steps)
    ode_step = fields.choice("ode_step", ODE_STEPS)
    teacher_path = fields.text("teacher")
    if not teacher_path:
        raise fields.error("teacher", "must name the workdir of a trained diffusion teacher")

    def objective(model, teacher):
        def loss(params, target_params, frozen, key, x0, step, conditions):
            pair_key, loss_key = jax.random.split(key)
            pair = chosen.pairs(pair_key, len(x0), step)
            options = chosen.options(frozen, conditions)
            return losses.consistency_distillation_loss(
                model.denoiser, params, target_params, loss_key, x0, pair,
                teacher=teacher.denoiser, teacher_params=frozen["teacher"], ode_step=ode_step, **options,
            )  # fmt: skip

        return loss

    return Method(objective, chosen.target_rate, chosen.schedules, teacher_path, chosen.frozen)


METHODS = {"denoising": _read_denoising, "ct": _read_training, "cd": _read_distillation}


def read_method(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    """The method that the section `objective` names."""
    return METHODS[fields.one_of("name", METHODS)](fields, constants, steps)


def _read_distance(fields: Fields) -> tuple[Callable[[Mapping[str, Params]], Callable], dict[str, Callable]]:
    chosen = fields.choice("distance", DISTANCES)
    if chosen.func is not _lpips:
        return lambda frozen: chosen, {}
    distance, load_weights = chosen()
    return lambda frozen: partial(distance, frozen["lpips"]), {"lpips": load_weights}
