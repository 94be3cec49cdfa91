"""Every method by its name: a row each. What its loss takes is read from the loss's signature, see `objective`.

This file imports no loss, so that a trained model is loaded without them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmjax.config.fields import Fields
from cmjax.config.model import PATHS, PRECONDITIONINGS, ModelSpec, NetworkModel, read_model_spec
from cmjax.core.model import Kind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A method: the loss `cmjax.losses.<name>` of a model of this `kind`.

    times: the reader of its times, of `objective.TIMES`. paths: those that it is made for, separated by spaces; "" for
    all that have such a model. instead: keywords of the loss that another reader of `objective.READERS` reads, None
    for one that its times give or that is left at its default. also: readers of what the loss does not take by keyword.
    independent: whether its noise must be independent of the data, as in what has a `teacher`.
    """

    kind: Kind
    times: str
    paths: str = ""
    instead: Mapping[str, str | None] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    independent: bool = False


_OF_ONE_TIME = {"weight": "weight_of_t"}
_FLOW_PATHS = "linear trig vp"
METHODS: dict[str, Row] = {
    "denoising": Row("denoiser", "single", independent=True),
    "edm2": Row("denoiser", "single", also=("weight_head",), independent=True),
    "ct": Row("consistency", "grid", "ve"),
    "cd": Row("consistency", "grid", "ve"),
    "ict": Row("consistency", "grid", "ve"),
    "ect": Row("consistency", "ratio", "ve"),
    "sct": Row("consistency", "ratio", "ve", independent=True),
    "tcm": Row("consistency", "held_ratio", "ve"),
    "multistep_ct": Row("denoiser", "segments", "ve"),
    "guided_cd": Row("consistency", "grid", "ve", also=("scales",)),
    "lcm": Row("consistency", "discrete", "ddpm vp", also=("scales",)),
    "pd": Row("denoiser", "halving_grid", "ve", instead={"target_params": None}, independent=True),
    "continuous_ct": Row("consistency", "single", instead=_OF_ONE_TIME),
    "continuous_cd": Row("consistency", "single", instead=_OF_ONE_TIME),
    "scm_ct": Row("consistency", "single", "trig linear"),
    "scm_cd": Row("consistency", "single", "trig linear", also=("guided_teacher",)),
    "meanflow": Row("flow_map", "two", _FLOW_PATHS, 
                    instead={"weight": "optional_map_weight", "teacher": "optional_teacher"}, also=("drops_first",)),
    "imf": Row("flow_map", "two", _FLOW_PATHS,
               instead={"guidance": "scale_or_scales", "interval": "interval_or_intervals",
                        "weight": "optional_map_weight"},
               also=("drops_first", "keeps_label")),
    "pmf": Row("flow_map", "two", "linear",
               instead={"guidance": "scale_or_scales", "interval": "interval_or_intervals"},
               also=("drops_first", "keeps_label")),
    "shortcut": Row("flow_map", "dyadic", "linear"),
    "alphaflow": Row("flow_map", "between", "linear", instead={"weight": "alpha_weight", "target_params": None}),
    "tim": Row("flow_map", "two", _FLOW_PATHS, instead={"weight": "map_weight"}, also=("drops_first",)),
    "anyflow": Row("flow_map", "two", "linear", instead={"weight": "map_weight"}, also=("drops_first",)),
    "soflow": Row("flow_map", "near", _FLOW_PATHS),
    "lsd": Row("flow_map", "two", _FLOW_PATHS),
    "psd": Row("flow_map", "parted", _FLOW_PATHS),
    "esd": Row("flow_map", "two", _FLOW_PATHS),
    "tvm": Row("flow_map", "two", _FLOW_PATHS, also=("optional_scales",)),
    "facm": Row("flow_map", "single", "linear", instead={"teacher": "optional_teacher"}),
    "dmf": Row("flow_map", "two", "linear", instead={"teacher": "optional_teacher"}, also=("weight_head",)),
    "rcgm": Row("flow_map", "two", "linear", instead={"weight": "map_weight"}),
    "ayf": Row("flow_map", "two", "linear", also=("guided_teacher",)),
    "imm": Row("flow_map", "grouped", "linear ve", instead={"weight": "group_weight"}, also=("keeps_label",)),
    "cmt": Row("consistency", "states", "ve", instead={"grid": "trajectory_grid"}),
    "cmt_map": Row("flow_map", "two_states", "linear", instead={"grid": "trajectory_grid"}),
    "ctm": Row("flow_map", "skipping_grid", "ve", instead={"weight": "weight_of_t"}),
}  # fmt: skip
RENAMED = {"progressive": "pd", "mean_flow": "meanflow", "improved_mean_flow": "imf", "alpha_flow": "alphaflow"}
"""Methods by the names that older runs have recorded."""
NO_AVERAGE = "stop_gradient"  # the `target` of a method that needs no average: the student itself, without gradient


def method_name(objective: Fields) -> str:
    """Reads the name of the method in the section `objective`."""
    name = objective.text("name")
    return RENAMED[name] if name in RENAMED else objective.one_of("name", METHODS)


def read_spec(fields: Fields) -> ModelSpec:
    """Reads the model of a whole configuration, checked, as far as it is known without the data set."""
    name = method_name(fields.section("objective"))
    row = METHODS[name]
    return read_model_spec(fields, row.kind, made_by=f"config.objective.name={name!r}", made_for=row.paths.split())


def read_model(config: Mapping[str, Any], num_classes: int | None) -> NetworkModel:
    """Reads the model of a recorded configuration: that of a run, or of weights that no run here made."""
    fields = Fields(config)
    recorded = str(config.get("objective", {}).get("name", ""))
    if RENAMED.get(recorded, recorded) in METHODS:
        spec = read_spec(fields)
    else:
        kind = config["model"].get("kind", "consistency")  # before it was recorded, what is no denoiser was this
        spec = read_model_spec(fields, kind, made_by=f"config.model.kind={kind!r}")
    remaining = [f"config.{name}.{field}" for name in ("net", "model") for field in fields.section(name).remaining()]
    if unknown := ", ".join(field for field in remaining if field != "config.model.kind"):
        ignored = "this version of cmjax does not know it, and the model is made without it"
        log.warning("%s: %s; a newer one may make another", unknown, ignored)
    return spec.make(num_classes)


def read_model_like(config: Mapping[str, Any], kind: Kind, num_classes: int | None) -> NetworkModel:
    """Makes a model of that kind with this configuration's network and path, in place of a teacher that is not here."""
    model = config["model"]
    path = Fields(model).choice("path", PATHS).name
    preconditioning = next(iter(PRECONDITIONINGS[path][kind]))
    like = {**model, "preconditioning": preconditioning, "t_min": model["t_min"] or 0.001}
    net = {**config["net"], "two_times": kind == "flow_map", "guided": False, "guidance_width": 0}
    return read_model_spec(Fields({"net": net, "model": like}), kind, made_by="the teacher").make(num_classes)
