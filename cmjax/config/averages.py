"""Reads the field `optimizer.averages`: the averages of the parameters that a run keeps."""

from collections.abc import Mapping
from typing import Any

from cmjax.config.fields import Choice, Fields, by_name
from cmjax.core.typing import Schedule
from cmjax.training.average_rates import average_name, ema, fraction_of_first, half_life, power

AVERAGES = by_name(ema, half_life, power)


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
    fraction = fraction_of_first(rate, updates, first=updates // 10)
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
    return {average_name(i): one.parameters["std"] for i, one in chosen if one.name == "power"}


def _chosen(written: Any, batch_size: int) -> list[Choice]:
    return Fields({"averages": written}).choices("averages", AVERAGES, batch_size=batch_size)


def with_power_average(config: Mapping[str, Any], std: float) -> dict[str, Any]:
    """Gives the configuration that keeps one power-function average, of width `std`."""
    return {**config, "optimizer": {**config["optimizer"], "averages": [f"power(std={std})"]}}
