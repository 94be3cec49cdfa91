"""Makes power-function averages of any width from the snapshots in a run's checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.optimizer import power_widths
from cmjax.core.typing import Params
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import Workdir
from cmjax.system.progress import progress
from cmjax.training.checkpoint import restore_average
from cmjax.training.posthoc import coefficients, exponent
from cmjax.training.saved import CheckpointError


def width_of(text: str) -> float:
    """Parse --std, a fraction of the training. Raises: ConfigError."""
    try:
        std = float(text)
    except ValueError:
        raise ConfigError(f"--std={text}: must be a number, as 0.08") from None
    try:
        exponent(std)
    except ValueError as error:
        raise ConfigError(f"--std={text}: {error}") from error
    return std


@dataclass(frozen=True)
class PostHoc:
    """Averages of some widths at the newest checkpoint. kept: widths of the snapshots; steps: their checkpoints.
    residuals: of `coefficients`."""

    params: list[Params]
    residuals: list[float]
    kept: tuple[float, ...]
    steps: tuple[int, ...]


def post_hoc(trained: Trained, stds: Sequence[float]) -> PostHoc:
    """Make averages of these widths from all power averages in all checkpoints of the run.

    Raises: ConfigError where the run has no power averages, or fewer than two checkpoints.
    """
    kept, steps = _kept_averages(trained), _checkpoints(trained.folder)
    snapshots = [(step, name) for step in steps for name in kept]
    times, tracked = [step for step, _ in snapshots], [kept[name] for _, name in snapshots]
    fits = [coefficients(times, tracked, step=steps[-1], std=std) for std in stds]
    params = _combine(trained, snapshots, [weights for weights, _ in fits])
    return PostHoc(params, [residual for _, residual in fits], tuple(kept.values()), tuple(steps))


def _kept_averages(trained: Trained) -> dict[str, float]:
    """Names in a checkpoint of the run's power averages -> their widths."""
    workdir = trained.folder
    if trained.imported:
        raise ConfigError(f"--workdir={workdir} was made of {trained.imported['from']}; name the run that trained it")
    widths = power_widths(trained.record["config"])
    if not widths:
        raise ConfigError(
            f"--workdir={workdir} keeps no power averages, of which others could be made, but "
            f"{', '.join(trained.recorded.averages)}; train with "
            """--config.optimizer.averages='("power(std=0.05)","power(std=0.1)")'"""
        )
    return widths


def _checkpoints(workdir: Path) -> list[int]:
    steps = Workdir(workdir).steps
    if len(steps) < 2:
        raise ConfigError(
            f"--workdir={workdir} has {len(steps)} checkpoint(s), and an average is made of two or more; train with "
            "--config.checkpoint.keep_every set, as to a tenth of the steps"
        )
    return steps


def _combine(trained: Trained, snapshots: Sequence[tuple[int, str]], weights: Sequence[np.ndarray]) -> list[Params]:
    """Sum the n snapshots by each of `weights` (n,), in float64; each snapshot is read once."""
    workdir, like = trained.folder, trained.parameter_shapes()
    sums = [jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), like) for _ in weights]
    with progress("reading averages", len(snapshots)) as update:
        for i, (step, name) in enumerate(snapshots):
            try:
                params = jax.device_get(restore_average(workdir / "checkpoints", like, name, step=step))
            except CheckpointError as error:
                raise CheckpointError(
                    f"checkpoint {step} of {workdir} cannot be read; move {workdir / 'checkpoints' / str(step)} away, "
                    "and the average is made of the others"
                ) from error
            for total, weight in zip(sums, weights, strict=True):
                jax.tree.map(partial(_add_to, weight[i]), total, params)
            update(i + 1, f"{name} at step {step}")
    return [jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), total, like) for total in sums]


def _add_to(weight: float, total: np.ndarray, array: np.ndarray) -> None:
    total += weight * array.astype(np.float64)
