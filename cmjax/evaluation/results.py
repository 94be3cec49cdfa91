"""Keeps the rows of `evaluation.jsonl`, one a setting, and shows them as a table and as curves."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.evaluation import OLD_FEATURES
from cmjax.config.samples import CHOICES
from cmjax.metrics.registry import better
from cmjax.metrics.table import format_table
from cmjax.plotting.plots import line_plot
from cmjax.system.files import write_atomically

log = logging.getLogger(__name__)

ROWS = "evaluation.jsonl"
SETTING = ("step", "average", "sampler", "times", "evaluations", "num", "seed", "guidance", "images", "labels")
SETTING += CHOICES
"""The fields that say what was evaluated, in words that people use. Rows of older versions have no labels: they were
balanced."""

CONTENT = "content"
"""The field of its key, of the parameters or of the images: a row without it, or with another, is of something else."""

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Reads all rows of the file; a line that is no row is left out, and the log says so."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            # features had other names in earlier versions
            for rule in row["protocol"].get("metrics", {}).values():
                rule["network"] = OLD_FEATURES.get(rule.get("network"), rule.get("network"))
            rows.append(row | {"metrics": dict(row["metrics"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            # a line that a kill cut short must not make the others unreadable
            log.warning("line %d of %s is no row, and is left out", number, path)
    return rows


def add_row(path: Path, row: Row) -> None:
    """Writes the row behind the others. Those of its setting whose content is another are left out."""
    rows = [one for one in read_rows(path) if not _same_setting(one, row) or one.get(CONTENT) == row[CONTENT]]
    _write_rows(path, [*rows, row])


def drop_rows_after(path: Path, step: int) -> None:
    """Leaves out the rows of later steps: a training that goes on from `step` reaches them with other parameters."""
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step") is None or row["step"] <= step]
    if len(kept) < len(rows):
        log.warning("%d rows of %s are of steps after %d, and are left out", len(rows) - len(kept), path, step)
        _write_rows(path, kept)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def row_there(rows: Sequence[Row], setting: Mapping[str, Any], protocol: Mapping[str, Any]) -> Row | None:
    """Finds the newest row of that setting and content whose metrics were computed by that protocol; None without one.
    The log says where there is a row of other content."""
    # rows come from a file: tuples and numpy numbers are equal to theirs as JSON alone
    setting, protocol = json.loads(json.dumps([setting, protocol]))
    same = [row for row in reversed(rows) if _same_setting(row, setting)]
    trusted = [row for row in same if row.get(CONTENT) == setting.get(CONTENT)]
    if same and not trusted:
        images = setting.get("images")
        what, other = (images, "images") if images else (f"step {setting['step']}, {setting['sampler']}", "parameters")
        log.warning("%s: the row that is there is of other %s, and is made anew", what, other)
    for row in trusted:
        rules = row["protocol"]
        if all(rules.get(name) == rule for name, rule in protocol.items() if name != "metrics"):
            # a row may hold more metrics than are asked for
            known = rules.get("metrics", {})
            if all(known.get(metric) == rule for metric, rule in protocol["metrics"].items()):
                return row
    return None


def _same_setting(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    older = {"labels": "balanced"}
    return all(row.get(name, older.get(name)) == other.get(name, older.get(name)) for name in SETTING)


def table(rows: Sequence[Row]) -> str:
    """Formats the rows as text: what differs between them and their metrics, and below what real images have."""
    lines = {name: row["metrics"] for name, row in zip(_names(rows), rows, strict=True)}
    if rows and rows[-1]["real"]:
        lines["real images"] = rows[-1]["real"]
    return format_table(lines, form=".4g")


def notes(row: Row) -> str:
    """Says which features the metrics of a row are of, and against what: a line for each network."""
    metrics_of: dict[str, list[str]] = {}
    for metric, about in row["protocol"].get("metrics", {}).items():
        against = f", against {about['reference']}" if about.get("reference") else ""
        metrics_of.setdefault(f"{about.get('of', about.get('network'))}{against}", []).append(metric)
    return "\n".join(f"{', '.join(metrics)}: {text}" for text, metrics in metrics_of.items())


def _names(rows: Sequence[Row]) -> list[str]:
    names = []
    for row in rows:
        if row.get("images"):
            names.append([str(row["images"])])
            continue
        times = ",".join(f"{t:.4g}" for t in row["times"]) if len(row["times"]) <= 4 else ""
        parts = [f"step {row['step']}", row["average"], f"{row['sampler']} {times}".strip(), f"{row['num']} images"]
        parts += [f"guidance {row['guidance']:g}"] if row["guidance"] != 1 else []
        parts += [f"{name} {row[name]}" for name in ("labels", *CHOICES) if row.get(name, "balanced") != "balanced"]
        names.append(parts)
    # what all rows share says nothing about one of them
    same = set.intersection(*map(set, names)) if len(names) > 1 else set()
    # the sampler stands in every name, so that none is empty
    return ["  ".join(part for part in parts if part not in same or part in parts[2:3]) for parts in names]


def curves(rows: Sequence[Row], title: str) -> np.ndarray | None:
    """Plots a panel for each metric, over what differs first: step, width of the average, or evaluations; None where
    nothing does."""
    # an adaptive solver has no number of evaluations to plot over
    rows = [row for row in rows if row["evaluations"] is not None]
    places: dict[str, Callable[[Row], float | None]] = {
        "step": lambda row: row["step"],
        "width of the average": _width,
        "network evaluations": lambda row: row["evaluations"],
    }
    differing = [label for label, place_of in places.items() if len({place_of(row) for row in rows} - {None}) > 1]
    if not differing:
        return None
    label, real = differing[0], rows[-1]["real"]
    placed = sorted(((place, row) for row in rows if (place := places[label](row)) is not None), key=lambda one: one[0])
    panels = []
    for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
        lines: dict[str, tuple[list[float], list[float | None]]] = {}
        for place, row in placed:
            if metric in row["metrics"]:
                x, y = lines.setdefault(row["average" if label == "network evaluations" else "sampler"], ([], []))
                x.append(place)
                y.append(row["metrics"][metric])
        if metric in real:
            lines["real images"] = ([placed[0][0], placed[-1][0]], [real[metric]] * 2)
        panel = line_plot(
            lines,
            title=f"{metric} of {title}",
            x_label=label,
            y_label=f"{metric} ({better(metric)} is better)",
            log_x=False,
            log_y=False,
            height=300,
        )
        panels.append(panel)
    return np.concatenate(panels)


def _width(row: Row) -> float | None:
    average = str(row["average"])
    if not average.startswith("power(std="):
        return None
    return float(average.removeprefix("power(std=").rstrip(")"))
