"""Diagnoses a run's loss by noise level: that of its newest checkpoint, and as its training recorded it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.core.batch import Times
from cmjax.core.grids import bin_of
from cmjax.core.model import BoundModel
from cmjax.core.pairs import PairSampler
from cmjax.core.typing import PRNGKey, Step
from cmjax.data.batches import Batches
from cmjax.evaluation.diagnosis import Diagnosis
from cmjax.nets.adapter import parameter_shapes
from cmjax.plotting.plots import line_plot
from cmjax.runs.prompted_data import empty_of
from cmjax.runs.train_step import bin_edges, inputs_of
from cmjax.runs.trained import Trained, load
from cmjax.runs.workdir import Workdir
from cmjax.system.mesh import batch_sharding, make_mesh, move, parameter_shardings, replicated
from cmjax.system.progress import progress
from cmjax.training.average_rates import EMA, TARGET
from cmjax.training.method import TEACHER
from cmjax.training.saved_averages import restore_average

BINS = 12
TRIES = 1024  # pairs that are sampled for each place of a batch, to find one of a bin

RARE = 0.25
"""A bin is left out if it fills less than this fraction of a batch: its gradient would be that of a smaller batch."""


def losses_by_level(trained: Trained, run: Run, flow_map: BoundModel, *, num: int, seed: int) -> Diagnosis:
    """Computes the run's objective at its average for samples whose t lies in each bin of noise levels: the mean loss,
    and the norm of the gradient of a batch of them.

    Raises: ConfigError where what the objective needs beside the model cannot be loaded.
    """
    if run.lora is not None:
        raise ConfigError("config.lora.rank: the losses of an adapter by noise level are not measured")
    mesh, model, workdir = make_mesh(), trained.model, trained.folder
    edges = bin_edges(model, BINS)
    # at most what one part of a training batch holds: no more memory than training takes
    unit = math.lcm(jax.device_count(), run.method.group)
    size = max(min(num, run.batch_size // run.grad_accumulation) // unit, 1) * unit
    source = run.open_source("train")
    empty = empty_of(run, model, source)
    batches = Batches(source, batch_size=size, seed=seed, sharding=batch_sharding(mesh))
    try:
        frozen = {name: weights.load() for name, weights in run.method.frozen.items()}
        frozen = move(frozen, parameter_shardings(frozen, mesh))
        teacher = load(run.method.teacher, mesh=mesh) if run.method.teacher else None
    except (ConfigError, OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"config.objective: what it needs cannot be loaded: {error}") from error
    frozen |= {} if teacher is None else {TEACHER: teacher.params}
    target = None
    if run.method.target_rate is not None:
        shapes = partial(parameter_shapes, model.module, flow_map.shape)
        target = restore_average(workdir / "checkpoints", shapes, TARGET, step=trained.step, mesh=mesh)
    # the schedules stand where they stood in the last step that was made
    models, step = (flow_map.params, target, frozen), max(trained.used_step, 1) - 1
    measure = jax.jit(
        partial(_measure, run=run, model=model, teacher=teacher, edges=edges, step=step, empty=empty),
        out_shardings=replicated(mesh),
    )
    rounds, rows = -(-num // size), []
    # the same keys for all bins, which then divide the same samples
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), rounds)))
    with progress("losses", BINS) as update:
        for place in range(BINS):
            # the place is traced, so that one program serves all bins
            measured = [jax.device_get(measure(models, batches.at(i), keys[i], place)) for i in range(rounds)]
            rows.append(_row(edges[place : place + 2].tolist(), *np.array(measured, np.float64).T, size=size))
            update(place + 1, "")
    return Diagnosis({"batch_size": size, "parameters": EMA, "bins": rows}, _panels(trained.title, rows, size))


def _measure(
    models, batch, key_data, place, *, run: Run, model: NetworkModel, teacher, edges: np.ndarray, step: int, empty: Any
):
    """Returns the loss, the norm of the gradient, the number of samples and their fraction, of a batch of one bin."""
    params, target_params, frozen = models
    data_key, pair_key, method_key = jax.random.split(jax.random.wrap_key_data(key_data), 3)
    x0, inputs = inputs_of(run, model, empty)(batch, data_key)
    times, inside, fraction = times_within(
        run.method.times,
        pair_key,
        len(x0),
        step,
        within=lambda t: bin_of(model.path.noise_level(t), edges) == place,
        tries=TRIES,
    )
    # the method samples its noise as ever, at the times chosen above
    method = replace(run.method, times=lambda *_: times).with_teacher(teacher, model.path)
    sampled, dropout_key = method.sample_batch(method_key, x0, jnp.asarray(step), inputs)

    def losses(params):
        target = params if target_params is None else target_params
        arguments = method.arguments(jnp.asarray(step), target, frozen)
        return method.loss(model.function, params, dropout_key, sampled, **arguments)

    return *loss_and_gradient_norm(losses, params, inside), jnp.sum(inside), fraction


def _row(edges, loss, norm, count, fraction, *, size: int) -> dict[str, Any]:
    """Joins one bin's numbers of the batches (n,): None where its samples are too rare, or a value is not finite."""
    # over all rounds: a bin may be empty in one batch and not in the next
    enough = count.sum() >= RARE * size * len(count)
    # rounds are weighted by their samples; a norm is of one batch, and has no such sum
    values = {"loss": np.sum(loss * count) / max(count.sum(), 1), "gradient_norm": np.mean(norm)}
    shown = {name: float(value) if enough and np.isfinite(value) else None for name, value in values.items()}
    return {"from": edges[0], "to": edges[1], "fraction": float(fraction.mean()), "samples": int(count.sum()), **shown}


