"""Reads the section `objective`: a method's times by its row, and what its loss takes by the loss's own signature."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.config import choices, groups, readers, scales
from cmjax.config.fields import Fields, value_problem
from cmjax.config.methods import METHODS, method_name
from cmjax.config.model import ModelSpec
from cmjax.config.readers import Objective, Part, read_alpha, read_fraction, read_grid
from cmjax.core import curricula, ema_rates, losses, map_pairs, pairs, times
from cmjax.core.pairs import PairSampler
from cmjax.core.typing import Samples, TimeSampler
from cmjax.training.method import Method

READERS = {**readers.READERS, **scales.READERS, **groups.READERS}


def read_method(fields: Fields, spec: ModelSpec, steps: int) -> Method:
    """Reads the method that the section `objective` names, of a run of so many steps."""
    name = method_name(fields)
    row, loss, objective = METHODS[name], getattr(losses, name), Objective(fields, spec, steps)
    if row.paths and spec.path_name not in row.paths.split():
        wanted = " or ".join(row.paths.split())
        raise fields.error("name", f"needs config.model.path={wanted}, not {spec.path_name}")
    keywords = {p.name: p for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY}
    coupling = _coupling(objective)
    made = TIMES[row.times](objective)
    # the rate of a target average may follow the number of points N(k)
    objective = replace(objective, curriculum=made.get("schedules", {}).get("num_scales"))
    for keyword in keywords.values():
        made = _joined(made, _keyword(objective, keyword, row.instead))
    for also in row.also:
        made = _joined(made, READERS[also](objective))
    if coupling is not None and (row.independent or ("teacher" in keywords and made.get("teacher"))):
        raise fields.error("coupling", f"must be independent: config.objective.name={name!r} needs it so")
    return Method(**{"loss": loss, **made}, coupling=coupling, guided_by=_guided_by(fields))


def _keyword(o: Objective, parameter: inspect.Parameter, instead: Mapping[str, str | None]) -> Part:
    """Reads a keyword of a loss: by its reader, or without one as a field of its name, in its annotation's range."""
    name = instead.get(parameter.name, parameter.name)
    if name is None:
        return {}
    if name in READERS:
        return READERS[name](o)
    if not o.fields.has(name) and parameter.default is not parameter.empty:
        return {}
    value = o.fields.value(name)
    if problem := value_problem(value, parameter.annotation):
        raise o.fields.error(name, problem)
    return {"choices": {name: value}}


def _joined(made: Part, part: Part) -> Part:
    """Joins two parts; a mapping that both have gets the entries of both."""
    return {**made, **{name: {**made[name], **new} if name in made else new for name, new in part.items()}}


def _coupling(o: Objective) -> Callable[..., Samples] | None:
    """Reads the coupling (x0, noise, times, labels) -> the noise of each sample; None for independent noise."""
    if not o.fields.has("coupling"):
        return None
    chosen = o.fields.choice("coupling", choices.COUPLINGS, path=o.spec.path)
    if chosen.name == "independent":
        return None
    with o.fields.naming("coupling"):
        jax.eval_shape(lambda: chosen.make(jnp.zeros((2, 8)), jnp.zeros((2, 8)), jnp.ones(2), None))
    return chosen.make


def _guided_by(fields: Fields) -> str:
    """Finds the field that makes the target use the network's output without a label, "" for none.

    In a target ω·(…) + κ·u(x | c) + (1 − ω − κ)·u(x) it has no part where ω + κ = 1.   [Geng et al. 2025, MeanFlow]
    """
    # fields that the loss did not read are named as mistakes later, and do not count here
    read = [name for name in ("guidance", "blend") if fields.has(name) and name not in fields.remaining()]
    written = {name: fields.value(name) for name in read}
    guidance, blend = written.get("guidance") or 1, written.get("blend") or 0
    every = [guidance] if isinstance(guidance, int | float | str | Mapping) else list(guidance)
    if all(isinstance(scale, int | float) and scale + blend == 1 for scale in every):
        return ""
    return "blend" if every == [1] else "guidance"


def read_time_sampler(o: Objective, name: str = "times", **known: float) -> TimeSampler:
    """Reads the distribution of times in the field `name`; `known` are parameters that the method fixes."""
    constants = {constant: o.spec.constants[constant] for constant in ("sigma_data", "t_min", "t_max")}
    chosen = o.fields.choice(name, choices.TIME_SAMPLERS, path=o.spec.path, **constants, **known)
    sampler = o.fields.called(name, chosen)
    with o.fields.naming(name):
        # traced once, and not computed: a parameter out of its range is an error of this field
        jax.eval_shape(lambda: sampler(jax.random.key(0), 2))
    if chosen.name == "logit_normal" and o.spec.path_name in ("ve", "trig"):
        raise o.fields.error(name, f"gives times from 0 to 1, which are not of the path {o.spec.path_name}")
    return sampler


