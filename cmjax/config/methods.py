"""Every method by its name: what it makes of the network, and what reads its fields. One row for each."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cmjax.config import continuous, discrete
from cmjax.config.choices import read_coupling
from cmjax.config.fields import Fields
from cmjax.config.model import PATHS, PRECONDITIONINGS, ModelSpec, NetworkModel, read_model_spec
from cmjax.core.model import Kind
from cmjax.training.method import Method

log = logging.getLogger(__name__)

METHODS: dict[str, tuple[Kind, Callable[[Fields, ModelSpec, int], Method]]] = {
    "denoising": ("denoiser", discrete.denoising),
    "edm2": ("denoiser", discrete.edm2),
    "ct": ("consistency", discrete.ct),
    "cd": ("consistency", discrete.cd),
    "ict": ("consistency", discrete.ict),
    "ect": ("consistency", discrete.ect),
    "sct": ("consistency", discrete.sct),
    "tcm": ("consistency", discrete.tcm),
    "multistep_ct": ("denoiser", discrete.multistep_ct),
    "guided_cd": ("consistency", discrete.guided_cd),
    "lcm": ("consistency", discrete.lcm),
    "pd": ("denoiser", discrete.pd),
    "continuous_ct": ("consistency", continuous.continuous_ct),
    "continuous_cd": ("consistency", continuous.continuous_cd),
    "scm_ct": ("consistency", continuous.scm_ct),
    "scm_cd": ("consistency", continuous.scm_cd),
    "meanflow": ("flow_map", continuous.meanflow),
    "imf": ("flow_map", continuous.imf),
    "shortcut": ("flow_map", continuous.shortcut),
    "alphaflow": ("flow_map", continuous.alphaflow),
}
"""The kind of model, as `BoundModel` has it, and the reader: (fields, model, steps of the run) -> Method."""
OF_INDEPENDENT_NOISE = {"denoising", "edm2", "cd", "guided_cd", "lcm", "pd", "continuous_cd", "scm_cd", "sct"}
"""Diffusion models and what is distilled from them; `sct`, whose D takes the noise to be independent."""
RENAMED = {"progressive": "pd", "mean_flow": "meanflow", "improved_mean_flow": "imf", "alpha_flow": "alphaflow"}
"""Methods by the names that older runs have recorded."""


def read_method(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    """The method that the section `objective` names, of a run of so many steps."""
    name = _name(fields)
    coupling = read_coupling(fields, spec)
    if coupling is not None and name in OF_INDEPENDENT_NOISE:
        raise fields.error("coupling", f"must be independent: config.objective.name={name!r} needs it so")
    return replace(METHODS[name][1](fields, spec, steps), coupling=coupling, guided_by=_guided_by(fields))


def _guided_by(fields: Fields) -> str:
    """The field for which the target also takes the network's output without a label, "" for none.

    In a target ω·(…) + κ·u(x | c) + (1 − ω − κ)·u(x) it has no part where ω + κ = 1.   [Geng et al. 2025, MeanFlow]
    """
    read = [name for name in ("guidance", "blend") if fields.has(name) and name not in fields.remaining()]
    written = {name: fields.value(name) for name in read}
    guidance, blend = written.get("guidance") or 1, written.get("blend") or 0
    scales = [guidance] if isinstance(guidance, int | float | str | Mapping) else list(guidance)
    if all(isinstance(scale, int | float) and scale + blend == 1 for scale in scales):
        return ""
    return "blend" if scales == [1] else "guidance"


def read_spec(fields: Fields) -> ModelSpec:
    """The model of a whole configuration, checked, as far as it is known without the data set."""
    name = _name(fields.section("objective"))
    return read_model_spec(fields, METHODS[name][0], made_by=f"config.objective.name={name!r}")


def read_model(config: Mapping[str, Any], num_classes: int | None) -> NetworkModel:
    """The model of a recorded configuration: that of a run, or of weights that no run here made."""
    fields = Fields(config)
    if fields.has("objective") and _recorded_name(config) in METHODS:
        spec = read_spec(fields)
    else:
        kind = config["model"].get("kind", "consistency")  # before it was recorded, what is no denoiser was this
        spec = read_model_spec(fields, kind, made_by=f"config.model.kind={kind!r}")
    unknown = [f"{name}.{field}" for name in ("net", "model") for field in fields.section(name).remaining()]
    if unknown := [field for field in unknown if field != "model.kind"]:
        log.warning("config.%s: this version of cmjax does not know it, and the model is made without it; a newer one "
                    "may make another", ", config.".join(unknown))  # fmt: skip
    return spec.make(num_classes)


def read_model_like(config: Mapping[str, Any], kind: Kind, num_classes: int | None) -> NetworkModel:
    """A model of that kind with the network and the path of this configuration: what a teacher may be."""
    model = config["model"]
    path = Fields(model).choice("path", PATHS).name
    preconditioning = next(iter(PRECONDITIONINGS[path][kind]))
    like = {**model, "preconditioning": preconditioning, "t_min": model["t_min"] or 0.001}
    net = {**config["net"], "two_times": kind == "flow_map", "guided": False}
    return read_model_spec(Fields({"net": net, "model": like}), kind, made_by="the teacher").make(num_classes)


def _recorded_name(config: Mapping[str, Any]) -> str:
    name = str(config["objective"].get("name", ""))
    return RENAMED.get(name, name)


def _name(objective: Fields) -> str:
    name = objective.text("name")
    if name in RENAMED:
        return RENAMED[name]
    return objective.one_of("name", METHODS)
