"""Reads the section `optimizer`: the update rule, its learning rate, and the averages of the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from cmjax.config.fields import Choice, Fields, by_name
from cmjax.core.typing import Schedule
from cmjax.nets.magnitude import normalize_weights
from cmjax.ranges import Positive, Rate
from cmjax.training import optimizer as optimizers


def _adam(*, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8, nesterov: bool = False):
    return optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)


def _radam(
    *, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8, threshold: Positive = 5.0, nesterov: bool = False
):
    return optax.scale_by_radam(b1, b2, eps, threshold=threshold, nesterov=nesterov)


RULES = {"adam": _adam, "radam": _radam, "muon": optimizers.muon}
LEARNING_RATES = {
    "constant": optimizers.constant_schedule,
    "cosine": optimizers.cosine_schedule,
    "linear": optimizers.linear_schedule,
    "inverse_sqrt": optimizers.inverse_sqrt_schedule,
}
AVERAGES = by_name(optimizers.ema, optimizers.half_life, optimizers.power)
PROJECTIONS = {"edm2": normalize_weights}  # the projection of a network's updated parameters, by its name


def read_optimizer(
    fields: Fields,
    *,
    steps: int,
    batch_size: int,
    network: str,
    target_rate: Schedule | None = None,
    stages: Sequence[int] = (),
) -> tuple[optax.GradientTransformation, Schedule]:
    """Makes the optimizer with all averages that it tracks, and its learning rate.

    Args: network: its name. target_rate, stages: those of the `Method`.
    """
    rule = fields.call("rule", RULES)
    starts: Sequence[int] = (0,)
    if fields.boolean("restart_each_stage", absent=False):
        if not stages:
            problem = "config.objective has no stages with a teacher of their own, as pd has"
            raise fields.error("restart_each_stage", problem)
        # the first stage begins with the run, where the rule's state is new anyhow
        starts, rule = stages, optimizers.restarted(rule, stages[1:])
    known = {"peak": fields.number("learning_rate", above=0), "batch_size": batch_size}
    # Each stage's schedule ends where the next begins; without restarts there is one stage.
    lengths = np.diff([*starts, steps]).tolist()
    schedules = [fields.call("schedule", LEARNING_RATES, total_steps=length, **known) for length in lengths]
    learning_rate = optax.join_schedules(schedules, starts[1:])
    rates: dict[str, Schedule] = {} if target_rate is None else {optimizers.TARGET: target_rate}
    for i, average in enumerate(fields.choices("averages", AVERAGES, batch_size=batch_size)):
        rates[optimizers.average_name(i)] = fields.called("averages", average)
    optimizer = optimizers.make_optimizer(
        rule,
        learning_rate=learning_rate,
        clip_norm=fields.number("clip_norm", at_least=0),
        weight_decay=fields.number("weight_decay", at_least=0),
        average_rates=rates,
        projection=PROJECTIONS.get(network),
    )
    return optimizer, learning_rate


def average_texts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the averages that a recorded configuration keeps, as they are written."""
    written = config["optimizer"]["averages"]
    return (str(written),) if isinstance(written, str | Mapping) else tuple(map(str, written))


LONG = 0.05
"""The user is warned where parameters from the first tenth of the training have this weight in an average, or more."""


def long_average(config: Mapping[str, Any], index: int, updates: int) -> str | None:
    """Warns of an average in which the first parameters have a large weight after so many updates; None otherwise.

    A device computes it."""
    if "batch_size" not in config:  # weights that no training here made
        return None
    average = _chosen(config["optimizer"]["averages"], config["batch_size"])[index]
    problem = _too_much_of_first(average.make(), updates)
    remedy = "a shorter one forgets them, as power(std=0.1), whose length is a fraction of any training"
    return problem and f"the average {average} after {updates:,} updates: {problem}; {remedy}"


def long_target(config: Mapping[str, Any], rate: Schedule | None, updates: int) -> str | None:
    """Warns of the target's average in the same way, where the configuration chooses its rate."""
    chosen = config["objective"].get("target")
    if rate is None or chosen is None:
        return None
    if problem := _too_much_of_first(rate, updates):
        return f"config.objective.target={chosen!r} after {updates:,} updates: {problem}; a smaller rate forgets them"
    return None


def _too_much_of_first(rate: Schedule, updates: int) -> str | None:
    fraction = optimizers.fraction_of_first(rate, updates, first=updates // 10)
    return f"{fraction:.0%} of it is parameters from before update {updates // 10 + 1:,}" if fraction > LONG else None


def same_but_for_start(old: Any, new: Any) -> bool:
    """Says whether two fields `averages` differ at most in how their averages are corrected for their start."""
    # the correction is set aside: it does not change what a checkpoint holds
    old, new = (
        [(one.name, {**one.parameters, "corrected": None}) for one in _chosen(written, batch_size=1)]
        for written in (old, new)
    )
    return old == new


def uncorrected(written: Any) -> Any:
    """Gives the field `averages` of a run whose code had no correction for the start, as that is written now."""
    if isinstance(written, Mapping):
        return {**written, "corrected": False} if written.get("name") == "ema" else written
    if isinstance(written, str):
        return f"{written.strip().rstrip(' ,)')}, corrected=False)" if written.strip().startswith("ema(") else written
    return [uncorrected(one) for one in written]


def power_widths(config: Mapping[str, Any]) -> dict[str, float]:
    """Lists the power-function averages that a recorded configuration keeps: their names in a checkpoint, and
    widths."""
    chosen = enumerate(_chosen(config["optimizer"]["averages"], batch_size=1))
    return {optimizers.average_name(i): one.parameters["std"] for i, one in chosen if one.name == "power"}


def _chosen(written: Any, batch_size: int) -> list[Choice]:
    return Fields({"averages": written}).choices("averages", AVERAGES, batch_size=batch_size)


def with_power_average(config: Mapping[str, Any], std: float) -> dict[str, Any]:
    """Gives the configuration that keeps one power-function average, of width `std`."""
    return {**config, "optimizer": {**config["optimizer"], "averages": [f"power(std={std})"]}}
