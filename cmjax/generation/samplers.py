"""The samplers that options ask for: what they leave open is as the run draws its own samples."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmjax.config.effects import beyond_scales
from cmjax.config.fields import ConfigError, Fields
from cmjax.config.model import NetworkModel
from cmjax.config.samples import OF_MULTISTEP, SamplingOptions, read_interval, read_sampler, read_solver
from cmjax.core.model import BoundModel
from cmjax.generation.arguments import given_label, given_times
from cmjax.generation.sampling import (
    Sampler,
    class_labels,
    consistency_sampler,
    diffusion_sampler,
    guided_by,
    with_autoguidance,
)
from cmjax.runs.trained import Trained

log = logging.getLogger(__name__)


def conditioned(
    flow_map: BoundModel,
    trained: Trained,
    samples: SamplingOptions,
    num: int,
    *,
    label: str | int | None = None,
    random_seed: int | None = None,
    weaker: BoundModel | None = None,
) -> tuple[BoundModel, dict[str, np.ndarray]]:
    """The model, guided as `samples` says, and the conditions of `num` samples.

    label, random_seed: as in `class_labels`. weaker: the model that guides them, of `samples.autoguidance`.
    """
    labels = class_labels(num, trained.num_classes, given_label(label, trained), random_seed=random_seed)
    if weaker is not None:
        scales = np.full(num, samples.guidance, np.float32)
        return with_autoguidance(flow_map, weaker, labels, scales, samples.guidance_interval)
    if samples.guidance != 1 and not trained.model.guided and not trained.recorded.learned_without_labels:
        log.warning("guidance: the model never learned to do without labels (config.data.label_dropout=0)")
    if why := beyond_scales(samples.guidance, trained.recorded.scales):
        log.warning("guidance=%g: %s", samples.guidance, why)
    return guided_by(flow_map, labels, samples, trained.model)


def networks_evaluated(samples: SamplingOptions, model: NetworkModel) -> int:
    """How many times a guided estimate evaluates networks: with a label and without, unless the network takes the
    scale; or the model and a weaker one."""
    by_labels = samples.guidance != 1 and model.class_conditional and not model.guided
    return 2 if by_labels or samples.autoguidance else 1


@dataclass(frozen=True)
class Chosen:
    """A sampler of `samples`, its name, the descending noise levels it goes along, and its network evaluations, with
    guidance; None for as many as its tolerances need."""

    samples: SamplingOptions
    sampler: Sampler
    name: str
    times: tuple[float, ...]
    evaluations: int | None

    @property
    def setting(self) -> dict[str, Any]:
        """The fields of a record that say how samples were drawn."""
        fields = {"sampler": self.name, "times": list(self.times), "evaluations": self.evaluations}
        return {**fields, "guidance": self.samples.guidance, **self.samples.choices}


TWICE = ("heun", "midpoint", "churn")
"""Solvers that evaluate the network twice in each step but the last."""


def sampler_of(samples: SamplingOptions, model: NetworkModel) -> Chosen:
    """What draws samples of the model along all of the times of `samples`."""
    levels, twice = samples.levels(model), networks_evaluated(samples, model)
    name = samples.name(model.kind, len(levels))
    if model.kind != "denoiser":
        return Chosen(samples, consistency_sampler(levels, samples), name, levels, twice * len(levels))
    count = evaluations(samples.solver_name, len(levels))
    return Chosen(samples, diffusion_sampler(samples, levels), name, levels, count and twice * count)


def samplers_of_run(samples: SamplingOptions, model: NetworkModel) -> list[Chosen]:
    """What a run draws its own samples with: a consistency model's in one evaluation and along all of the times."""
    times = samples.levels(model)
    along = [times] if model.kind == "denoiser" else dict.fromkeys((times[:1], times))
    return [sampler_of(replace(samples, times=levels), model) for levels in along]


def evaluations(solver: str, levels: int) -> int | None:
    """How often a solver, as it is written, evaluates the network along so many noise levels."""
    name = solver.partition("(")[0]
    if name == "tsit5":
        return None
    return 2 * levels - 1 if name in TWICE else levels


