"""Reads from a run's folder what the page shows of it."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cmjax.config.averages import long_average
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import all_recipes, load_recipe
from cmjax.data.base import DataError
from cmjax.data.sources import Source
from cmjax.reporting.images import grids_of
from cmjax.reporting.nearest import Nearest, nearest_of
from cmjax.runs.record import differences
from cmjax.runs.status import Status, at, duration, number, rows_of, versions
from cmjax.runs.train_step import bin_edges
from cmjax.runs.trained import open_trained
from cmjax.system.files import read_json_lines

log = logging.getLogger(__name__)

DIAGNOSTICS = {
    "consistency": "Consistency error along a teacher's trajectories",
    "loss": "Loss and gradient by noise level",
    "training": "Loss by noise level as training recorded it",
    "times": "Metrics by the second step's time",
}
"""The plots of `--mode=diagnose`, and their captions."""
Change = tuple[str, str, str]


@dataclass(frozen=True)
class Part:
    """Holds a run on a page.

    name: of its folder. rows: facts about it, in words. changes: fields of the recipe with the file's value and the
    run's; None where there was no file to compare. levels: labels of the noise levels of its records. grids:
    files by sampler and step. diagnostics: caption -> file. notes: what is missing and why.
    """

    name: str
    workdir: Path
    status: Status
    rows: dict[str, str]
    changes: list[Change] | None
    levels: list[str]
    grids: Mapping[str, Mapping[int, Path]]
    nearest: Nearest | None
    diagnostics: Mapping[str, Path]
    gallery: Path | None
    evaluations: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def evaluation_notes(self) -> list[str]:
        """Says which features and which reference the metrics of the newest evaluation are of."""
        try:
            metrics = self.evaluations[-1]["protocol"]["metrics"]
            texts = {name: f"{one['of']}, against {one['reference']}" for name, one in metrics.items()}
        except (IndexError, KeyError, TypeError, AttributeError):  # a row of another program's, or none
            return []
        return [
            f"{', '.join(name for name in texts if texts[name] == text)}: {text}"
            for text in dict.fromkeys(texts.values())
        ]

    @property
    def metrics(self) -> Mapping[str, Mapping[str, float | None]]:
        return self.status.summary.get("metrics") or {}


def read_part(name: str, workdir: Path, status: Status, open_source: Callable[[], Source]) -> Part:
    """Reads what the page shows of a run. open_source: opens its training images."""
    notes: list[str] = []
    folder, gallery = workdir / "diagnostics", workdir / "gallery.png"
    diagnostics = {caption: folder / f"{stem}.png" for stem, caption in DIAGNOSTICS.items()}
    return Part(
        name=name,
        workdir=workdir,
        status=status,
        rows=_rows(workdir, status),
        changes=_changes(status.record, notes),
        levels=_levels(workdir, status),
        grids=grids_of(workdir),
        nearest=_nearest(workdir, open_source, notes),
        diagnostics={caption: path for caption, path in diagnostics.items() if path.exists()},
        gallery=gallery if gallery.exists() else None,
        evaluations=[
            row
            for row in read_json_lines(workdir / "evaluation.jsonl")
            if isinstance(row.get("metrics"), dict) and isinstance(row.get("step"), int)
        ],
        notes=notes,
    )


def _rows(workdir: Path, status: Status) -> dict[str, str]:
    rows = dict(rows_of(workdir, status, at))
    rows |= {name: status.record.get(name) or "not recorded" for name in ("recipe", "device")}
    if "took" not in rows and "train_seconds" in status.summary:  # of a run that kept no history yet
        seconds = status.summary["train_seconds"]
        rows["time"] = f"{duration(seconds)} of training, at {number(status.summary['images_per_second'])} images/s"
    trained = status.step and not status.record.get("imported")
    if trained and (note := long_average(status.record["config"], 0, status.step)):
        rows["samples by"] = note
    rows["versions"] = versions(status.record)
    if not status.record.get("git_commit"):
        rows["commit"] = "not recorded"
    rows["folder"] = str(workdir)
    return rows


def _changes(record: Mapping[str, Any], notes: list[str]) -> list[Change] | None:
    name = record.get("recipe")
    if not isinstance(name, str):
        return None
    try:
        # a recipe is run: none but those of configs/ here, whatever a record may name
        stems = [stem for stem in all_recipes() if name == stem or name.startswith(f"{stem}-")]
        if not stems:
            raise ConfigError(f"configs/ has no recipe {name} here")
        stem = max(stems, key=len)  # of a and a-b, which are both recipes, a-b-c is a variant of a-b
        variant = name[len(stem) + 1 :]
        written = load_recipe(f"{stem}:{variant}" if variant else stem).to_dict()
    except ConfigError as error:
        notes.append(f"no comparison with the recipe's file: {error}")
        return None
    changes = differences(record["config"], written)
    return [(field, _shown(of_file), _shown(used)) for field, (used, of_file) in changes]


def configurations_differ(parts: Sequence[Part]) -> list[tuple[str, list[str]]]:
    """Lists the fields in which the runs' configurations differ, with each run's value."""
    first = parts[0].status.record["config"]
    changed = [dict(differences(first, part.status.record["config"])) for part in parts]
    rows = []
    for name in sorted({name for fields in changed for name in fields}):
        # runs are compared with the first one: where they differ in nothing, its value is theirs
        old = next(fields[name][0] for fields in changed if name in fields)
        rows.append((name, [_shown(fields[name][1] if name in fields else old) for fields in changed]))
    return rows


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) and value else json.dumps(value, default=str)


def _levels(workdir: Path, status: Status) -> list[str]:
    """Gives the noise levels by whose numbers the records sort the losses: `0.1 to 0.5`."""
    if not any(name.startswith("loss_bin_") for record in status.records[-50:] for name in record):
        return []
    try:
        trained = open_trained(workdir)
        edges = bin_edges(trained.model, trained.run().log.bins)
    except (ConfigError, ValueError, KeyError) as error:
        log.warning("%s: the noise levels of its records are not known: %s", workdir, error)
        return []
    return [f"{low:.2g} to {high:.2g}" for low, high in pairwise(edges)]


def _nearest(workdir: Path, open_source: Callable[[], Source], notes: list[str]) -> Nearest | None:
    try:
        trained = open_trained(workdir)
        if trained.imported or not trained.recorded.has_data:
            raise DataError("no run here trained these weights, and their data are not known")
        return nearest_of(workdir, open_source())
    except (ConfigError, DataError, OSError, ImportError, ValueError, KeyError) as error:
        notes.append(f"no nearest training images: {' '.join(str(error).split())}")
    return None
