"""Samplers by the flags of the command line, and by default as the run samples itself."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.model import NetworkModel
from cmjax.config.samples import (
    OF_MULTISTEP,
    SamplingOptions,
    beyond_scales,
    parse_times,
    read_interval,
    read_sampler,
    read_solver,
)
from cmjax.core.model import BoundModel
from cmjax.generation.arguments import read_label
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
    """Binds the guidance of `samples` to the model. Returns: the model and the conditions of `num` samples.

    label, random_seed: as in `class_labels`. weaker: the model that guides them, of `samples.autoguidance`.
    """
    labels = class_labels(num, trained.num_classes, read_label(label, trained), random_seed=random_seed)
    if weaker is not None:
        scales = np.full(num, samples.guidance, np.float32)
        return with_autoguidance(flow_map, weaker, labels, scales, samples.guidance_interval)
    if samples.guidance != 1 and not trained.model.guided and not trained.recorded.goes_without_labels:
        log.warning("guidance: the model never learned to do without labels (config.data.label_dropout=0)")
    if why := beyond_scales(samples.guidance, trained.recorded.scales):
        log.warning("guidance=%g: %s", samples.guidance, why)
    return guided_by(flow_map, labels, samples, trained.model)


@dataclass(frozen=True)
class NamedSampler:
    """Holds a sampler with its name, its descending noise levels, and its number of network evaluations, those of
    guidance included; None where a tolerance decides it."""

    samples: SamplingOptions
    sampler: Sampler
    name: str
    times: tuple[float, ...]
    evaluations: int | None

    @property
    def setting(self) -> dict[str, Any]:
        """The fields of a record that say how samples were made."""
        fields = {"sampler": self.name, "times": list(self.times), "evaluations": self.evaluations}
        return {**fields, "guidance": self.samples.guidance, **self.samples.choices}


def named_sampler(samples: SamplingOptions, model: NetworkModel) -> NamedSampler:
    """Makes the sampler of the model along all of the times of `samples`."""
    levels = samples.levels(model)
    # guidance is an estimate with the label and one without, or one of the model and one of a weaker model
    by_labels = samples.guidance != 1 and model.class_conditional and not model.guided
    networks = 2 if by_labels or samples.autoguidance else 1
    name, count = samples.name(model.kind, len(levels)), samples.evaluations(model.kind, len(levels))
    of_denoiser = model.kind == "denoiser"
    sampler = diffusion_sampler(samples, levels) if of_denoiser else consistency_sampler(levels, samples)
    # `and`: no number of evaluations, where a tolerance decides it, stays None
    return NamedSampler(samples, sampler, name, levels, count and networks * count)


def run_samplers(samples: SamplingOptions, model: NetworkModel) -> list[NamedSampler]:
    """Makes the samplers of a run's grids and metrics: of a consistency model one evaluation, and all of the times."""
    times = samples.levels(model)
    # a grid of one time is sampled once
    along = [times] if model.kind == "denoiser" else dict.fromkeys((times[:1], times))
    return [named_sampler(replace(samples, times=levels), model) for levels in along]