def _panels(name: str, rows: list[dict[str, Any]], size: int) -> list[np.ndarray]:
    middles = [(row["from"] * row["to"]) ** 0.5 for row in rows]
    titles = {
        "loss": f"{name}: loss by noise level",
        "gradient_norm": f"{name}: norm of the gradient, of batches of {size} samples of one bin",
        "fraction": f"{name}: fraction of training's samples in each bin",
    }
    values = {key: [row[key] for row in rows] for key in titles}
    return [
        line_plot(
            {key: (middles, values[key])},
            title=title,
            x_label="noise level",
            y_label=key.replace("_", " "),
            log_y=key != "fraction" and _positive(values[key]),
            height=300,
        )
        for key, title in titles.items()
        if any(value is not None for value in values[key])
    ]


def _positive(values: list[float | None]) -> bool:
    # an axis of a loss is not always logarithmic: with a learned weight losses may lie below 0
    return all(value is None or value > 0 for value in values)


def logged_losses(trained: Trained, run: Run) -> Diagnosis | None:
    """Plots the losses by noise level that a run with `config.log.bins` recorded; None where it recorded none."""
    model, bins, records = trained.model, run.log.bins, Workdir(trained.folder).read_metrics()
    names = [f"loss_bin_{i:02d}" for i in range(bins)]
    records = [record for record in records if any(name in record for name in names)]
    if not records:
        return None
    edges, steps = bin_edges(model, bins).tolist(), [record["step"] for record in records]
    losses = [[record.get(name) for record in records] for name in names]
    curves = {f"{edges[i]:.2g} to {edges[i + 1]:.2g}": (steps, losses[i]) for i in range(bins)}
    panel = line_plot(
        {name: curve for name, curve in curves.items() if any(loss is not None for loss in curve[1])},
        title=f"{trained.title}: loss in training, by noise level",
        x_label="step",
        y_label="loss",
        log_x=False,
        log_y=all(map(_positive, losses)),
    )
    return Diagnosis({"noise_level_edges": edges, "step": steps, "loss": losses}, [panel])


def times_within(
    times: PairSampler,
    key: PRNGKey,
    batch_size: int,
    step: Step,
    *,
    within: Callable[[Float[Array, " b"]], Bool[Array, " b"]],
    tries: int,
) -> tuple[Times, Bool[Array, " b"], Float[Array, ""]]:
    """Samples for each place of the batch a t that lies `within`: the first of so many tries, with its r and s.

    Places keep their own distribution, for objectives that treat the batch's first samples otherwise than the rest.

    Returns: the times, whether one lies within (b,), and the fraction of all tries within. Elsewhere t lies anywhere.
    """
    sampled = jax.vmap(lambda key: times(key, batch_size, step))(jax.random.split(key, tries))
    # (tries, b): times and hits for every place of the batch
    hits = jax.vmap(within)(sampled.t)
    # the first hit of each place; 0 where it has none, which `any` reports
    first = jnp.argmax(hits, axis=0)
    chosen = jax.tree.map(lambda values: values[first, jnp.arange(batch_size)], sampled)
    return chosen, jnp.any(hits, axis=0), jnp.mean(hits, dtype=jnp.float32)


def loss_and_gradient_norm(
    losses: Callable[[Any], Float[Array, " b"]], params: Any, counted: Bool[Array, " b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the mean of losses(params) over the samples that are counted, and the l2 norm of its gradient."""

    def mean_loss(params):
        # a bin without samples gives 0, and not nan
        return jnp.sum(jnp.where(counted, losses(params), 0)) / jnp.maximum(jnp.sum(counted), 1)

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    # squares of bfloat16 would keep 8 bits
    return loss, optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient))
