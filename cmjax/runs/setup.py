"""What a run starts from: its mesh, its teacher and other frozen networks, and its first parameters."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel, check_network
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params, PRNGKey, Samples
from cmjax.data.batches import preprocess
from cmjax.data.sources import DataError, Source
from cmjax.metrics.comparison import LEAST, why_not_compared
from cmjax.metrics.diagnostics import bin_of, level_edges
from cmjax.nets.adapter import parameter_shapes
from cmjax.nets.inputs import ADDED
from cmjax.runs.dependencies import (
    check_classes_of_others,
    check_teacher,
    load_other,
    load_teacher,
    network_differences,
)
from cmjax.runs.record import unwritable
from cmjax.runs.trained import Trained, open_trained
from cmjax.system.files import cache_of, is_bucket
from cmjax.system.lock import AlreadyRunning, FolderLock
from cmjax.system.memory import FOR_PARAMETERS, GIB, too_little
from cmjax.system.mesh import bytes_per_device, make_mesh, move, parameter_shardings
from cmjax.system.processes import leave_at_once, on_first_process
from cmjax.training.method import TEACHER
from cmjax.training.state import Examples, TrainState
from cmjax.training.step import TrainStep, init_state, make_train_step, prepare_inputs, state_shapes

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Within, no other run may begin in the folder. Every process must call it; the first holds the mark for all.

    Raises: ConfigError where another run is there, or the folder cannot be written.
    """

    def on_lost() -> None:
        log.error("error: another run has taken %s, for this one was silent; what was not saved is lost", workdir)
        leave_at_once(1)

    lock = FolderLock(workdir, on_lost=on_lost)
    try:
        on_first_process(lock.take)
    except AlreadyRunning as error:
        raise ConfigError(f"--workdir={error}") from error
    except OSError as error:
        raise unwritable(workdir, error) from error
    with lock:
        yield


def cache_compilations(workdir: Path) -> None:
    """Keep compiled programs in `cache_of` the run, unless JAX has a folder for them: a command compiles once.

    Small programs are kept too, because a start compiles a dozen of them, for about a second. Runs in a bucket keep
    only programs that took a second or more to compile, because each one that is read is a request.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_of(workdir) / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ and not is_bucket(workdir):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def open_for_sampling(workdir_or_checkpoint: str | Path, *, data_dir: str | None = None) -> Trained:
    """`open_trained`, and what is compiled from here on is kept beside the run."""
    trained = open_trained(workdir_or_checkpoint, data_dir=data_dir)
    cache_compilations(trained.folder)
    return trained


def mesh_of(run: Run, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of these devices, or of all that there are.

    Raises: ConfigError where `mesh.fsdp` or the batch does not divide over them.
    """
    try:
        mesh = make_mesh(fsdp=run.fsdp, devices=devices)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    check_batch(run, mesh.size)
    return mesh


def check_batch(run: Run, devices: int) -> None:
    """Raise ConfigError where a part of the batch does not divide over the devices."""
    part = run.batch_size // run.grad_accumulation
    if part % devices:
        raise ConfigError(
            f"config.batch_size={run.batch_size}: a part of it, {part} with config.grad_accumulation="
            f"{run.grad_accumulation}, must be divisible by the number of devices, {devices}"
        )


@dataclass(frozen=True)
class Setup:
    """All that a run trains with, laid over its mesh. frozen: what its loss uses and training leaves alone."""

    run: Run
    mesh: Mesh
    source: Source
    model: NetworkModel
    teacher: BoundModel | None
    frozen: dict[str, Params]


def set_up(run: Run, open_source: Callable[[str], Source]) -> Setup:
    """The mesh, the data, the model and what it is taught by.

    Raises: ConfigError where they do not fit each other, or cannot be loaded; DataError where the data cannot be read.
    """
    mesh = mesh_of(run)
    teacher = load_teacher(run, mesh) if run.method.teacher else None
    frozen = _load_frozen(run, teacher, mesh)
    source = _open_together(lambda: open_source("train"))
    if run.batch_size > len(source):
        raise ConfigError(
            f"config.batch_size={run.batch_size}: the data have {len(source)} images to train on; set it to at most "
            "so many, or give more images"
        )
    on_first_process(lambda: _warn_of_metrics(run, source))
    model = run.make_model(source.num_classes)
    check_network(model.module, tuple(source.shape))
    if teacher is not None:
        check_teacher(run, teacher, model, tuple(source.shape))
    check_classes_of_others(run, model, source)
    setup = Setup(run, mesh, source, model, teacher, frozen)
    _check_memory(setup)
    return setup


def _check_memory(setup: Setup) -> None:
    """Raise ConfigError where a device has no room for the least that it holds: state, gradients and a batch."""
    state, run = shapes_of_state(setup), setup.run
    shapes = {"state": state, "gradients": state.params}
    bytes_of = {name: bytes_per_device(tree, parameter_shardings(tree, setup.mesh)) for name, tree in shapes.items()}
    bytes_of["a batch"] = 4 * math.prod(setup.source.shape) * run.batch_size // run.grad_accumulation // setup.mesh.size
    parts = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in bytes_of.items())
    what = f"training {count(state.params):,} parameters (GiB: {parts})"
    if problem := too_little(what, sum(bytes_of.values()), FOR_PARAMETERS):
        raise ConfigError(f"config: {problem}")


