"""Reads the section `optimizer`: the update rule, its learning rate, and the averages of the parameters."""

from collections.abc import Sequence

import numpy as np
import optax

from cmjax.config.averages import AVERAGES
from cmjax.config.fields import Fields
from cmjax.core.typing import Schedule
from cmjax.nets.magnitude import normalize_weights
from cmjax.ranges import Positive, Rate
from cmjax.training import optimizer as optimizers
from cmjax.training.average_rates import TARGET, average_name


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
    rates: dict[str, Schedule] = {} if target_rate is None else {TARGET: target_rate}
    for i, average in enumerate(fields.choices("averages", AVERAGES, batch_size=batch_size)):
        rates[average_name(i)] = fields.called("averages", average)
    optimizer = optimizers.make_optimizer(
        rule,
        learning_rate=learning_rate,
        clip_norm=fields.number("clip_norm", at_least=0),
        weight_decay=fields.number("weight_decay", at_least=0),
        average_rates=rates,
        projection=PROJECTIONS.get(network),
    )
    return optimizer, learning_rate
