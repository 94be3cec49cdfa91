"""Describes a run's configuration in words, from its record, without building anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Description:
    """A run in words. data: the data set and its folder. teacher: the folder that it distils, "" for none."""

    method: str
    network: str
    data: str
    teacher: str
    steps: int
    batch_size: int


def describe(config: Mapping[str, Any]) -> Description:
    """Describe the configuration in a record."""
    # the record of imported weights has neither data nor an objective
    data, objective = config.get("data", {}), config.get("objective", {})
    return Description(
        method=objective.get("name") or config.get("model", {}).get("kind", "consistency"),
        network=config["net"]["name"],
        data=" in ".join(filter(None, (data.get("name"), data.get("data_dir")))) or "images",
        teacher=objective.get("teacher", ""),
        steps=config.get("steps", 0),
        batch_size=config.get("batch_size", 0),
    )
