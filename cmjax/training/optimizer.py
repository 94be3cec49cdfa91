"""The optimizer: a chain of Optax transformations whose last member holds every average of the parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from cmjax.core.typing import Params, Schedule

TARGET = "target"
"""The name of the average that consistency objectives use as θ⁻."""


class AveragesState(NamedTuple):
    count: Int[Array, ""]
    averages: dict[str, Params]


def track_averages(rates: Mapping[str, Schedule]) -> optax.GradientTransformation:
    """Exponential moving averages of the *updated* parameters, avg ← μ(k)·avg + (1 − μ(k))·θ_{k+1}.

    Leaves the updates as they are. Stands last in a chain, where the updates are the ones that will be applied.

    Args: rates: for each average its name and the rate μ as a function of the optimizer step.
    """

    def init(params):
        copies = {name: jax.tree.map(jnp.copy, params) for name in rates}
        return AveragesState(jnp.zeros((), jnp.int32), copies)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("track_averages needs the parameters: call update(updates, state, params)")
        updated = optax.apply_updates(params, updates)
        averages = {
            name: optax.incremental_update(updated, state.averages[name], 1 - rate(state.count))
            for name, rate in rates.items()
        }
        return updates, AveragesState(state.count + 1, averages)

    return optax.GradientTransformation(init, update)


def averages(opt_state: optax.OptState) -> dict[str, Params]:
    """The averages held by the last member of the chain, by name."""
    last = opt_state[-1]
    if not isinstance(last, AveragesState):
        raise ValueError("the optimizer state does not end in the averages of the parameters")
    return last.averages


def make_optimizer(
    scale_by_rule: Callable[..., optax.GradientTransformation],
    *,
    learning_rate: Schedule,
    clip_norm: float | None,
    weight_decay: float,
    average_rates: Mapping[str, Schedule],
    **rule: Any,
) -> optax.GradientTransformation:
    """clip → rule (Adam, RAdam, …) → decoupled weight decay → learning rate → averages.

    Args: scale_by_rule: such as `optax.scale_by_radam`, called with `rule`. clip_norm: global gradient norm, or None.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        scale_by_rule(**rule),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
        track_averages(average_rates),
    )
