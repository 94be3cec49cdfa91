"""Parameters that no training made: folders of imported weights, and power-function averages of any width, which come
from the snapshots in a run's checkpoints."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.averages import power_widths
from cmjax.config.fields import ConfigError
from cmjax.core.typing import Params
from cmjax.runs.record import write_record
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import Workdir, writing
from cmjax.system.files import whole_folder
from cmjax.system.progress import progress
from cmjax.training.average_rates import EMA
from cmjax.training.posthoc import coefficients, exponent
from cmjax.training.saved import CheckpointError
from cmjax.training.saved_averages import restore_average, save_average


def check_new(folder: Path, option: str) -> None:
    """Raise ConfigError, naming the option, unless `folder` is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{option}={folder} exists and is not empty; name another")


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    shape: Sequence[int],
    num_classes: int | None,
    params: Params,
    *,
    imported: Mapping[str, str] | None,
    option: str,
    classes: Mapping[str, Any] | None = None,
    beside: Path | None = None,
) -> None:
    """Write a run's folder of parameters that no training in it made: the whole folder or nothing.

    Args:   folder: absent or empty. imported, classes: as in `write_record`. option: the one that named the folder.
            beside: a folder that is copied into it.
    Raises: ConfigError where it cannot be written.
    """
    with writing(folder, option), whole_folder(folder) as partial:
        save_average(partial / "checkpoints", params, EMA)
        if beside is not None:
            shutil.copytree(beside, partial / beside.name)
        # last: a folder without a record is no run's
        write_record(partial, config, tuple(shape), num_classes, imported=imported, classes=classes)


def width_of(text: str) -> float:
    """Parse --std, a fraction of the training. Raises: ConfigError."""
    try:
        std = float(text)
    except ValueError:
        raise ConfigError(f"--std={text}: must be a number, as 0.08") from None
    try:
        exponent(std)  # knows the range
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
    workdir, kept = trained.folder, power_widths(trained.record["config"])
    if trained.imported:
        raise ConfigError(f"--workdir={workdir} was made of {trained.imported['from']}; name the run that trained it")
    if not kept:
        raise ConfigError(
            f"--workdir={workdir} keeps no power averages, of which others could be made, but "
            f"{', '.join(trained.recorded.averages)}; train with "
            """--config.optimizer.averages='("power(std=0.05)","power(std=0.1)")'"""
        )
    steps = Workdir(workdir).steps
    if len(steps) < 2:
        raise ConfigError(
            f"--workdir={workdir} has {len(steps)} checkpoint(s), and an average is made of two or more; train with "
            "--config.checkpoint.keep_every set, as to a tenth of the steps"
        )
    # one snapshot for each pair of a checkpoint and a tracked width
    snapshots = [(step, name) for step in steps for name in kept]
    times, tracked = [step for step, _ in snapshots], [kept[name] for _, name in snapshots]
    fits = [coefficients(times, tracked, step=steps[-1], std=std) for std in stds]
    params = _combine(trained, snapshots, [weights for weights, _ in fits])
    return PostHoc(params, [residual for _, residual in fits], tuple(kept.values()), tuple(steps))


def _combine(trained: Trained, snapshots: Sequence[tuple[int, str]], weights: Sequence[np.ndarray]) -> list[Params]:
    """Sum the n snapshots by each of `weights` (n,), in float64; each snapshot is read once."""
    workdir, like = trained.folder, trained.parameter_shapes()
    sums = [jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), like) for _ in weights]
    with progress("reading averages", len(snapshots)) as update:
        for i, (step, name) in enumerate(snapshots):
            try:
                params = jax.device_get(restore_average(workdir / "checkpoints", lambda: like, name, step=step))
            except CheckpointError as error:
                raise CheckpointError(
                    f"checkpoint {step} of {workdir} cannot be read; move {workdir / 'checkpoints' / str(step)} away, "
                    "and the average is made of the others"
                ) from error
            for total, weight in zip(sums, weights, strict=True):
                # in place: the sums of a large network are most of the host's memory
                for sum_, array in zip(jax.tree.leaves(total), jax.tree.leaves(params), strict=True):
                    sum_ += weight[i] * array.astype(np.float64)
            update(i + 1, f"{name} at step {step}")
    return [jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), total, like) for total in sums]
