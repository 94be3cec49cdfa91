"""Finds fields that are accepted and have no effect in a run. A run warns of them before it trains."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cmjax.config.fields import Fields
from cmjax.config.model import PATHS
from cmjax.config.optimizer import LEARNING_RATES
from cmjax.config.samples import beyond_scales, scales_of
from cmjax.core.curricula import equal_stages
from cmjax.core.losses.tangents import ramp
from cmjax.nets import defaults

Reasons = Iterator[tuple[str, str]]  # (field, why it cannot do what it says)


@dataclass(frozen=True)
class Asked:
    """A checked configuration. shape: of its samples, (h, w, c)."""

    config: Mapping[str, Any]
    shape: tuple[int, ...]

    def value(self, field: str, absent: Any = None) -> Any:
        """Gives the value of a field, as "net.width"."""
        value: Any = self.config
        for part in field.split("."):
            if part not in value:
                return absent
            value = value[part]
        return value

    def parameter(self, field: str, name: str, choices: Mapping[str, Callable], **known: Any) -> float:
        """Gives a parameter of what the field chose; 0 where it has none of this name, or there is no such field."""
        if self.value(field) is None:
            return 0
        section, _, field = field.rpartition(".")
        return Fields(self.config).section(section).choice(field, choices, **known).parameters.get(name, 0)

    @property
    def steps(self) -> int:
        return self.value("steps")


def without_effect(config: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, str]:
    """Gives the fields that have no effect, with the reason."""
    asked = Asked(config, shape)
    return dict(_of_network(asked)) | dict(_of_objective(asked)) | dict(_of_the_rest(asked))


def _of_network(asked: Asked) -> Reasons:
    value = asked.value
    # rows of pixels or of patches at the top, and half as many at each level below
    top, depth = asked.shape[0] // value("net.patch", 1), len(value("net.channel_mult", ()))
    levels = [top >> level for level in range(depth)]
    heights = value("net.attention_resolutions", ())
    absent = [height for height in heights if height not in levels]
    if absent:
        alone = "there is no attention but in the middle: " if len(absent) == len(heights) else ""
        there = ", ".join(map(str, levels))
        yield "net.attention_resolutions", f"{alone}for these images the levels are {there} rows high"
    learned = value("objective.name") in ("edm2", "dmf") or value("objective.learned_weight")
    if value("net.weight_head") and not learned:
        yield "net.weight_head", "the objective learns no weight"
    # every such network has a default of this field: only a value that somebody chose is reported
    scale, embedding = value("net.fourier_scale"), value("net.embedding")
    if scale is not None and embedding != "fourier" and scale != defaults(value("net.name"))["fourier_scale"]:
        yield "net.fourier_scale", f"config.net.embedding={embedding!r} has no random frequencies"
    path = Fields(asked.config["model"]).choice("path", PATHS, sigma_data=value("model.sigma_data"))
    if value("model.rho", 7) != 7 and not path.make().spaced_by_level:
        yield "model.rho", f"on the path {path.name} steps are evenly spaced in time"


def _of_objective(asked: Asked) -> Reasons:
    # "drawn": sampled for each sample, so it limits some
    steps, interval = asked.steps, asked.value("objective.guidance_interval")
    limited = interval is not None and interval != "drawn" and tuple(interval) != (0.0, 1.0)
    if limited and asked.value("objective.guidance") == 1 and not asked.value("objective.blend"):
        yield "objective.guidance_interval", "config.objective.guidance=1 is no guidance"
    if asked.parameter("objective.stages", "count", {"equal": equal_stages}, total_steps=steps) > steps:
        yield "objective.stages", f"the run has {steps} steps"
    if asked.parameter("objective.warmup", "length", {"ramp": ramp}) > steps:
        yield "objective.warmup", f"the run ends at step {steps}, before the warm-up"


def _of_the_rest(asked: Asked) -> Reasons:
    value, steps, size = asked.value, asked.steps, asked.value("batch_size")
    known = {"peak": 1.0, "total_steps": steps, "batch_size": size}
    of_steps, of_images = (
        asked.parameter("optimizer.schedule", name, LEARNING_RATES, **known) for name in ("warmup_steps", "warmup_mimg")
    )
    warmup = max(of_steps, math.ceil(of_images * 1e6 / size))
    if warmup >= steps:
        yield "optimizer.schedule", f"the warm-up of {warmup:,} steps does not end within {steps:,}"
    # A checkpoint is kept for good where it is saved at all: at common multiples, and at the last step.
    every = value("checkpoint.keep_every")
    if every and math.lcm(every, value("checkpoint.save_every")) > steps and steps % every:
        yield "checkpoint.keep_every", f"no step of the {steps} that is a multiple of it is saved"
    if value("evaluate.every", 0) > steps:
        yield "evaluate.every", f"the run ends at step {steps}"
    if value("samples.full_noise") and len(value("samples.times", ())) == 1:
        yield "samples.full_noise", "samples of one evaluation are given no noise again"
    if beyond := beyond_scales(value("samples.guidance", 1), scales_of(asked.config)):
        yield "samples.guidance", beyond
