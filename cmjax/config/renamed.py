"""Fields that earlier versions called by another name: in records, in recipes and on the command line."""

from collections.abc import Mapping
from typing import Any

FIELDS = {"figures": "metrics", "objective.share": "objective.fraction"}
"""Old name -> new name."""


def new_name(field: str) -> str:
    """The present name of a field, as "metrics.num" for "figures.num"."""
    for old, new in FIELDS.items():
        if field == old or field.startswith(f"{old}."):
            return new + field.removeprefix(old)
    return field


def with_new_names(config: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """The configuration with every field under its present name."""
    renamed = {}
    for name, value in config.items():
        field = f"{section}{name}"
        value = with_new_names(value, f"{field}.") if isinstance(value, Mapping) else value
        renamed[new_name(field).rpartition(".")[2]] = value
    return renamed
