"""A run's loss over its steps, as `metrics.jsonl` has it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.plotting.plots import line_plot, save_png
from cmjax.runs.status import objects, text_of
from cmjax.system.files import absolute

log = logging.getLogger(__name__)

PICTURE = "losses.png"
MANY = 60
"""With more points than this, their mean is drawn too, over the steps within 10% of each."""

MOST = 1000
"""Points of a curve that are drawn, evenly along its logarithmic axis."""


def recorded(workdir: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; none where it has no such file."""
    return list(objects(text_of(workdir / "metrics.jsonl").splitlines()))


def save_losses(workdir: Path, step: int) -> str | None:
    """Draw the loss of all steps up to `step` in `losses.png`; its path, or None where there is none."""
    try:
        records = [record for record in recorded(workdir) if "loss" in record]
        steps, losses = (np.array([record[name] for record in records], np.float64) for name in ("step", "loss"))
        drawn = np.isfinite(losses) & (steps > 0)
        if not drawn.any():
            return None
        title = f"{absolute(workdir).name}, step {step}: loss in training"
        save_png(workdir / PICTURE, _curve(steps[drawn], losses[drawn], title))
        return str(workdir / PICTURE)
    except OSError as error:  # a full disk is no reason to lose the summary
        log.warning("no image of the losses: %s", error.strerror or error)
        return None


def _curve(steps: np.ndarray, losses: np.ndarray, title: str) -> np.ndarray:
    """The losses over the ascending steps, and where there are many their mean in front of them."""
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
