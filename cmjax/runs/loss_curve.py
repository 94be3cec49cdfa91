"""Plots a run's loss over its steps, from `metrics.jsonl`."""

import logging
from pathlib import Path

import numpy as np

from cmjax.plotting.plots import line_plot, save_png
from cmjax.runs.workdir import Workdir
from cmjax.system.files import absolute

log = logging.getLogger(__name__)

IMAGE = "losses.png"
MANY = 60
"""With more points than this, the mean over the steps within 10% of each is plotted too."""

MOST = 1000
"""Most points of a plotted curve, evenly along its logarithmic axis."""


def save_losses(workdir: Path, step: int) -> str | None:
    """Plot the loss of all steps up to `step` as `losses.png`. Returns: its path; None where no loss is recorded."""
    try:
        records = [record for record in Workdir(workdir).read_metrics() if "loss" in record]
        steps, losses = (np.array([record[name] for record in records], np.float64) for name in ("step", "loss"))
        shown = np.isfinite(losses) & (steps > 0)
        if not shown.any():
            return None
        title = f"{absolute(workdir).name}, step {step}: loss in training"
        save_png(workdir / IMAGE, _curve(steps[shown], losses[shown], title))
        return str(workdir / IMAGE)
    except OSError as error:  # a full disk is no reason to lose the summary
        log.warning("no plot of the losses: %s", error.strerror or error)
        return None


def _curve(steps: np.ndarray, losses: np.ndarray, title: str) -> np.ndarray:
    """Plot losses over ascending steps; where there are many, their local mean in front of them."""
    curves, many = {"recorded": losses}, len(steps) > MANY
    if many:
        curves = {"mean within 10%": _nearby_means(steps, losses), **curves}
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


def _nearby_means(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the values within 10% of each step, (n,). steps: ascending."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first, last = np.searchsorted(steps, steps / 1.1, "left"), np.searchsorted(steps, steps * 1.1, "right")
    return (sums[last] - sums[first]) / (last - first)
