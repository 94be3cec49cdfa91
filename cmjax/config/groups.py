"""Reads the arguments of methods that look at groups of samples: IMM's groups, and CMT's trajectories."""

from collections.abc import Callable
from functools import partial

import numpy as np

from cmjax.config.choices import ODE_STEPS
from cmjax.config.fields import by_name
from cmjax.config.readers import Objective, Part
from cmjax.core import grids, map_pairs, solvers, weightings
from cmjax.core.losses import moments

TRAJECTORIES: dict[str, Callable] = {
    "dpmpp_3m": solvers.dpmpp_3m_states,
    **{name: partial(solvers.states, ode_step=step) for name, step in ODE_STEPS.items() if name != "ddim"},
}
TIMES_BELOW = {"uniform": map_pairs.uniform_below, "lognormal": map_pairs.lognormal_below}
GRIDS = by_name(grids.logarithmic, grids.shifted)
KERNELS = by_name(moments.laplace)
WEIGHTINGS = by_name(weightings.uniform, weightings.sigmoid)


def _group(o: Objective) -> int:
    """Reads the number of samples in a group; they follow one another in the batch."""
    return o.fields.integer("group", at_least=1, at_most=10**4)


def _grid(o: Objective) -> np.ndarray:
    """Reads the grid of a teacher's trajectory, ascending, which CMT's times and its losses both take."""
    ends = {name: o.spec.constants[name] for name in ("t_min", "t_max")}
    return o.fields.call("grid", GRIDS, **ends)


def _trajectory(o: Objective) -> Part:
    chosen, ends = o.fields.choice("trajectory", TRAJECTORIES, path=o.spec.path), o.spec.constants
    if chosen.name == "dpmpp_3m" and (ends["t_max"] >= o.spec.path.signal_ends or not ends["t_min"]):
        raise o.fields.error("trajectory", "steps by noise level, which has no end at these times: choose heun")
    return {"choices": {"trajectory": chosen.make}}


def _weight(o: Objective) -> Part:
    known = {"path": o.spec.path, "sigma_data": o.spec.constants["sigma_data"]}
    return {"choices": {"weight": o.fields.choice("weight", WEIGHTINGS, **known).make}}


def _grouped(o: Objective) -> Part:
    """Reads IMM's times, equal within each group; r has the noise level of t minus a fixed gap."""
    known = {"path": o.spec.path, "t_min": o.spec.constants["t_min"], "t_max": o.spec.constants["t_max"]}
    below = o.fields.call("times", TIMES_BELOW, **known)
    gap = o.fields.call("gap", {"level": map_pairs.level_gap}, **known)
    return {"times": map_pairs.grouped(below, gap, group=_group(o), t_max=known["t_max"])}


def _states(o: Objective) -> Part:
    """Takes all points of a trajectory's grid but its end as times: a group of samples for each trajectory."""
    grid = _grid(o)
    return {"times": map_pairs.all_of(grid), "group": len(grid) - 1}


READERS: dict[str, Callable[[Objective], Part]] = {
    "group": lambda o: {"choices": {"group": _group(o)}, "group": _group(o)},
    "group_weight": _weight,
    "kernel": lambda o: {"choices": {"kernel": o.fields.choice("kernel", KERNELS).make}},
    "trajectory": _trajectory,
    "trajectory_grid": lambda o: {"choices": {"grid": _grid(o)}},
}
TIMES: dict[str, Callable[[Objective], Part]] = {
    "grouped": _grouped,
    "states": _states,
    "two_states": lambda o: {"times": map_pairs.two_of(_grid(o))},
}
