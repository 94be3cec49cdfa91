"""`--mode=diagnose`: how consistent a model is, which noise levels its loss comes from, and its second step's time.

cmjax diagnose --workdir=runs/digits_cd
cmjax diagnose --workdir=runs/digits_ct --teacher=runs/digits_edm --num=1024
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError, about
from cmjax.core.model import BoundModel
from cmjax.core.ode import heun_step
from cmjax.core.paths import carry
from cmjax.core.sampling import gaussian
from cmjax.data.base import DataError
from cmjax.generation.sampling import class_labels, with_guidance
from cmjax.generation.search import GRID, SAMPLES, find_times, grid_of, score_along
from cmjax.metrics.comparison import METRICS
from cmjax.metrics.diagnostics import ConsistencyErrors, consistency_errors, level_range, trajectory_times
from cmjax.plotting.plots import line_plot, save_png
from cmjax.runs.losses import logged_losses, losses_by_level
from cmjax.runs.trained import Trained, open_for_sampling, open_trained
from cmjax.runs.workdir import output
from cmjax.system.errors import OtherProcessError
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.mesh import batch_sharding, distribute, make_mesh, replicated
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

TIMES = 40
"""Points of a trajectory."""

KEPT_AT_ONCE = 2**22
"""Pixels of all points of the trajectories that are followed together, on one device."""

Found = tuple[dict[str, Any], list[np.ndarray]]
"""What the JSON file holds, and the panels of the figure."""


def declare(flags: Flags) -> None:
    flags.group("What is measured")
    flags.checkpoint()
    flags.text("teacher", None, "The folder of the denoiser whose trajectories it is held against. Default: its own.")
    flags.one_of("metric", "fd", METRICS, "What the second step's time is chosen by.")
    flags.integer("num", 256, "Trajectories, and samples for each bin of noise levels.", at_least=1, at_most=10**5)
    flags.integer("seed", 0, "The same seed gives the same figures.", at_least=0)
    flags.text("out", None, "A folder. Default: <workdir>/diagnostics.")


def start(options: Options) -> None:
    names = ("teacher", "metric", "num", "seed", "out")
    run(options.model, data_dir=options.data_dir, **{name: getattr(options, name) for name in names})


def run(
    workdir: Path,
    *,
    teacher: str | None,
    metric: str,
    num: int,
    seed: int,
    out: str | None,
    data_dir: str | None = None,
) -> None:
    """Write `consistency`, `loss`, `training` and `times`, each a .png and a .json, as far as the run has them.

    Args:   teacher: a denoiser's folder; by default the run's own teacher. metric: one of `times.METRICS`.
            num: trajectories, and samples for each bin. out: the folder, by default `<workdir>/diagnostics`.
    Raises: ConfigError where a teacher does not fit or cannot be loaded, or the folder cannot be written.
    """
    trained = open_for_sampling(workdir, data_dir=data_dir)
    folder = output(to_path(out) if out else trained.folder / f"{trained.named}diagnostics")
    flow_map = trained.load(mesh=make_mesh())
    one_step = flow_map.kind != "denoiser"
    if teacher and not one_step:
        raise ConfigError(f"--teacher={teacher}: {workdir} is a denoiser itself, and not meant to be consistent")
    held_against = _teacher(trained, flow_map, teacher) if one_step else None
    # each is written as it comes: some take long, and a later one may fail
    write = partial(_write, folder, {"workdir": str(trained.folder), "checkpoint": trained.used_step})
    if held_against is not None:
        write("consistency", _consistency(trained, flow_map, *held_against, num=num, seed=seed))
    elif one_step:
        log.warning("no consistency error: %s has no teacher; name one, as --teacher=runs/digits_edm", workdir)
    if trained.recorded.has_data and not trained.imported:
        run = trained.run()
        write("loss", losses_by_level(trained, run, flow_map, num=num, seed=seed))
        if (logged := logged_losses(trained, run)) is not None:
            write("training", logged)
    else:
        log.warning("no loss: no run here trained %s, so that its step and its target are not known", workdir)
    if one_step and trained.recorded.has_data and flow_map.shape[-1] in (1, 3):
        if (times := _second_time(trained, flow_map, metric)) is not None:
            write("times", times)
    elif one_step:
        log.warning("no times: they are searched for by figures of a run's held-out images")


def _write(folder: Path, about: Mapping[str, Any], name: str, found: Found) -> None:
    numbers, panels = found
    try:
        on_first_process(lambda: write_atomically(folder / f"{name}.json", to_json({**about, **numbers})))
        on_first_process(lambda: save_png(folder / f"{name}.png", np.concatenate(panels)))
    except OSError as error:
        raise ConfigError(f"--out={folder} cannot be written: {error.strerror}") from error
    say(f"{name:12s} {folder / name}.png")


def _teacher(trained: Trained, student: BoundModel, named: str | None) -> tuple[Trained, BoundModel] | None:
    """The denoiser whose trajectories the student is held against: the one that is named, the one that it was
    distilled from, or the one that it started from; None where there is none."""
    recorded = trained.recorded
    folder = named or recorded.teacher or recorded.init_from
    if not folder:
        return None
    where = "--teacher" if named else "config.objective.teacher" if recorded.teacher else "config.init_from"
    try:
        other = open_trained(folder)
        teacher = other.load(mesh=make_mesh())
    except (ConfigError, RuntimeError) as error:
        raise ConfigError(f"{about(where, folder, error)}; name a teacher with --teacher") from error
    if teacher.kind != "denoiser":
        if named:
            raise ConfigError(f"--teacher={folder}: is a {teacher.kind}; a denoiser is needed")
        return None
    if teacher.shape != student.shape:
        raise ConfigError(f"{where}={folder}: is of images {teacher.shape}; the student's are {student.shape}")
    if other.model.class_conditional != trained.model.class_conditional:
        raise ConfigError(f"{where}={folder}: only one of this model and the student has classes; they must agree")
    return other, teacher


def _consistency(
    trained: Trained, student: BoundModel, other: Trained, teacher: BoundModel, *, num: int, seed: int
) -> Found:
    """The student along the teacher's PF-ODE: how much f changes from one time to the next, and to the end."""
    path, folder = student.path, str(other.folder)
    ranges = [level_range(model.path, model.t_min, model.t_max) for model in (student, teacher)]
    levels = max(low for low, _ in ranges), min(high for _, high in ranges)
    times = trajectory_times(TIMES, path, levels, rho=trained.model.constants["rho"])
    if teacher.path != path:
        teacher = replace(teacher, function=carry(teacher.function, teacher.path, path), path=path)
    # a model whose own end lies below the last time is held against clean data, the ODE's end
    to_clean = float(path.noise_level(jnp.asarray(student.t_min))) < levels[0]

    def measure(models, rows):
        (student, teacher), (key_data, (given, taught)) = models, rows
        keys = jax.random.wrap_key_data(key_data)
        return consistency_errors(
            lambda x, t: student(x, t, **given),
            lambda x, t: teacher(x, t, **taught),
            path.b(jnp.asarray(times[0])) * gaussian(keys, (len(keys), *student.shape)),
            jnp.asarray(times, jnp.float32),
            path=path,
            ode_step=heun_step,
            to_clean=to_clean,
        )

    errors, num = _in_parts(measure, trained, student, other, teacher, num=num, seed=seed)
    rms = {name: np.sqrt(value).tolist() for name, value in errors._asdict().items()}
    noise = np.asarray(path.noise_level(jnp.asarray(times)), np.float64).tolist()
    panel = line_plot(
        {
            "f to the end": (noise, rms["end"]),
            "f to f one time later": (noise[:-1], rms["step"]),
            "teacher's D to the end": (noise, rms["teacher_end"]),
        },
        title=f"{trained.title}: consistency error along {num} trajectories of {other.title}",
        x_label="noise level",
        y_label="RMS over pixels",
    )
    numbers = {"teacher": folder, "trajectories": num, "time": times.tolist(), "noise_level": noise, "rms": rms}
    return numbers, [panel]


