"""Fields that earlier versions called by another name: in records, in recipes and on the command line."""

from collections.abc import Mapping
from typing import Any

FIELDS = {"figures": "metrics", "objective.share": "objective.fraction"}  # old name -> new name
RECORDS = {"peak_share": "peak_fraction"}  # of metrics.jsonl
SUMMARY = {"figures": "metrics", "figures_of": "metrics_of", **RECORDS}
VALUES = {name: f"{name}_pixels" for name in ("precision", "recall", "density", "coverage")}
"""Metrics of pixels at the end of a run: name in earlier summaries -> present name."""


def new_name(field: str) -> str:
    """Gives the present name of a field, as "metrics.num" for "figures.num"."""
    for old, new in FIELDS.items():
        if field == old or field.startswith(f"{old}."):
            return new + field.removeprefix(old)
    return field


def with_new_names(config: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Gives the configuration with every field under its present name."""
    renamed = {}
    for name, value in config.items():
        field = f"{section}{name}"
        value = with_new_names(value, f"{field}.") if isinstance(value, Mapping) else value
        renamed[new_name(field).rpartition(".")[2]] = value
    return renamed


def summary_with_new_names(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the content of a `summary.json` with its fields and its metrics under their present names."""
    renamed = {SUMMARY.get(name, name): value for name, value in summary.items()}
    rows = renamed.get("metrics")
    if isinstance(rows, Mapping):
        renamed["metrics"] = {
            row: {VALUES.get(name, name): value for name, value in values.items()} for row, values in rows.items()
        }
    return renamed
