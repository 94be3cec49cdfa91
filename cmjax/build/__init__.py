"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""

from cmjax.build.method import ODE_STEPS, Method
from cmjax.build.model import NETS, Model, read_model
from cmjax.build.run import Run, check_times, read_run

__all__ = ["NETS", "ODE_STEPS", "Method", "Model", "Run", "check_times", "read_model", "read_run"]
