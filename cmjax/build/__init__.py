"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""

from cmjax.build.choices import Method
from cmjax.build.model import NETS, Model, ModelPlan, read_model, read_model_plan
from cmjax.build.run import Run, read_run
from cmjax.build.samples import check_times, read_samples, read_solver, read_times

__all__ = [
    "NETS",
    "Method",
    "Model",
    "ModelPlan",
    "Run",
    "check_times",
    "read_model",
    "read_model_plan",
    "read_run",
    "read_samples",
    "read_solver",
    "read_times",
]
