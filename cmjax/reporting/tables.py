"""The tables of a page: the runs, their starts, and their metrics beside those of real images."""

from collections.abc import Sequence
from dataclasses import dataclass

from cmjax.metrics.comparison import REALS
from cmjax.metrics.registry import better
from cmjax.reporting.parts import Part
from cmjax.runs.status import duration


@dataclass(frozen=True)
class Table:
    """rows: each with its name first, and whether it is of real images."""

    columns: list[str]
    rows: list[tuple[list[str], bool]]


def _table(parts: Sequence[Part], heads: Sequence[str], rows: Sequence[tuple[Part, list[str]]]) -> Table | None:
    """Makes the table of these rows; None without any. Where there are several runs, the first column names them."""
    if not rows:
        return None
    if len(parts) == 1:
        return Table(list(heads), [(cells, False) for _, cells in rows])
    return Table(["run", *heads], [([part.name, *cells], False) for part, cells in rows])


def overview(parts: Sequence[Part]) -> Table:
    """Shows the facts about each run, a column for each."""
    names = list(dict.fromkeys(name for part in parts for name in part.rows))
    rows = [([name, *(part.rows.get(name, "–") for part in parts)], False) for name in names]
    return Table([part.name for part in parts] if len(parts) > 1 else [""], rows)


def final_metrics(parts: Sequence[Part]) -> Table | None:
    """Shows the metrics at the runs' ends; None where there are none. Real images stand last of each run."""
    columns = list(dict.fromkeys(name for part in parts for row in part.metrics.values() for name in row))
    rows = []
    for part in parts:
        for name, row in sorted(part.metrics.items(), key=lambda item: item[0] in REALS):
            about = f"{part.name}: {name}" if len(parts) > 1 else name
            rows.append(([about, *(_value(row.get(column)) for column in columns)], name in REALS))
    return Table([_headed(column) for column in columns], rows) if rows else None


def evaluations(parts: Sequence[Part]) -> Table | None:
    """Shows the metrics of `--mode=evaluate`, each beside that of as many real images; None where there are none."""
    every = [(part, row) for part in parts for row in part.evaluations]
    metrics = list(dict.fromkeys(name for _, row in every for name in row["metrics"]))
    rows = []
    for part, row in every:
        real = row.get("real")
        real = real if isinstance(real, dict) else {}
        cells = [_word(row.get(name)) for name in ("step", "sampler", "evaluations", "num", "guidance")]
        for name in metrics:
            beside = f" ({_value(real[name])})" if name in real else ""
            cells.append(_value(row["metrics"].get(name)) + beside)
        rows.append((part, cells))
    heads = ["step", "sampler", "evaluations", "images", "guidance", *map(_headed, metrics)]
    return _table(parts, heads, rows)


def starts(parts: Sequence[Part]) -> Table | None:
    """Shows the runs' starts: their steps, what they took and ran on, and what each changed; None without any."""
    rows = []
    for part in parts:
        for start in part.status.starts:
            versions = start.get("versions") or {}
            made_by = f"cmjax {versions.get('cmjax', '–')}, jax {versions.get('jax', '–')}"
            made_by += f", commit {start['git_commit'][:10]}" if start.get("git_commit") else ""
            words = [start.get("started"), f"{start['from']:,} to {start['to']:,}", duration(start.get("seconds") or 0),
                     start.get("ended"), start.get("device"), made_by, "; ".join(start.get("changes") or []) or None,
                     start.get("command")]  # fmt: skip
            rows.append((part, list(map(_word, words))))
    return _table(parts, ["started", "steps", "took", "ended", "on", "by", "changes", "command"], rows)


def _headed(metric: str) -> str:
    return metric.replace("_", " ") + {"larger": " ↑", "smaller": " ↓", "": ""}[better(metric)]


def _word(value: object) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _value(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
