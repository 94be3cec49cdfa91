"""Every parameter that a recipe may give to a choice has a range, and within it nothing is infinite or undefined."""

import inspect
import math
from functools import partial
from typing import Annotated, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.config import averages, choices, groups, model, optimizer, samples
from cmjax.config.examples import AUGMENTATIONS
from cmjax.config.fields import ConfigError, Fields
from cmjax.core import curricula, map_pairs, pairs, paths, preconditioning
from cmjax.core.losses import alpha_flow, tangents

T = jnp.array([0.1, 0.5, 0.9])
X, Y = jnp.linspace(-1, 1, 24).reshape(2, 2, 2, 3), jnp.linspace(0.5, -0.5, 24).reshape(2, 2, 2, 3)
STEPS = jnp.array([0, 1, 500, 1000])
GIVEN = {"total_steps": 1000, "batch_size": 16, "peak": 1e-3, "sigma_data": 0.5, "t_min": 0.002, "t_max": 80.0}
OF_METHODS = {
    "dyadic": partial(pairs.dyadic_pairs, fraction=0.5, t_max=1.0),
    "skipping": pairs.skipping_pairs,
    "ddim_grid": pairs.ddim_grid_pairs,
    "sorted": partial(pairs.sorted_pairs, choices.TIME_SAMPLERS["logit_normal"](mean=0.0, std=1.0), T.__getitem__),
}


def solved(solver):
    noises = lambda index: jnp.ones((1, 2))  # noqa: E731
    return solver(lambda x, t: 0.5 * x, jnp.ones((1, 2)), jnp.array([8.0, 2.0, 0.5]), noises, path=paths.ve)


def of_path(path):
    return [f(T) for f in (path.a, path.b, path.da, path.db)]


def of_curriculum(curriculum):
    return [curriculum(step) for step in STEPS]


