"""Finds fields that are accepted and have no effect in a run: a row each. A run warns of them before it trains."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cmjax.config.fields import Fields
from cmjax.config.model import PATHS
from cmjax.config.optimizer import LEARNING_RATES
from cmjax.config.samples import beyond_scales, scales_of
from cmjax.core.curricula import equal_stages
from cmjax.core.losses.tangents import ramp
from cmjax.nets import defaults


@dataclass(frozen=True)
class Asked:
    """A checked configuration. shape: of its samples, (h, w, c)."""

    config: Mapping[str, Any]
    shape: tuple[int, ...]

    def value(self, field: str, absent: Any = None) -> Any:
        """The value of a field, as "net.width"."""
        value: Any = self.config
        for part in field.split("."):
            if part not in value:
                return absent
            value = value[part]
        return value

    def parameter(self, field: str, name: str, choices: Mapping[str, Callable], **known: Any) -> float:
        """A parameter of what the field chose; 0 where it has none of this name."""
        section, _, field = field.rpartition(".")
        return Fields(self.config).section(section).choice(field, choices, **known).parameters.get(name, 0)

    @property
    def steps(self) -> int:
        return self.value("steps")


def without_effect(config: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, str]:
    """The fields that have no effect, with the reason."""
    asked, reasons = Asked(config, shape), {}
    for field, reason in ROWS.items():
        value = asked.value(field)
        if value is not None and (why := reason(value, asked)):
            reasons[field] = why
    return reasons


def _after_the_end(every: int, asked: Asked) -> str:
    return f"the run ends at step {asked.steps}" if every > asked.steps else ""


def _kept(every: int, asked: Asked) -> str:
    first = math.lcm(every, asked.value("checkpoint.save_every")) if every else 0
    nothing = every and first > asked.steps and asked.steps % every
    return f"no step of the {asked.steps} that is a multiple of it is saved" if nothing else ""


def _levels(heights: tuple[int, ...], asked: Asked) -> str:
    depth, patch = len(asked.value("net.channel_mult")), asked.value("net.patch", 1)
    levels = [asked.shape[0] // patch >> level for level in range(depth)]
    absent = [height for height in heights if height not in levels]
    if not absent:
        return ""
    alone = "there is no attention but in the middle: " if len(absent) == len(heights) else ""
    return f"{alone}for these images the levels are {', '.join(map(str, levels))} rows high"


def _unused_head(features: int, asked: Asked) -> str:
    trained = asked.value("objective.name") == "edm2" or asked.value("objective.learned_weight")
    return "the objective learns no weight" if features and not trained else ""


def _fourier(scale: float, asked: Asked) -> str:
    changed = scale != defaults(asked.value("net.name"))["fourier_scale"]
    embedding = asked.value("net.embedding")
    return f"config.net.embedding={embedding!r} has no random frequencies" if changed and embedding != "fourier" else ""


def _rho(rho: float, asked: Asked) -> str:
    path = Fields(asked.config["model"]).choice("path", PATHS, sigma_data=asked.value("model.sigma_data"))
    changed = rho != 7 and not path.make().spaced_by_level
    return f"on the path {path.name} steps are evenly spaced in time" if changed else ""


def _warmup(schedule: Any, asked: Asked) -> str:
    steps, size = asked.steps, asked.value("batch_size")
    known = {"peak": 1.0, "total_steps": steps, "batch_size": size}
    of_steps, of_images = (
        asked.parameter("optimizer.schedule", name, LEARNING_RATES, **known) for name in ("warmup_steps", "warmup_mimg")
    )
    longest = max(of_steps, math.ceil(of_images * 1e6 / size))
    return f"the warm-up of {longest:,} steps does not end within {steps:,}" if longest >= steps else ""


def _ramp(warmup: Any, asked: Asked) -> str:
    length = asked.parameter("objective.warmup", "length", {"ramp": ramp})
    return f"the run ends at step {asked.steps}, before the warm-up" if length > asked.steps else ""


def _stages(stages: Any, asked: Asked) -> str:
    count = asked.parameter("objective.stages", "count", {"equal": equal_stages}, total_steps=asked.steps)
    return f"the run has {asked.steps} steps" if count > asked.steps else ""


def _interval(interval: Any, asked: Asked) -> str:
    always = interval == "drawn" or tuple(interval) == (0.0, 1.0)
    return "config.objective.guidance=1 is no guidance" if not always and asked.value("objective.guidance") == 1 else ""


def _full_noise(full: bool, asked: Asked) -> str:
    alone = full and len(asked.value("samples.times", ())) == 1
    return "samples of one evaluation are given no noise again" if alone else ""


def _scale(scale: float, asked: Asked) -> str:
    return beyond_scales(scale, scales_of(asked.config))


ROWS: dict[str, Callable[[Any, Asked], str]] = {
    "checkpoint.keep_every": _kept,
    "samples.full_noise": _full_noise,
    "samples.guidance": _scale,
    "evaluate.every": _after_the_end,
    "model.rho": _rho,
    "net.attention_resolutions": _levels,
    "net.fourier_scale": _fourier,
    "net.weight_head": _unused_head,
    "objective.guidance_interval": _interval,
    "objective.stages": _stages,
    "objective.warmup": _ramp,
    "optimizer.schedule": _warmup,
}
"""Field -> (its value, the configuration) -> why it cannot do what it says; "" where it can."""
