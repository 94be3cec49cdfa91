"""`--mode=train`: train, or go on with, a run, and end it with pictures, figures and a summary."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from cmjax.build import Model, Run, read_run
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import Params
from cmjax.data.batches import Batches, preprocess
from cmjax.data.sources import Source
from cmjax.evaluation.diagnostics import bin_of
from cmjax.evaluation.features import format_figures
from cmjax.fields import ConfigError
from cmjax.files import to_json, write_atomically
from cmjax.modes.draw import Pictures
from cmjax.modes.figures import can_compare, compare
from cmjax.modes.losses import bin_edges
from cmjax.nets.inputs import ADDED
from cmjax.training.checkpoint import Checkpointer
from cmjax.training.logging import MetricsWriter, progress
from cmjax.training.loop import run_loop
from cmjax.machine.mesh import batch_sharding, initialize_processes, make_mesh, parameter_shardings
from cmjax.training.state import TrainState
from cmjax.training.step import compile_train_step, init_state, make_train_step
from cmjax.workdir import load, read_record, split_checkpoint, write_record

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: Path) -> None:
    """Train the recipe `config` in `workdir`, from its newest checkpoint if there is one."""
    began = time.perf_counter()
    plan = read_run(config)
    initialize_processes()
    if jax.process_index() > 0:
        logging.getLogger("cmjax").setLevel(logging.WARNING)  # one process speaks for all
    _cache_compilations(workdir)
    mesh = _mesh(plan)
    _check_batch(plan)
    teacher = _load_other(plan.method.teacher, "objective.teacher") if plan.method.teacher else None
    start_from = _load_other(plan.init_from, "init_from") if plan.init_from else None
    frozen = {name: _load_frozen(name, load_weights) for name, load_weights in plan.method.frozen.items()}
    source = _open(plan, "train")
    model = plan.make_model(source.num_classes)
    needed = plan.method.teacher_kind
    if teacher is not None and (teacher.kind != needed or teacher.shape != tuple(source.shape)):
        raise ConfigError(
            f"config.objective: {plan.method.teacher!r} is a {teacher.kind} of images {teacher.shape}; a {needed} of "
            f"images {tuple(source.shape)} is needed"
        )
    if teacher is not None:
        _check_classes(plan.method.teacher, model)
    for change in write_record(workdir, config, source.shape, source.num_classes):
        log.warning("going on with another config.%s", change)

    fresh = model.init(jax.random.key(plan.seed), source.shape)
    state = init_state(_started(fresh, start_from, plan.init_from), plan.optimizer, mesh)
    if teacher is not None:
        frozen["teacher"] = teacher.params
    pictures = Pictures(plan, model, source, workdir)
    trained, speed = _train(plan, state, frozen, model, teacher, source, mesh, workdir, config, pictures)
    _finish(plan, trained, source, workdir, pictures, speed | {"seconds": time.perf_counter() - began})


def _train(plan, state, frozen, model, teacher, source, mesh: Mesh, workdir, config, pictures):
    """The trained state, and what the run measured of itself."""
    step_fn = make_train_step(
        plan.method.objective(model, teacher),
        plan.optimizer,
        preprocess=partial(preprocess, horizontal_flip=plan.horizontal_flip),
        augment=plan.augment,
        seed=plan.seed,
        conditions=("label",) if model.class_conditional else (),
        label_dropout=plan.label_dropout,
        grad_accumulation=plan.grad_accumulation,
        schedules=plan.schedules,
        **_bins(plan, model),
    )
    batches = Batches(source, batch_size=plan.batch_size, seed=plan.seed, sharding=batch_sharding(mesh))
    frozen = jax.device_put(frozen, parameter_shardings(frozen, mesh))
    keep = {name: plan.checkpoint[name] for name in ("keep", "keep_every")}
    with Checkpointer(workdir / "checkpoints", **keep) as checkpointer:
        state = checkpointer.restore(state) or state
        start = int(state.step)
        if start:
            log.info("going on from step %d of %s", start, workdir)
        if start >= plan.steps:
            return state, {}
        log.info("compiling the train step of %s parameters", f"{_count(state.params):,}")
        began = time.perf_counter()
        compiled = compile_train_step(step_fn, state, frozen, batches.at(start), mesh)
        compile_seconds = time.perf_counter() - began
        log.info("compiled in %.1f s; training steps %d to %d", compile_seconds, start, plan.steps)
        mirrors = {name: plan.log[name] for name in ("tensorboard", "wandb")}
        writer = (
            MetricsWriter(workdir, resume_step=start, config=config, **mirrors) if jax.process_index() == 0 else None
        )
        began = time.perf_counter()
        with progress("training", plan.steps, start=start) as update:
            state = run_loop(
                state,
                compiled,
                frozen,
                batches.stream(start, plan.steps),
                start=start,
                total_steps=plan.steps,
                batch_size=plan.batch_size,
                checkpointer=checkpointer,
                save_every=plan.checkpoint["save_every"],
                write_record=writer.write if writer else lambda step, record: None,
                log_every=plan.log["every"],
                draw_samples=pictures.refresh,
                sample_every=plan.samples["every"],
                update_progress=update,
            )
        seconds = time.perf_counter() - began
        if writer:
            writer.close()
    rate = (plan.steps - start) * plan.batch_size / seconds
    return state, {"compile_seconds": compile_seconds, "train_seconds": seconds, "images_per_second": rate}


def _bins(plan: Run, model: Model) -> dict[str, Any]:
    """What makes the train step sum the losses by noise level, where the configuration asks for it."""
    if not plan.log["bins"]:
        return {}
    edges = bin_edges(model, plan.log["bins"])

    def bin_of_sample(key, batch_size, step):
        return bin_of(model.path.noise_level(plan.method.pair(key, batch_size, step).t), edges)

    return {"bins": plan.log["bins"], "bin_of": bin_of_sample}


def _finish(plan: Run, state: TrainState, source: Source, workdir: Path, pictures: Pictures, speed: dict) -> None:
    """The last pictures and the figures, in `summary.json` and on the terminal."""
    steps, num = int(state.step), max(plan.num_figures, plan.samples["num"])
    log.info("drawing %d samples by each of %s", num, ", ".join(pictures.samplers))
    images = pictures.draw(state, num)
    grids = pictures.save_grids(images, steps)
    table = {}
    if plan.num_figures and (held_out := can_compare(images, partial(_open, plan, "test"))) is not None:
        try:
            table = compare(images, source, held_out, cache_dir=workdir.parent / ".cache")
        except ValueError as error:  # too few images, or of one class: no reason to lose the summary
            log.warning("no figures: %s", error)
    summary = {
        "workdir": str(workdir),
        "checkpoint": str(workdir / "checkpoints" / str(steps)),
        "samples": grids,
        "steps": steps,
        "images_seen": steps * plan.batch_size,
        "parameters": _count(state.params),
        **{name: round(value, 2) for name, value in speed.items()},
        "figures": table,
    }
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.json", to_json(summary))
        print(_report(summary))


def _report(summary: dict[str, Any]) -> str:
    lines = [f"{name:18s} {value}" for name, value in summary.items() if name not in ("samples", "figures")]
    lines += [f"{'samples ' + name:18s} {path}" for name, path in summary["samples"].items()]
    if summary["figures"]:
        lines += ["", format_figures(summary["figures"])]
    return "\n".join(lines)


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _open(plan: Run, split: str) -> Source:
    said = time.monotonic()

    def say_now_and_then(description: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            said = time.monotonic()
            log.info("%s %d/%d", description, done, total)

    return plan.open_source(split, say_now_and_then)


def _mesh(plan: Run) -> Mesh:
    try:
        return make_mesh(fsdp=plan.fsdp)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def _check_batch(plan: Run) -> None:
    part = plan.batch_size // plan.grad_accumulation
    if part % jax.device_count():
        raise ConfigError(
            f"config.batch_size={plan.batch_size}: a part of it, {part} with config.grad_accumulation="
            f"{plan.grad_accumulation}, must be divisible by the number of devices, {jax.device_count()}"
        )


def _load_other(workdir: str, field_name: str) -> FlowMap:
    """Another run's model, which this one starts from or distils."""
    try:
        return load(workdir)
    except (ConfigError, RuntimeError) as error:
        recipe, _, variant = Path(workdir).name.partition("-")
        raise ConfigError(
            f"config.{field_name}={workdir!r}: {error}. Train it first, as with\n"
            f"  python -m cmjax.main --config=configs/{recipe}.py{variant and ':'}{variant} --workdir={workdir}"
        ) from error