TABLES = {
    "times": (choices.TIME_SAMPLERS, {"path": paths.ve}, lambda make: make()(jax.random.key(0), 8)),
    "intervals": (choices.INTERVALS, {}, lambda f: f(np.geomspace(0.002, 80, 9))),
    "curriculum": (choices.CURRICULA, {}, lambda make: of_curriculum(make())),
    "halving": ({"halving": curricula.halving}, {}, lambda make: of_curriculum(make())),
    "stages": ({"equal": curricula.equal_stages}, {}, lambda make: make()(STEPS)),
    "target": (choices.RATES_BY_GRID, {"curriculum": curricula.constant(num_scales=9)},
               lambda make: [rate(STEPS) if (rate := make()) else 0.0]),
    "ode_step": (choices.ODE_STEPS, {"path": paths.ve}, lambda step: step(lambda x, t: -x, X, 2.0, 1.0)),
    "normalize": (choices.NORMALIZATIONS, {}, lambda f: f(X)),
    "distance": ({k: f for k, f in choices.DISTANCES.items() if k != "lpips"}, {},
                 lambda f: [f(X, Y), jax.grad(lambda x: f(x, Y).sum())(X)]),
    "gap": ({"shrinking": pairs.shrinking_gap, "level": map_pairs.level_gap}, {"stage": lambda step: step // 300},
            lambda make: make()(T, STEPS[:3])),
    "times of groups": (groups.TIMES_BELOW, {"path": paths.ve}, lambda make: make()(jax.random.key(0), T)),
    "grid": (groups.GRIDS, {}, lambda make: make()),
    "kernel": (groups.KERNELS, {}, lambda f: f(X - Y, jnp.ones((2, 2, 2)))),
    "group weight": (groups.WEIGHTINGS, {"path": paths.ve}, lambda f: f(T, T)),
    "derivative": (choices.DERIVATIVES, {}, lambda make: list(make()(lambda x, t: x * t, (X, 0.5), (Y, 1.0)))),
    "warmup": ({"ramp": tangents.ramp}, {}, lambda make: make()(STEPS)),
    "alpha": ({"sigmoid": alpha_flow.alpha_schedule}, {}, lambda make: make()(STEPS)),
    "alpha_weight": (choices.ALPHA_WEIGHTS, {}, lambda f: f(jnp.zeros(3), T)),
    "path": (model.PATHS, {}, lambda make: of_path(make())),
    "lcm": ({"lcm": preconditioning.lcm}, {"path": paths.vp()}, lambda f: list(f(T))[:4]),
    "rule": (optimizer.RULES, {}, lambda make: (rule := make()).update(X, rule.init(X), X)[0]),
    "schedule": (optimizer.LEARNING_RATES, {}, lambda make: [make()(step) for step in STEPS]),
    "averages": (averages.AVERAGES, {}, lambda make: [make()(step) for step in STEPS]),
    "solver": ({name: row.solve for name, row in samples.SOLVERS.items()}, {"to_zero": True}, solved),
    "augment": (AUGMENTATIONS, {}, lambda make: list(make().values())),
    "pairs": (OF_METHODS, {}, lambda make: jax.tree.leaves(make()(jax.random.key(0), 3, 0))),
}  # fmt: skip
"""By a field: its choices, what their reader gives them, and what is computed of one."""
BESIDE = {"s0": 2, "s1": 20, "start": 8, "end": 4, "steps": 1000, "skip": 20, "resize": 2}
"""Values of parameters that others depend on."""
WRONG = (0, -1, 1e30, math.nan, math.inf, "x", True, None, [1.0])


def settable(function, given):
    parameters = inspect.signature(function).parameters.values()
    bound = {*given, *getattr(function, "keywords", {})}
    return [
        p for p in parameters
        if (p.kind == p.KEYWORD_ONLY or p.default is not p.empty) and p.name not in bound | {"path", "to_zero"}
    ]  # fmt: skip


def example(parameter):
    """A value that is right, for a parameter that must be written."""
    if parameter.name in BESIDE:
        return BESIDE[parameter.name]
    if get_origin(parameter.annotation) is Annotated:
        of = get_args(parameter.annotation)[1]
        return 2 if of.high > 2 else 0.25
    return parameter.default


CASES = [
    (field, name, parameter)
    for field, (table, given, _) in TABLES.items()
    for name, function in table.items()
    for parameter in settable(function, {*given, *GIVEN})
]


def test_every_parameter_of_every_choice_has_a_range():
    for field, name, parameter in CASES:
        kind = get_origin(parameter.annotation)
        options = get_args(parameter.annotation)
        checked = kind is Annotated or kind is Literal or parameter.annotation is bool or type(None) in options
        assert checked, f"{field}={name}: {parameter}"
    assert len(CASES) > 50


@pytest.mark.parametrize(("field", "name", "parameter"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_value_is_refused_by_name_or_gives_finite_numbers(field, name, parameter):
    table, given, compute = TABLES[field]
    others = {p.name: example(p) for p in settable(table[name], {*given, *GIVEN}) if p.default is p.empty}
    within = [of for of in get_args(parameter.annotation) if hasattr(of, "high")]
    messages = []
    for value in (*WRONG, *(end for of in within for end in (of.low, of.high) if end < 2**31 - 1)):
        fields = Fields({field: {"name": name, **others, parameter.name: value}})
        try:
            choice = fields.choice(field, table, **given, **GIVEN)
            results = fields.called(field, partial_of(choice, compute))
        except ConfigError as error:
            messages.append(str(error))
            continue
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results)), (value, results)
    assert len(messages) >= 3, "a text, and what is not a number, are never right"
    assert all(text.startswith(f"config.{field}=") for text in messages)
    assert all(parameter.name in text.partition(": ")[2] for text in messages), messages


def partial_of(choice, compute):
    """The choice, such that making it computes what shows its values."""
    return type(choice)(choice.name, choice.parameters, lambda: compute(choice.make))
