"""`--mode=diagnose`: measures a model's consistency, its loss by noise level, and the best time of a second step.

cmjax diagnose --workdir=runs/digits_cd
cmjax diagnose --workdir=runs/digits_ct --teacher=runs/digits_edm --num=1024

From Python: diagnose.run("runs/digits_cd", num=1024)
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError, suggestion
from cmjax.config.renamed import VALUES
from cmjax.data.base import kind_of
from cmjax.evaluation.diagnosis import Diagnosis, consistency, second_times, teacher_of
from cmjax.evaluation.diagnosis_losses import logged_losses, losses_by_level
from cmjax.metrics.comparison import RUN_VALUES
from cmjax.plotting.plots import save_png
from cmjax.runs.trained import open_for_sampling
from cmjax.runs.workdir import output, writing
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import on_first_process, say

log = logging.getLogger(__name__)


def declare(flags: Flags) -> None:
    flags.group("What is measured")
    flags.checkpoint()
    flags.text(
        "teacher", None, "The folder of the denoiser whose trajectories it is compared with. Default: the run's."
    )
    flags.text("metric", "fd", f"What the second step's time is chosen by: {', '.join(RUN_VALUES)}.")
    flags.integer("num", 256, "Trajectories, and samples for each bin of noise levels.", at_least=1, at_most=10**5)
    flags.integer("seed", 0, "The same seed gives the same numbers.", at_least=0)
    flags.text("out", None, "A folder. Default: <workdir>/diagnostics.")


def start(options: Options) -> None:
    run(options.model, data_dir=options.data_dir, **options.flags)


def run(
    workdir: str | Path,
    *,
    teacher: str | None = None,
    metric: str = "fd",
    num: int = 256,
    seed: int = 0,
    out: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Writes `consistency`, `loss`, `training` and `times`, each a .png and a .json, as far as the run has them.

    Args:   workdir: a run's folder, or a checkpoint's. teacher: a denoiser's folder; None for the run's teacher.
            metric: one of `comparison.RUN_VALUES`. num: trajectories, and samples for each bin. out: the folder, by
            default `<workdir>/diagnostics`. data_dir: where the data are now.
    Raises: ConfigError where a teacher does not fit or cannot be loaded, or the folder cannot be written.
    """
    metric = VALUES.get(metric, metric)
    if metric not in RUN_VALUES:
        raise ConfigError(f"--metric={metric}: must be one of {', '.join(RUN_VALUES)}{suggestion(metric, RUN_VALUES)}")
    trained = open_for_sampling(workdir, data_dir=data_dir)
    folder = output(to_path(out) if out else trained.folder / f"{trained.named}diagnostics")
    flow_map = trained.load(mesh=make_mesh())
    one_step = flow_map.kind != "denoiser"
    if teacher and not one_step:
        raise ConfigError(f"--teacher={teacher}: {workdir} is a denoiser itself, and not meant to be consistent")
    compared_with = teacher_of(trained, flow_map, teacher) if one_step else None
    # each is written as it comes: some take long, and a later one may fail
    write = partial(_write, folder, {"workdir": str(trained.folder), "checkpoint": trained.used_step})
    if compared_with is not None:
        write("consistency", consistency(trained, flow_map, *compared_with, num=num, seed=seed))
    elif one_step:
        log.warning("no consistency error: %s has no teacher; name one, as --teacher=runs/digits_edm", workdir)
    if trained.recorded.has_data and not trained.imported:
        of_run = trained.run()
        write("loss", losses_by_level(trained, of_run, flow_map, num=num, seed=seed))
        if (logged := logged_losses(trained, of_run)) is not None:
            write("training", logged)
    else:
        log.warning("no loss: no run here trained %s, so that its step and its target are not known", workdir)
    if one_step and trained.recorded.has_data and kind_of(flow_map.shape) != "latents":
        if (times := second_times(trained, flow_map, metric)) is not None:
            write("times", times)
    elif one_step:
        log.warning("no times: they are searched for by metrics of a run's held-out images")


def _write(folder: Path, about: Mapping[str, Any], name: str, diagnosis: Diagnosis) -> None:
    with writing(folder):
        on_first_process(lambda: write_atomically(folder / f"{name}.json", to_json({**about, **diagnosis.numbers})))
        on_first_process(lambda: save_png(folder / f"{name}.png", np.concatenate(diagnosis.panels)))
    say(f"{name:12s} {folder / name}.png")