def _grid(o: Objective) -> Part:
    """Reads times that are neighbours on a Karras grid, which grows with the run."""
    curriculum = o.fields.call("curriculum", choices.CURRICULA, total_steps=o.steps)
    return _on_grid(o, curriculum, o.fields.choice("intervals", choices.INTERVALS).make)


def _halving_grid(o: Objective) -> Part:
    """Reads the grid of progressive distillation; each of its stages is a training with a teacher of its own."""
    curriculum = o.fields.call("curriculum", {"halving": curricula.halving}, total_steps=o.steps)
    part = _on_grid(o, curriculum, pairs.uniform_intervals)
    rate = ema_rates.kept_in_a_stage(curriculum=curriculum)
    schedules = {**part["schedules"], "target_rate": rate}
    return {**part, "target_rate": rate, "schedules": schedules, "stages": curriculum.starts.tolist()}


def _on_grid(o: Objective, curriculum: curricula.Curriculum, probabilities: Callable[..., Any]) -> Part:
    if curriculum.num_scales.min() < 2:
        raise o.fields.error("curriculum", "a grid has at least 2 points")
    ends = {name: o.spec.constants[name] for name in ("t_min", "t_max", "rho")}
    with o.fields.naming("intervals"):
        sampler = pairs.grid_pairs(curriculum, probabilities=probabilities, **ends)
    return {"times": sampler, "schedules": {"num_scales": curriculum}}


def _segments(o: Objective) -> Part:
    # n segments have n + 1 edges
    edges = o.spec.grid(o.fields.integer("segments", at_least=1, at_most=10**5) + 1)
    part = _grid(o)
    return {**part, "times": pairs.segmented(part["times"], edges)}


def _held_ratio(o: Objective) -> Part:
    """Reads TCM's times: a fraction of the batch is held at the boundary."""
    boundary, fraction = o.fields.number("boundary", above=0), read_fraction(o)
    return _by_ratio(o, times.held_at(read_time_sampler(o, lowest=boundary), at=boundary, fraction=fraction))


def _by_ratio(o: Objective, sampler: TimeSampler) -> Part:
    """Reads t of a distribution, and r, a fraction of it that grows with the run."""
    stage = o.fields.call("stages", {"equal": curricula.equal_stages}, total_steps=o.steps)
    gap = o.fields.call("gap", {"shrinking": pairs.shrinking_gap}, stage=stage)
    with o.fields.naming("gap"):
        jax.eval_shape(lambda: gap(jnp.ones(2), jnp.zeros((), int)))
    return {"times": pairs.ratio_pairs(sampler, gap), "schedules": {"stage": stage}}


def _two_times(o: Objective) -> PairSampler:
    """Reads t and s of a flow map between any two times; those with s = t may have a distribution of their own."""
    chosen = o.fields.choice("pairs", choices.PAIRS)
    names = ("times",) if chosen.name == "ending" else ("times", "times_s")
    samplers = [read_time_sampler(o, name) for name in names]
    with o.fields.naming("pairs"):
        made = chosen.make(*samplers)
    if o.fields.has("times_equal"):
        made = map_pairs.matched_by(made, read_time_sampler(o, "times_equal"))
    return made


def _parted(o: Objective) -> Part:
    """Reads t and s, and r between them at random or in the middle."""
    return {
        "times": map_pairs.parted(_two_times(o), middle=o.fields.one_of("split", ("uniform", "middle")) == "middle")
    }


def _near(o: Objective) -> Part:
    """Reads t and s, and r, a fraction of the way from t that falls with the run."""
    gap = o.fields.call("gap", {"falling": map_pairs.falling_fraction}, total_steps=o.steps)
    return {"times": map_pairs.near(_two_times(o), gap), "schedules": {"gap": gap}}


def _skipping_grid(o: Objective) -> Part:
    """Reads three times on a grid; a fraction of the batch, which learns to denoise, has one time of a distribution."""
    grid = read_grid(o)
    return {"times": map_pairs.skipping_grid_pairs(grid, read_time_sampler(o), fraction=read_fraction(o))}


def _dyadic(o: Objective) -> Part:
    t_max = o.spec.constants["t_max"]
    return {"times": o.fields.call("pairs", {"dyadic": pairs.dyadic_pairs}, fraction=read_fraction(o), t_max=t_max)}


TIMES: dict[str, Callable[[Objective], Part]] = {
    "single": lambda o: {"times": pairs.single(read_time_sampler(o))},
    "grid": _grid,
    "halving_grid": _halving_grid,
    "segments": _segments,
    "discrete": lambda o: {"times": o.fields.call("pairs", choices.DISCRETE_PAIRS)},
    "ratio": lambda o: _by_ratio(o, read_time_sampler(o)),
    "held_ratio": _held_ratio,
    "two": lambda o: {"times": _two_times(o)},
    "between": lambda o: {"times": pairs.between(_two_times(o), read_alpha(o))},
    "dyadic": _dyadic,
    "parted": _parted,
    "near": _near,
    "skipping_grid": _skipping_grid,
    **groups.TIMES,
}
