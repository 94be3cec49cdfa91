"""The samplers that options ask for: what they leave open is as the run draws its own samples."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.samples import read_solver
from cmjax.core.sampling import FlowMap
from cmjax.drawing.draw import (
    Sampler,
    class_labels,
    consistency_sampler,
    diffusion_sampler,
    with_guidance,
)
from cmjax.drawing.given import given_label, given_times
from cmjax.runs.trained import Trained

log = logging.getLogger(__name__)


def conditioned(
    flow_map: FlowMap, trained: Trained, num: int, label: int | None, guidance: float | None
) -> tuple[FlowMap, dict[str, np.ndarray], float]:
    """The model and the conditions of `num` samples, and their scale of guidance: the run's own unless given."""
    labels, takes = class_labels(num, trained.num_classes, given_label(label, trained)), trained.model.guided
    if guidance is not None and not trained.num_classes:
        raise ConfigError(f"--guidance={guidance}: it is by classes, which the model has not")
    if guidance is not None and not guidance >= 0:
        raise ConfigError(f"--guidance={guidance}: must be at least 0")
    scale = trained.samples.guidance if guidance is None else guidance
    if scale != 1 and not takes and not trained.recorded.learned_without_labels:
        log.warning("guidance: the model never learned to do without labels (config.data.label_dropout=0)")
    return *with_guidance(flow_map, labels, scale, takes=takes), scale


@dataclass(frozen=True)
class Chosen:
    """A sampler, its name, the descending noise levels it goes along, and its network evaluations; None for as many as
    its tolerances need."""

    sampler: Sampler
    name: str
    times: tuple[float, ...]
    evaluations: int | None


TWICE = ("heun", "midpoint", "churn")
"""Solvers that evaluate the network twice in each step but the last."""


def chosen_sampler(trained: Trained, times: list[str] | None, solver: str | None, steps: int | None) -> Chosen:
    """What the command line asks for; what it leaves open as the run drew its own samples."""
    model, own = trained.model, trained.samples
    if model.kind != "denoiser":
        levels = given_times(times, trained) if times else (model.constants["t_max"],)
        return Chosen(consistency_sampler(levels, own), f"{len(levels)}-step", levels, len(levels))
    if times is not None and steps is not None:
        raise ConfigError("--times and --steps both tell where a solver steps: give one of them")
    if steps is not None and steps < 2:
        raise ConfigError(f"--steps={steps}: must be at least 2")
    chosen, name = own.solver, own.solver_name
    if solver or chosen is None:
        named = Fields({"solver": solver or own.solver_name}, prefix="--")
        name, chosen = read_solver(named, model.path, model.constants["t_max"])
    if times:
        levels = given_times(times, trained)
    else:
        levels = (replace(own, times=None, solver_steps=steps) if steps else own).levels(model)
    return Chosen(diffusion_sampler(chosen, levels), f"{name}-{len(levels)}", levels, evaluations(name, len(levels)))


def evaluations(solver: str, levels: int) -> int | None:
    """How often a solver evaluates the network along so many noise levels."""
    if solver == "tsit5":
        return None
    return 2 * levels - 1 if solver in TWICE else levels