def _in_parts(
    measure, trained: Trained, student: BoundModel, other: Trained, teacher: BoundModel, *, num: int, seed: int
) -> tuple[ConsistencyErrors, int]:
    """The mean of what `measure` finds of parts of the trajectories, `num` or a few more so that all are equally many,
    and their number. Both models are guided as the run's own samples are."""
    devices = jax.device_count()
    most = max(KEPT_AT_ONCE // (TIMES * int(np.prod(student.shape))), 1) * devices
    parts = -(-num // most)
    size = -(-num // (parts * devices)) * devices
    labels, guidance = class_labels(parts * size, trained.num_classes), trained.samples.guidance
    student, given = with_guidance(student, labels, guidance, takes=trained.model.guided)
    teacher, taught = with_guidance(teacher, labels, guidance, takes=other.model.guided)

    mesh = make_mesh()
    compiled = jax.jit(measure, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    keys, found = jax.random.key_data(jax.random.split(jax.random.key(seed), parts * size)), []
    with progress("trajectories", parts * size) as update:
        for part in range(parts):
            here = slice(part * size, (part + 1) * size)
            rows = jax.tree.map(lambda values, here=here: np.asarray(values[here]), (keys, (given, taught)))
            found.append(jax.device_get(compiled((student, teacher), distribute(rows, batch_sharding(mesh)))))
            update(here.stop, "")
    return jax.tree.map(lambda *values: np.mean(values, axis=0), *found), parts * size


def _second_time(trained: Trained, flow_map: BoundModel, metric: str) -> Found | None:
    """The metric of two-step samples over the second step's time, with the one that the search finds; None, with a word
    about why, where the data are not enough to search with."""
    try:
        best = find_times(trained, flow_map, 2, metric=metric)
    except (ConfigError, DataError, OtherProcessError) as error:
        log.warning("no times: %s", error)
        return None
    grid, score = grid_of(trained), score_along(trained, flow_map, metric)
    seconds, values = [grid[place] for place in range(1, GRID - 1, 4)], []
    with progress("second times", len(seconds) + 2) as update:
        for second in seconds:
            values.append(score((best[0], second)))
            update(len(values), f"{second:.4g}: {values[-1]:.3f}")
        of_best, of_one = score(best), score(best[:1])
    noise = np.asarray(flow_map.path.noise_level(jnp.asarray([*seconds, best[1]])), np.float64).tolist()
    panel = line_plot(
        {
            "two steps": (noise[:-1], values),
            f"found: {noise[-1]:.3g}, {of_best:.3g}": (noise[-1:], [of_best]),
            f"one step: {of_one:.3g}": ([noise[0], noise[-2]], [of_one, of_one]),
        },
        title=f"{trained.title}: {metric} of two steps by where the second stands, {SAMPLES} samples",
        x_label="noise level of the second step",
        y_label=f"{metric} ({'more' if METRICS[metric].larger_is_better else 'less'} is better)",
        log_y=False,
    )
    numbers = {"metric": metric, "first_time": best[0], "second_time": seconds, "noise_level": noise[:-1]}
    numbers |= {"value": values, "one_step": of_one}
    return {**numbers, "found": {"second_time": best[1], "noise_level": noise[-1], "value": of_best}}, [panel]
