"""Diagnoses a model: how consistent it is along a teacher's trajectories, and where its second step belongs.

Noise levels are b/a of a path, on which they mean the same as on every other.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from cmjax.config.fields import ConfigError, about
from cmjax.core.grids import karras_grid, level_range
from cmjax.core.model import BoundModel
from cmjax.core.ode import heun_step, ode_velocity
from cmjax.core.paths import Path, carry
from cmjax.core.sampling import gaussian
from cmjax.core.typing import BoundDenoiser, OdeStep, Samples
from cmjax.data.base import DataError
from cmjax.generation.sampling import chunk_of, class_labels, with_guidance
from cmjax.generation.search import GRID, SAMPLES, find_times, grid_of, score_along
from cmjax.metrics.registry import better
from cmjax.plotting.plots import line_plot
from cmjax.runs.trained import Trained, open_trained
from cmjax.system.errors import OtherProcessError
from cmjax.system.mesh import batch_sharding, chunks, distribute, make_mesh, replicated
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

TIMES = 40  # points of a trajectory
KEPT_AT_ONCE = 2**22  # pixels of all points of the trajectories that are followed together, on one device


class Diagnosis(NamedTuple):
    """Holds the results: numbers for a JSON file, and panels, images (h, w, 3) of plots, all of one width."""

    numbers: dict[str, Any]
    panels: list[np.ndarray]


class ConsistencyErrors(NamedTuple):
    """Holds mean squares over samples and pixels, for the n times of a trajectory.

    step: of f(x_t, t) − f(x_r, r), r the time after t. end: of f(x_t, t) − the trajectory's end. teacher_end: of
    D(x_t, t) − the end, by which the teacher's estimate is off.
    """

    step: Float[Array, " m"]
    end: Float[Array, " n"]
    teacher_end: Float[Array, " n"]


def consistency_errors(
    consistency_fn: Callable[[Samples, Array], Samples],
    denoise: BoundDenoiser,
    x: Samples,
    times: Float[Array, " n"],
    *,
    path: Path,
    ode_step: OdeStep,
    to_clean: bool,
) -> ConsistencyErrors:
    """Measures how far f is from constant along the probability-flow ODE of `denoise` from x (b, ...) at times[0].

    Zero throughout for the exact map to the end, on exact trajectories.   [Song et al. 2023, sec. 3, definition]

    Args: consistency_fn: (x, t) -> f(x, t). denoise: (x, t) -> D(x, t), of the same path.
          times: descending, n >= 2, with b(t) > 0; one `ode_step` between neighbours.
          to_clean: the end is D at the last state, the ODE's Euler step to noise level 0, and not that state itself.
    """
    velocity = ode_velocity(denoise, path)

    def look(x, interval):
        t, r = interval
        return ode_step(velocity, x, t, r), (consistency_fn(x, t), denoise(x, t))

    # (n − 1, b, h, w, c) each: f and D before every step; the last time follows below
    last, (estimates, denoised) = jax.lax.scan(look, x, (times[:-1], times[1:]))
    at_last = denoise(last, times[-1])
    estimates = jnp.concatenate([estimates, consistency_fn(last, times[-1])[None]])
    end = at_last if to_clean else last
    # self-consistency (sec. 3): f is the same at neighbouring times, and is the trajectory's end
    return ConsistencyErrors(
        step=_mean_square(estimates[:-1] - estimates[1:]),
        end=_mean_square(estimates - end[None]),
        teacher_end=_mean_square(jnp.concatenate([denoised, at_last[None]]) - end[None]),
    )


def _mean_square(differences: Float[Array, "n b *dims"]) -> Float[Array, " n"]:
    return jnp.mean(differences.reshape(len(differences), -1) ** 2, axis=1)


def trajectory_times(n: int, path: Path, levels: tuple[float, float], *, rho: float) -> Float64[np.ndarray, " n"]:
    """Gives descending times of `path` at a Karras grid of noise levels between the two."""
    low, high = levels
    return np.asarray(path.time_at(jnp.asarray(karras_grid(n, t_min=low, t_max=high, rho=rho)[::-1])), np.float64)


def _noise_levels(path: Path, times: Any) -> list[float]:
    return np.asarray(path.noise_level(jnp.asarray(times)), np.float64).tolist()


def teacher_of(trained: Trained, student: BoundModel, named: str | None) -> tuple[Trained, BoundModel] | None:
    """Loads the denoiser whose trajectories the student is compared with: the one that is named, the one that it was
    distilled from, or the one that it started from; None where there is none.

    Raises: ConfigError where it cannot be loaded, or does not fit the student.
    """
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


def consistency(
    trained: Trained, student: BoundModel, other: Trained, teacher: BoundModel, *, num: int, seed: int
) -> Diagnosis:
    """Measures how much the student's f changes along the teacher's PF-ODE: to the next time, and to the end."""
    path, folder = student.path, str(other.folder)
    ranges = [level_range(model.path, model.t_min, model.t_max) for model in (student, teacher)]
    levels = max(low for low, _ in ranges), min(high for _, high in ranges)
    times = trajectory_times(TIMES, path, levels, rho=trained.model.constants["rho"])
    # both networks must see the same x_t: the teacher is carried to the student's path
    if teacher.path != path:
        teacher = replace(teacher, function=carry(teacher.function, teacher.path, path), path=path)
    # a model whose end lies below the last time is compared with clean data, the ODE's end
    to_clean = float(path.noise_level(jnp.asarray(student.t_min))) < levels[0]

    def measure(models, rows):
        (student, teacher), (key_data, (conditions, of_teacher)) = models, rows
        keys = jax.random.wrap_key_data(key_data)
        return consistency_errors(
            lambda x, t: student(x, t, **conditions),
            lambda x, t: teacher(x, t, **of_teacher),
            # the prior at the highest level that both models were trained for
            path.b(jnp.asarray(times[0])) * gaussian(keys, (len(keys), *student.shape)),
            jnp.asarray(times, jnp.float32),
            path=path,
            ode_step=heun_step,
            to_clean=to_clean,
        )

    errors, num = _in_parts(measure, trained, student, other, teacher, num=num, seed=seed)
    rms = {name: np.sqrt(value).tolist() for name, value in errors._asdict().items()}
    noise = _noise_levels(path, times)
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
    return Diagnosis(numbers, [panel])


def _in_parts(
    measure, trained: Trained, student: BoundModel, other: Trained, teacher: BoundModel, *, num: int, seed: int
) -> tuple[ConsistencyErrors, int]:
    """Applies `measure` to parts of the trajectories, and averages its errors; returns the number of trajectories, too:
    `num`, or a few more so that the parts are equal. Both models are guided as the run's samples are."""
    # the scan keeps a sample's estimates at all times: each takes the memory of TIMES images
    size = chunk_of(num, (TIMES, *student.shape), jax.device_count(), pixels=KEPT_AT_ONCE, least=1)
    num = -(-num // size) * size
    labels, guidance = class_labels(num, trained.num_classes), trained.samples.guidance
    student, conditions = with_guidance(student, labels, guidance, takes=trained.model.guided)
    teacher, of_teacher = with_guidance(teacher, labels, guidance, takes=other.model.guided)

    mesh, errors = make_mesh(), []
    compiled = jax.jit(measure, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    # as numbers, since typed keys are no host arrays that can be cut into parts; `measure` turns them back
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), num))
    with progress("trajectories", num) as update:
        for rows in chunks((keys, (conditions, of_teacher)), size):
            errors.append(jax.device_get(compiled((student, teacher), distribute(rows, batch_sharding(mesh)))))
            update(len(errors) * size, "")
    # the parts are equally long: the mean of their means is that of all
    return jax.tree.map(lambda *values: np.mean(values, axis=0), *errors), num


