"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""

from cmjax.config.model import NETS, Model, ModelPlan, read_model, read_model_plan
from cmjax.config.run import Run, read_run
from cmjax.config.samples import check_times, read_samples, read_solver, read_times
from cmjax.training.method import Method

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
