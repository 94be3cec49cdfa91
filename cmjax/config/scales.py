"""Reads the arguments of guidance: one scale or a distribution of scales, and the interval of times."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cmjax.config.methods import method_name
from cmjax.config.readers import Objective, Part, as_choice, needs_input
from cmjax.core import losses
from cmjax.core.guidance import guided, sample_guidance, sample_interval
from cmjax.core.typing import PerSample

OF_PROMPTS = ("guided_cd", "lcm")
"""The methods whose teacher may be guided by prompts."""


def _optional_scales(o: Objective) -> Part:
    """Reads the scales of guidance that the network takes, where the field `guidance` has two; none where it is ()."""
    return _scales(o, above=0) if o.fields.value("guidance") else {}


def _guidance(o: Objective) -> Part:
    return _scale_of_labels(o, "guidance", off=1, above=0)


def _scale_of_labels(o: Objective, name: str, *, off: int, **bounds: float) -> Part:
    """Reads one number, which needs labels unless it is `off`, as in records of older runs without the field."""
    value = o.fields.number(name, absent=float(off), **bounds)
    if value != off and not o.spec.net["class_conditional"]:
        raise o.fields.error(name, f"needs labels: set config.net.class_conditional=True, or {name} to {off}")
    return as_choice(name, value)


def _scale_or_scales(o: Objective) -> Part:
    """Reads one scale, or two between which each sample's is chosen, as an input of the network."""
    return _guidance(o) if isinstance(o.fields.value("guidance"), int | float) else _scales(o, above=0)


def _scales(o: Objective, *, above: float | None = None) -> Part:
    """Makes (key, batch_size) -> scales (b,), uniform between the two numbers of `guidance`, or of its density."""
    if o.spec.net.get("prompted"):
        # a student that takes no scale learns the mean of all, as LCM-LoRA's does
        if (name := method_name(o.fields)) not in OF_PROMPTS:
            problem = f"guides by classes; of prompts {' and '.join(OF_PROMPTS)} learn guidance"
            raise o.fields.error("name", f"{name!r} {problem}")
    else:
        needs_input(o, "guided", "the student is given the scale of guidance")
        needs_input(o, "class_conditional", "guidance is by classes")
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
    """Guides the teacher by a scale between the two numbers of `guidance`, which is an input of the student."""
    if not o.fields.value("guidance"):
        return {}
    return {"loss": partial(_with_guided_teacher, getattr(losses, method_name(o.fields))), **_scales(o)}


def _with_guided_teacher(
    loss: Callable[..., PerSample], *inputs: Any, teacher: Callable[..., Any], **choices: Any
) -> PerSample:
    return loss(*inputs, teacher=guided(teacher), **choices)


def _interval(o: Objective) -> Part:
    """Reads the first and the last time of guidance: all times where the field is absent."""
    if not o.fields.has("guidance_interval"):
        return {}
    interval = o.fields.numbers("guidance_interval")
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= max(1.0, o.spec.constants["t_max"]):
        raise o.fields.error("guidance_interval", "must be the first and the last time of guidance, like (0.0, 1.0)")
    return as_choice("interval", interval)


def _interval_or_intervals(o: Objective) -> Part:
    """Reads one interval, or "drawn": one sampled for each sample, an input of the network."""
    if not o.fields.has("guidance_interval") or o.fields.value("guidance_interval") != "drawn":
        return _interval(o)
    needs_input(o, "guided_interval", "the network is given the interval of guidance")
    return {"interval": sample_interval}


READERS: dict[str, Callable[[Objective], Part]] = {
    "blend": lambda o: _scale_of_labels(o, "blend", off=0, at_least=0),
    "guidance": _guidance,
    "guided_teacher": _guided_teacher,
    "interval": _interval,
    "interval_or_intervals": _interval_or_intervals,
    "optional_scales": _optional_scales,
    "scale_or_scales": _scale_or_scales,
    "scales": _scales,
    "takes_guidance": lambda o: as_choice("takes_guidance", bool(o.spec.net.get("guided"))),
}