def _open_together(open_source: Callable[[], Source]) -> Source:
    """The data, opened by the first process before the others: what it prepares on a disk of all, they find."""
    opened: list[Source] = []
    on_first_process(lambda: opened.append(open_source()))
    return opened[0] if opened else open_source()


def check_num_metrics(run: Run) -> None:
    """Raise ConfigError where a run is to measure fewer samples than its metrics need."""
    if 0 < run.num_metrics < LEAST:
        problem = f"metrics need at least {LEAST} samples; 0 leaves them out"
        raise ConfigError(f"config.metrics.num={run.num_metrics}: {problem}")


def _warn_of_metrics(run: Run, source: Source) -> None:
    """Warns, before a run trains, where it will end without metrics of images."""
    if not run.num_metrics or source.shape[-1] not in (1, 3):
        return
    try:
        held_out = run.data.count("test")
        why = why_not_compared(source, num=run.num_metrics, held_out=held_out)
    except DataError as error:
        why = f"there are no held-out images ({error})"
    if why:
        log.warning("the run will end without metrics: %s; set config.metrics.num=0 if none are wanted", why)


def _load_frozen(run: Run, teacher: BoundModel | None, mesh: Mesh) -> dict[str, Params]:
    """What the objective uses and training leaves alone, laid over the mesh."""
    frozen = {name: _load_weights(name, weights.load) for name, weights in run.method.frozen.items()}
    frozen = move(frozen, parameter_shardings(frozen, mesh))
    return frozen if teacher is None else {**frozen, TEACHER: teacher.params}


def train_step_of(run: Run, model: NetworkModel, teacher: BoundModel | None, mesh: Mesh) -> TrainStep:
    """The train step of a configuration, not yet compiled."""
    return make_train_step(
        model.function,
        run.method.with_teacher(teacher, model.path).on(mesh),
        run.optimizer,
        prepare=inputs_of(run, model),
        seed=run.seed,
        grad_accumulation=run.grad_accumulation,
        skip_nonfinite=run.skip_nonfinite,
        schedules=run.schedules,
        **_bins(run, model),
    )


def inputs_of(run: Run, model: NetworkModel) -> Callable[[Examples, PRNGKey], tuple[Samples, dict[str, Array]]]:
    """What makes x0 and the network's conditions of a batch, as `prepare_inputs`."""
    return partial(
        prepare_inputs,
        preprocess=partial(preprocess, horizontal_flip=run.horizontal_flip),
        augment=run.augment,
        conditions=("label",) if model.class_conditional else (),
        label_dropout=run.label_dropout,
        **run.method.labels,
    )


def bin_edges(model: NetworkModel, bins: int) -> np.ndarray:
    """The noise levels (bins + 1,) between which a run's losses are sorted."""
    return level_edges(bins, path=model.path, t_min=model.constants["t_min"], t_max=model.constants["t_max"])


def _bins(run: Run, model: NetworkModel) -> dict[str, Any]:
    """What makes the train step sum the losses by noise level, where the configuration asks for it."""
    if not run.log.bins:
        return {}
    edges = bin_edges(model, run.log.bins)
    return {"bins": run.log.bins, "bin_of": lambda t: bin_of(model.path.noise_level(t), edges)}


def first_state(setup: Setup) -> TrainState:
    """The state of step 0, its parameters fresh or those of the run `config.init_from`."""
    run = setup.run
    params = setup.model.init(jax.random.key(run.seed), setup.source.shape)
    if run.init_from:
        other, module = load_other(run.init_from, "init_from", setup.mesh), setup.model.module
        params = _started(
            params, other, run.init_from, lambda: network_differences(run.init_from, module, setup.source.shape)
        )
    return init_state(params, run.optimizer, setup.mesh)


def shapes_of_state(setup: Setup) -> TrainState:
    """The state's shapes, into which a checkpoint is restored."""
    return state_shapes(parameter_shapes(setup.model.module, setup.source.shape), setup.run.optimizer)


def count(params: Params) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _load_weights(name: str, load_weights: Callable[[], Params]) -> Params:
    try:
        return load_weights()
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"config.objective.distance: the weights of {name} cannot be loaded: {error}") from error


def _started(fresh: Params, other: BoundModel, name: str, differing: Callable[[], str] = lambda: "") -> Params:
    """The other run's parameters, checked against this network's; `ADDED` modules that it lacks are fresh."""
    ours, theirs = flatten_dict(fresh), flatten_dict(other.params)
    added = {path: leaf for path, leaf in ours.items() if path not in theirs and ADDED & set(path)}
    started: dict[Any, Any] = theirs | added
    if jax.tree.map(np.shape, started) != jax.tree.map(np.shape, ours):
        raise ConfigError(
            f"config.init_from={name!r}: its network is another one than config.net describes{differing()}"
        )
    if added:
        modules = sorted({part for path in added for part in ADDED & set(path)})
        log.info("%s has no %s: %s parameters start afresh", name, ", ".join(modules), f"{count(added):,}")
    return unflatten_dict(started)