def samples_from_flags(
    trained: Trained,
    *,
    times: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
    guidance_interval: list[str] | None = None,
    guidance_channels: int | None = None,
    autoguidance: str = "",
    clip: bool | None = None,
) -> SamplingOptions:
    """Reads the flags of sampling; those that are None leave the setting of the run.

    Raises: ConfigError where an option does not fit the model or another option.
    """
    samples, kind = _with_guidance(trained, guidance, guidance_interval, autoguidance), trained.model.kind
    samples = _with_channels(trained, samples, guidance_channels)
    if kind != "denoiser":
        if solver is not None or steps is not None:
            raise ConfigError("--solver and --steps are for teachers; this is a consistency model: use --times")
        samples = _with_sampler(samples, kind, sampler, gamma)
        if clip and samples.gamma is not None:
            raise ConfigError("--clip: is of multistep sampling; a chain makes no estimates of the clean data")
        samples = samples if clip is None else replace(samples, clip=clip)
        return replace(samples, times=parse_times(times, trained.model) if times else None)
    for name, value in (("sampler", sampler), ("gamma", gamma)):
        if value is not None:
            raise ConfigError(f"--{name}={value}: is for consistency models; a diffusion model has its --solver")
    if times is not None and steps is not None:
        raise ConfigError("--times and --steps both set the steps of a solver: give one of them")
    if steps is not None and steps < 2:
        raise ConfigError(f"--steps={steps}: must be at least 2")
    samples = samples if clip is None else replace(samples, clip=clip)
    if solver is not None:
        fields = Fields({"solver": solver}, prefix="--")
        name, chosen = read_solver(fields, trained.model.path, trained.model.constants["t_max"])
        samples = replace(samples, solver=chosen, solver_name=name)
    if times:
        return replace(samples, times=parse_times(times, trained.model))
    # given steps replace the times of the recipe too
    return replace(samples, times=None, solver_steps=steps) if steps else samples


def _with_guidance(
    trained: Trained, guidance: float | None, interval: list[str] | None, autoguidance: str
) -> SamplingOptions:
    samples, constants = trained.samples, trained.model.constants
    if guidance is not None and not trained.num_classes and not autoguidance:
        raise ConfigError(f"--guidance={guidance}: it is by classes, which the model has not, or by --autoguidance")
    if guidance is not None and not guidance >= 0:
        raise ConfigError(f"--guidance={guidance}: must be at least 0")
    samples = replace(samples, guidance=samples.guidance if guidance is None else guidance, autoguidance=autoguidance)
    if autoguidance and samples.guidance == 1:
        raise ConfigError(f"--autoguidance={autoguidance}: has no effect at guidance 1: name a scale, as --guidance=2")
    if interval is not None:
        try:
            fields = Fields({"guidance_interval": tuple(map(float, interval))}, prefix="--")
        except ValueError:
            raise ConfigError(f"--guidance_interval={','.join(interval)}: must be two times, as 0.3,5") from None
        samples = replace(samples, guidance_interval=read_interval(fields, constants["t_min"], constants["t_max"]))
        if samples.guidance == 1:
            raise ConfigError(
                f"--guidance_interval={','.join(interval)}: has no effect at guidance 1: name a --guidance"
            )
    # at scale 1 limits change nothing, and would tell equal settings apart in records
    return samples if samples.guidance != 1 else replace(samples, guidance_interval=None, guidance_channels=0)


def _with_channels(trained: Trained, samples: SamplingOptions, channels: int | None) -> SamplingOptions:
    """Sets the number of guided channels; None leaves the setting of the run."""
    if channels is None:
        # the run's guided channels are of guidance by labels
        return samples if not samples.autoguidance else replace(samples, guidance_channels=0)
    reasons = {
        "has no effect at guidance 1: name a --guidance": samples.guidance == 1,
        "is of guidance by labels, and not by --autoguidance": samples.autoguidance,
        "has no effect on a network that takes the scale of guidance": trained.model.guided,
        f"the samples have {trained.shape[-1]} channels": channels > trained.shape[-1],
    }
    if problems := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError(f"--guidance_channels={channels}: {'; '.join(problems)}")
    return replace(samples, guidance_channels=channels)


def _with_sampler(samples: SamplingOptions, kind: str, sampler: str | None, gamma: float | None) -> SamplingOptions:
    if sampler is not None and gamma is not None:
        raise ConfigError(f"--gamma={gamma} is short for --sampler='chain(gamma={gamma})': give one of them")
    if gamma is not None and kind != "flow_map":
        raise ConfigError(f"--gamma={gamma}: it is for flow maps between any two times; this is a {kind} model")
    if sampler is not None:
        gamma = read_sampler(Fields({"sampler": sampler}, prefix="--"), kind)
    elif gamma is None:
        gamma = samples.gamma
    # a chain has none of the options of multistep sampling
    return replace(samples, gamma=gamma, **({} if gamma is None else dict.fromkeys(OF_MULTISTEP, False)))
