"""Writes `summary.json` at the end of a run, and formats it for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.config.run import Run
from cmjax.metrics.table import format_table
from cmjax.runs.loss_curve import save_losses
from cmjax.system.files import to_json, write_atomically


def losses_of(workdir: Path, steps: int) -> dict[str, str]:
    """Plots all losses, and gives the summary's entry of the image; empty where there are none."""
    path = save_losses(workdir, steps)
    return {"losses": path} if path else {}


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