def chosen_samples(
    trained: Trained,
    *,
    times: list[str] | None = None,
    solver: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
    guidance_interval: list[str] | None = None,
    autoguidance: str = "",
    clip: bool | None = None,
) -> SamplingOptions:
    """How the command line asks for samples; what it leaves open is as the run draws its own.

    Raises: ConfigError where an option does not fit the model or another option.
    """
    own, kind = _with_guidance(trained, guidance, guidance_interval, autoguidance), trained.model.kind
    if kind != "denoiser":
        if solver is not None or steps is not None:
            raise ConfigError("--solver and --steps are for teachers; this is a consistency model: use --times")
        own = _with_sampler(own, kind, sampler, gamma)
        if clip and own.gamma is not None:
            raise ConfigError("--clip: is of multistep sampling; a chain makes no estimates of the clean data")
        own = own if clip is None else replace(own, clip=clip)
        return replace(own, times=given_times(times, trained) if times else None)
    for name, value in (("sampler", sampler), ("gamma", gamma)):
        if value is not None:
            raise ConfigError(f"--{name}={value}: is for consistency models; a diffusion model has its --solver")
    if times is not None and steps is not None:
        raise ConfigError("--times and --steps both tell where a solver steps: give one of them")
    if steps is not None and steps < 2:
        raise ConfigError(f"--steps={steps}: must be at least 2")
    own = _with_solver(own if clip is None else replace(own, clip=clip), trained.model, solver)
    if times:
        return replace(own, times=given_times(times, trained))
    return replace(own, times=None, solver_steps=steps) if steps else own


def _with_guidance(
    trained: Trained, guidance: float | None, interval: list[str] | None, autoguidance: str
) -> SamplingOptions:
    own, constants = trained.samples, trained.model.constants
    if guidance is not None and not trained.num_classes and not autoguidance:
        raise ConfigError(f"--guidance={guidance}: it is by classes, which the model has not, or by --autoguidance")
    if guidance is not None and not guidance >= 0:
        raise ConfigError(f"--guidance={guidance}: must be at least 0")
    own = replace(own, guidance=own.guidance if guidance is None else guidance, autoguidance=autoguidance)
    if autoguidance and own.guidance == 1:
        raise ConfigError(f"--autoguidance={autoguidance}: has no effect at guidance 1: name a scale, as --guidance=2")
    if interval is not None:
        fields = Fields({"guidance_interval": _numbers(interval)}, prefix="--")
        own = replace(own, guidance_interval=read_interval(fields, constants["t_min"], constants["t_max"]))
        if own.guidance == 1:
            raise ConfigError(
                f"--guidance_interval={','.join(interval)}: has no effect at guidance 1: name a --guidance"
            )
    return own if own.guidance != 1 else replace(own, guidance_interval=None)


def _numbers(texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise ConfigError(f"--guidance_interval={','.join(texts)}: must be two times, as 0.3,5") from None


def _with_sampler(own: SamplingOptions, kind: str, sampler: str | None, gamma: float | None) -> SamplingOptions:
    if sampler is not None and gamma is not None:
        raise ConfigError(f"--gamma={gamma} is short for --sampler='chain(gamma={gamma})': give one of them")
    if gamma is not None and kind != "flow_map":
        raise ConfigError(f"--gamma={gamma}: it is for flow maps between any two times; this is a {kind} model")
    if sampler is not None:
        gamma = read_sampler(Fields({"sampler": sampler}, prefix="--"), kind)
    elif gamma is None:
        gamma = own.gamma
    return replace(own, gamma=gamma, **({} if gamma is None else dict.fromkeys(OF_MULTISTEP, False)))


def _with_solver(own: SamplingOptions, model: NetworkModel, solver: str | None) -> SamplingOptions:
    if solver is None:
        return own
    name, chosen = read_solver(Fields({"solver": solver}, prefix="--"), model.path, model.constants["t_max"])
    return replace(own, solver=chosen, solver_name=name)
