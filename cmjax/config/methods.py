"""The training objective of a configuration, by its name."""

from collections.abc import Callable

from cmjax.config import continuous, discrete
from cmjax.config.fields import Fields
from cmjax.config.model import ModelPlan, objective_name
from cmjax.training.method import Method

METHODS: dict[str, Callable[[Fields, ModelPlan, int], Method]] = {
    "denoising": discrete.denoising,
    "edm2": discrete.edm2,
    "ct": discrete.ct,
    "cd": discrete.cd,
    "ict": discrete.ict,
    "ect": discrete.ect,
    "sct": discrete.sct,
    "tcm": discrete.tcm,
    "multistep_ct": discrete.multistep_ct,
    "guided_cd": discrete.guided_cd,
    "lcm": discrete.lcm,
    "pd": discrete.pd,
    "continuous_ct": continuous.continuous_ct,
    "continuous_cd": continuous.continuous_cd,
    "scm_ct": continuous.scm_ct,
    "scm_cd": continuous.scm_cd,
    "meanflow": continuous.meanflow,
    "imf": continuous.imf,
    "shortcut": continuous.shortcut,
    "alphaflow": continuous.alphaflow,
}


def read_method(fields: Fields, plan: ModelPlan, steps: int) -> Method:
    """The method that the section `objective` names, of a run of so many steps."""
    read = METHODS.get(objective_name(fields)) or METHODS[fields.one_of("name", METHODS)]
    return read(fields, plan, steps)
