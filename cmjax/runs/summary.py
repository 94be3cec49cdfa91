"""Writes `summary.json` and `losses.png` at the end of a run, and formats the summary for the terminal."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.run import Run
from cmjax.metrics.table import format_table
from cmjax.plotting.plots import line_plot, save_png
from cmjax.runs.workdir import Workdir
from cmjax.system.files import absolute, to_json, write_atomically

log = logging.getLogger(__name__)

MANY = 60
"""With more points than this, the mean over the steps within 10% of each is plotted too."""
MOST = 1000
"""Most points of a plotted curve, evenly along its logarithmic axis."""


def losses_of(workdir: Path, step: int) -> dict[str, str]:
    """Plots the loss of all steps up to `step` as `losses.png`. Returns: the summary's entry of it; {} where no loss is
    recorded."""
    path = workdir / "losses.png"
    try:
        records = [record for record in Workdir(workdir).read_metrics() if "loss" in record]
        steps, losses = (np.array([record[name] for record in records], np.float64) for name in ("step", "loss"))
        shown = np.isfinite(losses) & (steps > 0)
        if not shown.any():
            return {}
        title = f"{absolute(workdir).name}, step {step}: loss in training"
        save_png(path, _curve(steps[shown], losses[shown], title))
        return {"losses": str(path)}
    except OSError as error:  # a full disk is no reason to lose the summary
        log.warning("no plot of the losses: %s", error.strerror or error)
        return {}


def write_summary(run: Run, workdir: Path, steps: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `summary.json` of a run that is finished or was stopped, and returns its content."""
    summary = {
        "workdir": str(workdir),
        "checkpoint": str(workdir / "checkpoints" / str(steps)),
        "finished": "stopped_by" not in more,
        "steps": steps,
        "images_seen": steps * run.batch_size,
        **more,
    }
    write_atomically(workdir / "summary.json", to_json(summary))
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """Formats the summary for the terminal."""
    below = ("samples", "metrics", "metrics_of")
    lines = [f"{name:26s} {value}" for name, value in summary.items() if name not in below]
    lines += [f"{'samples ' + name:26s} {path}" for name, path in summary["samples"].items()]
    if summary["metrics"]:
        lines += ["", format_table(summary["metrics"])]
        lines += [about] if (about := summary.get("metrics_of")) else []
    return "\n".join(lines)


def _curve(steps: np.ndarray, losses: np.ndarray, title: str) -> np.ndarray:
    """Plot losses over ascending steps; where there are many, their local mean in front of them."""
    curves, many = {"recorded": losses}, len(steps) > MANY
    if many:
        # each window's mean is a difference of two running sums: one pass, however long the run
        # (n + 1,): the sum of the first i losses at place i
        sums = np.concatenate([[0.0], np.cumsum(losses)])
        first, last = np.searchsorted(steps, steps / 1.1, "left"), np.searchsorted(steps, steps * 1.1, "right")
        curves = {"mean within 10%": (sums[last] - sums[first]) / (last - first), **curves}
    places = np.searchsorted(steps, np.geomspace(steps[0], steps[-1], MOST))
    shown = np.unique(np.minimum(places, len(steps) - 1))  # the last place may be rounded to one beyond
    return line_plot(
        {name: (steps[shown].tolist(), values[shown].tolist()) for name, values in curves.items()},
        title=title,
        x_label="step",
        y_label="loss",
        log_y=bool((losses > 0).all()),
        faint=("recorded",) if many else (),
    )
