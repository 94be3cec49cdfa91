"""What samples are drawn with: solvers and noise levels, from a configuration or from the command line's options."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.model import ModelPlan
from cmjax.core import paths, solvers
from cmjax.core.grids import path_grid
from cmjax.core.paths import Path
from cmjax.core.typing import Solver

SOLVERS: dict[str, Callable] = {
    "ddim": solvers.ddim,
    "euler": solvers.euler,
    "heun": solvers.heun,
    "midpoint": solvers.midpoint,
    "dpmpp_2m": solvers.dpmpp_2m,
    "churn": solvers.churn,
    "ancestral": solvers.ancestral,
    "tsit5": solvers.tsit5,
}
BY_LEVEL = ("dpmpp_2m", "churn", "ancestral")
"""The solvers that move between noise levels b/a."""
_INDICES = re.compile(r"idx:(\d+(?:,\d+)*)/(\d+)")


def read_samples(fields: Fields, plan: ModelPlan) -> dict[str, Any]:
    """The section `samples` of a configuration. `times()` descend; those of a denoiser are a grid unless named.

    full_noise: as in `sample_fn`. unit_start: samples start from a unit Gaussian and not from b(T) times one.

    A grid is computed on a device, so that it waits until it is asked for.
    """
    settings: dict[str, Any] = {"every": fields.integer("every", at_least=0), "num": fields.integer("num", at_least=1)}
    settings["guidance"] = fields.number("guidance", at_least=0) if fields.has("guidance") else 1.0
    if settings["guidance"] != 1 and not plan.net["class_conditional"]:
        raise fields.error("guidance", "is by labels: set config.net.class_conditional=True, or leave it at 1")
    if plan.kind == "denoiser":
        name, solver = read_solver(fields, plan.path, plan.constants["t_max"])
        settings |= {"solver": solver, "solver_name": name}
        if not fields.has("times"):
            steps = fields.integer("solver_steps", at_least=2)
            return settings | {"times": lambda: tuple(plan.grid(steps)[::-1].tolist())}
    times = fields.numbers("times")
    for name in ("full_noise", "unit_start"):
        settings[name] = fields.boolean(name) if fields.has(name) else False
    try:
        check_times(times, plan.constants["t_min"], plan.constants["t_max"])
    except ConfigError as error:
        raise fields.error("times", str(error)) from error
    return settings | {"times": lambda: times}


def read_solver(fields: Fields, path: Path, t_max: float) -> tuple[str, Solver]:
    """The field `solver`: its name and the solver with its parameters bound, for sampling from t_max."""
    solver = fields.choice("solver", SOLVERS, path=path, to_zero=True)
    name = next(name for name, function in SOLVERS.items() if function is solver.func)
    if name in BY_LEVEL and t_max >= path.signal_ends:
        raise fields.error("solver", f"steps by noise level, which has no end at t_max={t_max}: set it a little lower")
    if name == "tsit5" and find_spec("diffrax") is None:
        raise fields.error("solver", "needs diffrax: pip install 'cmjax[ode]'")
    try:
        jax.eval_shape(lambda: _try_out(solver))
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise fields.error("solver", str(error)) from error
    return name, solver


def _try_out(solver: Solver) -> Array:
    x, times = jnp.zeros((1, 1)), jnp.linspace(2.0, 1.0, 2)
    return solver(lambda x, t: x, x, times, lambda index: x, path=paths.ve)


def read_times(text: str, *, t_min: float, t_max: float, rho: float, path: Path = paths.ve) -> tuple[float, ...]:
    """Times as written: numbers, "80,0.8", or places on a descending grid of the model's, "idx:0,22,39/40".

    The places are those of the released codes' `ts`, 0 for t_max and n − 1 for t_min, of n. A last place at t_min,
    where a consistency model is the identity, says where their samples end and costs no evaluation here.

    Raises: ConfigError with a message that starts with "times".
    """
    if text.startswith("idx:"):
        return _from_indices(text, partial(path_grid, path=path, t_min=t_min, t_max=t_max, rho=rho))
    try:
        times = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"times={text}: must be numbers, as 80,0.8, or places, as idx:0,22,39/40") from None
    check_times(times, t_min, t_max)
    return times


def _from_indices(text: str, grid: Callable[[int], np.ndarray]) -> tuple[float, ...]:
    match = _INDICES.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ConfigError(f"times={text}: must be places on a grid and its size, as idx:0,22,39/40")
    places, n = [int(part) for part in match[1].split(",")], int(match[2])
    if n < 2:
        raise ConfigError(f"times={text}: a grid has at least 2 points, not {n}")
    if max(places) >= n:
        raise ConfigError(f"times={text}: a grid of {n} points has the places 0 to {n - 1}, not {max(places)}")
    if any(a >= b for a, b in pairwise(places)):
        raise ConfigError(f"times={text}: places must ascend, from the largest noise level on")
    if len(places) > 1 and places[-1] == n - 1:
        places.pop()
    descending = grid(n)[::-1]
    return tuple(float(descending[place]) for place in places)


def check_times(times: Sequence[float], t_min: float, t_max: float) -> None:
    """Raise ConfigError where sampling times do not descend within [t_min, t_max]."""
    if any(t <= r for t, r in pairwise(times)):
        raise ConfigError(f"times must descend, got {', '.join(map(str, times))}")
    if not all(t_min <= t <= t_max for t in times):
        raise ConfigError(f"times must lie in [{t_min}, {t_max}], got {', '.join(map(str, times))}")
