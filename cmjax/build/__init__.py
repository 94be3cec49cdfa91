"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""

from cmjax.build.method import Method
from cmjax.build.model import NETS, Model, read_model
from cmjax.build.run import Run, read_run
from cmjax.build.samples import check_times, read_solver, read_times

__all__ = ["NETS", "Method", "Model", "Run", "check_times", "read_model", "read_run", "read_solver", "read_times"]
