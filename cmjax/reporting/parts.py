"""What a page tells of one run, read from its folder."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.config.optimizer import long_average
from cmjax.config.recipes import list_recipes, load_recipe
from cmjax.data.base import DataError
from cmjax.data.sources import Source
from cmjax.reporting.images import grids_of
from cmjax.reporting.nearest import Nearest, nearest_of
from cmjax.runs.record import differences
from cmjax.runs.setup import bin_edges
from cmjax.runs.status import Found, objects, text_of
from cmjax.runs.status_text import duration, number, rows_of, versions
from cmjax.runs.trained import open_trained

log = logging.getLogger(__name__)

DIAGNOSTICS = {
    "consistency": "Consistency error along a teacher's trajectories",
    "loss": "Loss and gradient by noise level",
    "training": "Loss by noise level as training recorded it",
    "times": "Figures by the second step's time",
}
"""The images of `--mode=diagnose`, and what they show."""
REAL = "training images"
"""The row of `figures` that holds those of real images."""

Change = tuple[str, str, str]


@dataclass(frozen=True)
class Part:
    """A run on a page.

    name: of its folder. rows: what it is, in words. changes: fields of the recipe with the file's value and the run's;
    compared: whether the file was there to compare. levels: labels of the noise levels of its records. grids: files by
    sampler and step. images: caption -> file. notes: what is missing and why.
    """

    name: str
    workdir: Path
    found: Found
    rows: dict[str, str]
    changes: list[Change]
    compared: bool
    levels: list[str]
    grids: Mapping[str, Mapping[int, Path]]
    nearest: Nearest | None
    diagnostics: Mapping[str, Path]
    gallery: Path | None
    evaluations: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def figures_of(self) -> list[str]:
        """What is said beside the figures."""
        said = self.found.summary.get("metrics_of")
        return [said] if isinstance(said, str) else []

    @property
    def evaluations_of(self) -> list[str]:
        """What the newest evaluation's figures are of."""
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
    def figures(self) -> Mapping[str, Mapping[str, float | None]]:
        return self.found.summary.get("metrics") or {}


def read_part(name: str, workdir: Path, found: Found, open_source: Callable[[], Source] | None) -> Part:
    """What the page tells of a run. open_source: its training images; None for those that its record names."""
    notes: list[str] = []
    changes, compared = _changes(found.record, notes)
    folder, gallery = workdir / "diagnostics", workdir / "gallery.png"
    diagnostics = {told: folder / f"{stem}.png" for stem, told in DIAGNOSTICS.items()}
    return Part(
        name=name,
        workdir=workdir,
        found=found,
        rows=_rows(workdir, found),
        changes=changes,
        compared=compared,
        levels=_levels(workdir, found),
        grids=grids_of(workdir),
        nearest=_nearest(workdir, found, open_source, notes),
        diagnostics={told: path for told, path in diagnostics.items() if path.exists()},
        gallery=gallery if gallery.exists() else None,
        evaluations=[row for row in objects(text_of(workdir / "evaluation.jsonl").splitlines()) if _is_row(row)],
        notes=notes,
    )


def _rows(workdir: Path, found: Found) -> dict[str, str]:
    rows = dict(rows_of(workdir, found))
    rows["recipe"] = found.record.get("recipe") or "not recorded"
    rows["device"] = found.record.get("device") or "not recorded"
    if "took" not in rows and "train_seconds" in found.summary:  # of a run that kept no history yet
        seconds = found.summary["train_seconds"]
        rows["time"] = f"{duration(seconds)} of training, at {number(found.summary['images_per_second'])} images/s"
    trained = found.step and not found.record.get("imported")
    if trained and (said := long_average(found.record["config"], 0, found.step)):
        rows["samples by"] = said
    rows["versions"] = versions(found.record)
    if not found.record.get("git_commit"):
        rows["commit"] = "not recorded"
    rows["folder"] = str(workdir)
    return rows


def _changes(record: Mapping[str, Any], notes: list[str]) -> tuple[list[Change], bool]:
    """How the run's configuration differs from the recipe's file, and whether that was there to look at."""
    name = record.get("recipe")
    if not isinstance(name, str):
        return [], False
    try:
        # a recipe is run: none but those of configs/ here, whatever a record may name
        stem = next(
            (s for s in sorted(list_recipes(), key=len, reverse=True) if name == s or name.startswith(f"{s}-")), ""
        )
        if not stem:
            raise ConfigError(f"configs/ has no recipe {name} here")
        variant = name[len(stem) + 1 :]
        written = load_recipe(f"{stem}:{variant}" if variant else stem).to_dict()
    except ConfigError as error:
        notes.append(f"no comparison with the recipe's file: {error}")
        return [], False
    changes = differences(record["config"], written)
    return [(field, _shown(of_file), _shown(used)) for field, (used, of_file) in changes], True


def configurations_differ(parts: Sequence[Part]) -> list[tuple[str, list[str]]]:
    """The fields in which the runs' configurations differ, with each run's value."""
    first = parts[0].found.record["config"]
    changed = [dict(differences(first, part.found.record["config"])) for part in parts]
    rows = []
    for name in sorted({name for fields in changed for name in fields}):
        old = next(fields[name][0] for fields in changed if name in fields)
        rows.append((name, [_shown(fields[name][1] if name in fields else old) for fields in changed]))
    return rows


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) and value else json.dumps(value, default=str)


def _levels(workdir: Path, found: Found) -> list[str]:
    """The noise levels by whose numbers the records sort the losses: `0.1 to 0.5`."""
    if not any(name.startswith("loss_bin_") for record in found.records[-50:] for name in record):
        return []
    try:
        trained = open_trained(workdir)
        edges = bin_edges(trained.model, trained.run().log.bins)
    except (ConfigError, ValueError, KeyError) as error:
        log.warning("%s: the noise levels of its records are not known: %s", workdir, error)
        return []
    return [f"{low:.2g} to {high:.2g}" for low, high in pairwise(edges)]


def _nearest(workdir: Path, found: Found, open_source: Callable[[], Source] | None, notes: list[str]) -> Nearest | None:
    try:
        trained = open_trained(workdir)
        if trained.imported or not trained.recorded.has_data:
            problem = "no run here trained these weights, and their data are not known"
        else:
            nearest = nearest_of(workdir, open_source() if open_source else trained.run().open_source("train"))
            if isinstance(nearest, Nearest):
                return nearest
            problem = nearest
    except (ConfigError, DataError, OSError, ImportError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
    notes.append(f"no nearest training images: {problem}")
    return None


def _is_row(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("metrics"), dict) and isinstance(row.get("step"), int)
