"""`--mode=average`: power-function averages of other widths than were kept, from the checkpoints of a trained run.

cmjax average --workdir=runs/digits_ct --std=0.08 --out=runs/digits_ct_ema
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from cmjax.command_line import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.config.optimizer import power_widths, with_power_average
from cmjax.core.typing import Params
from cmjax.machine.files import to_path
from cmjax.machine.progress import progress
from cmjax.runs.record import check_new, write_model
from cmjax.runs.trained import Trained, open_trained
from cmjax.training.checkpoint import CheckpointError, restore_average, saved_steps
from cmjax.training.posthoc import coefficients, exponent

log = logging.getLogger(__name__)

FAR = 0.1
"""A residual, as `coefficients` gives it, from which on the user is warned."""


def declare(flags: Flags) -> None:
    flags.group("The average")
    flags.texts("std", "Its width as a share of the training, as 0.08, or several.")
    flags.text("out", None, "A new run's folder.")


def start(options: Options) -> None:
    run(options.workdir, stds=options.std, out=options.out)


def run(workdir: Path, *, stds: Sequence[str] | None, out: str | None) -> None:
    """Write a new run's folder for each width of `stds`: the average at the newest checkpoint of `workdir`.

    Args:   stds: as "0.08", a share of the training. out: the folder; of several widths each has its own, out-0.08.
    Raises: ConfigError where an option is wrong, or the run has no power averages or fewer than two checkpoints.
    """
    if not stds:
        raise ConfigError("--std is missing: name the width of the average, as --std=0.08, or several, as 0.05,0.1")
    if out is None:
        raise ConfigError("--out is missing: name the folder for the average, as --out=runs/x_ema")
    widths = {to_path(out if len(stds) == 1 else f"{out}-{text.strip()}"): _width(text) for text in stds}
    for folder in widths:
        check_new(folder, "--out")
    trained = open_trained(workdir)
    kept, steps = _kept_averages(trained), _checkpoints(workdir)
    snapshots = [(step, name) for step in steps for name in kept]
    times, tracked = [step for step, _ in snapshots], [kept[name] for _, name in snapshots]
    fits = [coefficients(times, tracked, step=steps[-1], std=std) for std in widths.values()]
    averages = _combine(trained, snapshots, [weights for weights, _ in fits])
    made_of = f"{', '.join(f'power(std={width})' for width in kept.values())} at steps {', '.join(map(str, steps))}"
    for (folder, std), (_, residual), params in zip(widths.items(), fits, averages, strict=True):
        _write(folder, trained, std, params, {"from": str(workdir), "format": "average", "made_of": made_of})
        print(_report(workdir, folder, f"power(std={std}) at step {steps[-1]}", made_of, residual))


def _width(text: str) -> float:
    try:
        std = float(text)
    except ValueError:
        raise ConfigError(f"--std={text}: must be a number, as 0.08") from None
    try:
        exponent(std)
    except ValueError as error:
        raise ConfigError(f"--std={text}: {error}") from error
    return std


def _kept_averages(trained: Trained) -> dict[str, float]:
    """The run's power averages: their names in a checkpoint, and their widths."""
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
    steps = sorted(saved_steps(workdir / "checkpoints"))
    if len(steps) < 2:
        raise ConfigError(
            f"--workdir={workdir} has {len(steps)} checkpoint(s), and an average is made of two or more; train with "
            "--config.checkpoint.keep_every set, as to a tenth of the steps"
        )
    return steps


def _combine(trained: Trained, snapshots: Sequence[tuple[int, str]], weights: Sequence[np.ndarray]) -> list[Params]:
    """For each of `weights` (n,) the sum of the n snapshots by it, each read once; summed in float64."""
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


def _write(folder: Path, trained: Trained, std: float, params: Params, imported: Mapping[str, str]) -> None:
    """The run's configuration, but for the average that is kept."""
    record, config = trained.record, with_power_average(trained.record["config"], std)
    imported = {"licence": "of the run's owner", **imported}
    write_model(folder, config, record["shape"], record["num_classes"], params, imported=imported, option="--out")


def _report(workdir: Path, folder: Path, average: str, made_of: str, residual: float) -> str:
    if residual > FAR:
        log.warning(
            "%s is %.0f%% off what --std asks for: name a width nearer to those kept, or keep more checkpoints in the "
            "next run, by a smaller config.checkpoint.keep_every",
            folder,
            100 * residual,
        )
    return "\n".join(
        (
            f"{workdir} -> {folder}",
            f"average     {average}",
            f"made of     {made_of}",
            f"residual    {100 * residual:.2g}% of the profile",
            f"sample      python -m cmjax.main --mode=sample --workdir={folder}",
        )
    )