def second_times(trained: Trained, flow_map: BoundModel, metric: str) -> Diagnosis | None:
    """Computes the metric of two-step samples over the second step's time, and the best time by search; None where the
    data are not enough to search with, and the log says why."""
    try:
        best = find_times(trained, flow_map, 2, metric=metric)
    except (ConfigError, DataError, OtherProcessError) as error:
        log.warning("no times: %s", error)
        return None
    grid, score = grid_of(trained), score_along(trained, flow_map, metric)
    # every fourth place: each takes a thousand samples
    seconds, values = [grid[place] for place in range(1, GRID - 1, 4)], []
    with progress("second times", len(seconds) + 2) as update:
        for second in seconds:
            values.append(score((best[0], second)))
            update(len(values), f"{second:.4g}: {values[-1]:.3f}")
        of_best, of_one = score(best), score(best[:1])
    noise = _noise_levels(flow_map.path, [*seconds, best[1]])
    panel = line_plot(
        {
            "two steps": (noise[:-1], values),
            f"found: {noise[-1]:.3g}, {of_best:.3g}": (noise[-1:], [of_best]),
            f"one step: {of_one:.3g}": ([noise[0], noise[-2]], [of_one, of_one]),
        },
        title=f"{trained.title}: {metric} of two steps by where the second stands, {SAMPLES} samples",
        x_label="noise level of the second step",
        y_label=f"{metric} ({better(metric)} is better)",
        log_y=False,
    )
    numbers = {"metric": metric, "first_time": best[0], "second_time": seconds, "noise_level": noise[:-1]}
    found = {"second_time": best[1], "noise_level": noise[-1], "value": of_best}
    numbers |= {"value": values, "one_step": of_one, "found": found}
    return Diagnosis(numbers, [panel])