def _check_classes(teacher: str, student: Model) -> None:
    """A teacher is given the student's labels, or none."""
    conditional = read_record(split_checkpoint(teacher)[0])["config"]["net"]["class_conditional"]
    if conditional != student.class_conditional:
        raise ConfigError(
            f"config.net.class_conditional={student.class_conditional}: config.objective.teacher={teacher!r} has "
            f"{conditional}; they must agree"
        )


def _load_frozen(name: str, load_weights: Callable[[], Params]) -> Params:
    try:
        return load_weights()
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"config.objective.distance: the weights of {name} cannot be loaded: {error}") from error


def _started(fresh: Params, other: FlowMap | None, name: str) -> Params:
    """The other run's parameters where there is one, checked against this network's; `ADDED` modules may be fresh."""
    if other is None:
        return fresh
    ours, theirs = flatten_dict(fresh), flatten_dict(other.params)
    added = {path: leaf for path, leaf in ours.items() if path not in theirs and ADDED & set(path)}
    started = theirs | added
    if jax.tree.map(np.shape, started) != jax.tree.map(np.shape, ours):
        raise ConfigError(f"config.init_from={name!r}: its network is another one than config.net describes")
    if added:
        modules = sorted({part for path in added for part in ADDED & set(path)})
        log.info("%s has no %s: %s parameters start afresh", name, ", ".join(modules), f"{_count(added):,}")
    return unflatten_dict(started)


def _cache_compilations(workdir: Path) -> None:
    """Keep compiled programs beside the runs, unless JAX was told where: the next start of a run compiles nothing."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((workdir.parent / ".cache" / "jax").absolute()))
