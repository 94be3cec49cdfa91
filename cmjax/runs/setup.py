"""Sets up a run: its mesh, its data, its model, its teacher and other frozen networks, and its first state."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from cmjax.config.averages import average_texts, long_average, long_target
from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel, check_network
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.data.base import kind_of, noun_of
from cmjax.data.batches import Batches
from cmjax.data.sources import DataError, Source
from cmjax.metrics.comparison import LEAST, why_not_compared
from cmjax.nets.adapter import count_parameters, parameter_shapes
from cmjax.nets.inputs import ADDED
from cmjax.runs.dependencies import check_data_of_others, check_teacher, load_first, load_teacher, network_differences
from cmjax.system.chips import GIB
from cmjax.system.memory import FOR_PARAMETERS, too_little
from cmjax.system.mesh import batch_sharding, bytes_per_device, make_mesh, move, parameter_shardings
from cmjax.system.processes import on_first_process
from cmjax.training.lora import BASE
from cmjax.training.method import TEACHER
from cmjax.training.state import TrainState
from cmjax.training.step import init_state, state_shapes

log = logging.getLogger(__name__)


def mesh_of(run: Run, devices: Sequence[Any] | None = None) -> Mesh:
    """Make the mesh of a run, over these devices or all.

    Raises: ConfigError where `mesh.fsdp` or the batch does not divide over them.
    """
    try:
        mesh = make_mesh(fsdp=run.fsdp, devices=devices)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    # each part of an accumulated gradient is spread over all devices by itself
    part = run.batch_size // run.grad_accumulation
    if part % mesh.size:
        raise ConfigError(
            f"config.batch_size={run.batch_size}: a part of it, {part} with config.grad_accumulation="
            f"{run.grad_accumulation}, must be divisible by the number of devices, {mesh.size}"
        )
    return mesh


@dataclass(frozen=True)
class Setup:
    """Holds all that a run trains with, laid over its mesh.

    frozen: parameters that its loss uses and training leaves alone. empty: of a network that sees prompts, its
    conditions without one, for `prepare_inputs`.
    """

    run: Run
    mesh: Mesh
    source: Source
    model: NetworkModel
    teacher: BoundModel | None
    frozen: dict[str, Params]
    empty: Mapping[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample, (h, w, c)."""
        return tuple(self.source.shape)

    def warn(self) -> None:
        """Log warnings of missing metrics, settings without effect, and averages that keep much of the start."""
        run, why = self.run, None
        if run.num_metrics and kind_of(self.shape) != "latents":
            try:
                why = why_not_compared(self.source, num=run.num_metrics, held_out=run.data.count("test"))
            except DataError as error:
                why = f"there are no held-out images ({error})"
        if why:
            log.warning("the run will end without metrics: %s; set config.metrics.num=0 if none are wanted", why)
        run.warn_of_no_effect(self.shape)
        # averages that will still contain the initial parameters at the end
        long = [long_average(run.config, i, run.steps) for i, _ in enumerate(average_texts(run.config))]
        for warning in filter(None, [*long, long_target(run.config, run.method.target_rate, run.steps)]):
            log.warning("%s", warning)

    def batches(self) -> Batches:
        run, sharding = self.run, batch_sharding(self.mesh)
        parallel = {"sharding": sharding, "workers": run.workers, "steps_per_call": run.steps_per_call}
        return Batches(self.source, run.batch_size, run.seed, **parallel)

    def state_shapes(self) -> TrainState:
        """Gives the state's shapes, into which a checkpoint is restored."""
        return state_shapes(self.run.trained(parameter_shapes(self.model.module, self.shape)), self.run.optimizer)

    def first_state(self) -> TrainState:
        """Make the state of step 0, its parameters fresh or those of the run `config.init_from`."""
        run, key = self.run, jax.random.key(self.run.seed)
        if run.lora is not None:
            shapes = parameter_shapes(self.model.module, self.shape)
            return init_state(run.lora.init(key, shapes), run.optimizer, self.mesh)
        # also where another run's follow: they lack the parameters of modules that are new
        params = self.model.init(key, self.shape)
        if run.init_from:
            differences = partial(network_differences, run.init_from, self.model.module, self.shape)
            params = started_from(load_first(run, self.mesh).params, params, run.init_from, differences)
        return init_state(params, run.optimizer, self.mesh)


def set_up(run: Run, open_source: Callable[[str], Source]) -> Setup:
    """Make the mesh, open the data, and make the model and its teacher.

    Raises: ConfigError where they do not fit each other, or cannot be loaded; DataError where the data cannot be read.
    """
    mesh = mesh_of(run)
    teacher = load_teacher(run, mesh) if run.method.teacher else None
    frozen = _load_frozen(run, teacher, mesh)
    opened: list[Source] = []
    # the first process goes ahead: the others find what it prepares on a shared disk
    on_first_process(lambda: opened.append(open_source("train")))
    source = opened[0] if opened else open_source("train")
    if run.batch_size > len(source):
        what = noun_of(source.shape)
        raise ConfigError(
            f"config.batch_size={run.batch_size}: the data have {len(source)} {what} to train on; set it to at most "
            f"so many, or give more {what}"
        )
    model = run.make_model(source.num_classes)
    check_network(model.module, tuple(source.shape))
    if teacher is not None:
        check_teacher(run, teacher, model, tuple(source.shape))
    check_data_of_others(run, model, source)
    if run.lora is not None:
        frozen |= _load_base(run, mesh, model, teacher, tuple(source.shape))
    empty = None
    if model.prompted:
        from cmjax.runs.prompted_data import empty_of  # here, not above: most runs see no prompts

        empty = empty_of(run, model, source)
    setup = Setup(run, mesh, source, model, teacher, frozen, empty)
    # now, and not after minutes of compiling
    _check_memory(setup)
    return setup


def _check_memory(setup: Setup) -> None:
    """Raise ConfigError where a device has no room for the least that it holds: state, gradients and a batch."""
    state, run = setup.state_shapes(), setup.run
    shapes = {"state": state, "gradients": state.params}
    bytes_of = {name: bytes_per_device(tree, parameter_shardings(tree, setup.mesh)) for name, tree in shapes.items()}
    # images in float32, though they are stored as bytes
    bytes_of["a batch"] = 4 * math.prod(setup.source.shape) * run.batch_size // run.grad_accumulation // setup.mesh.size
    parts = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in bytes_of.items())
    what = f"training {count_parameters(state.params):,} parameters (GiB: {parts})"
    if problem := too_little(what, sum(bytes_of.values()), FOR_PARAMETERS):
        raise ConfigError(f"config: {problem}")


def check_num_metrics(run: Run) -> None:
    """Raise ConfigError where a run is to measure fewer samples than its metrics need."""
    if 0 < run.num_metrics < LEAST:
        problem = f"metrics need at least {LEAST} samples; 0 leaves them out"
        raise ConfigError(f"config.metrics.num={run.num_metrics}: {problem}")


def _load_frozen(run: Run, teacher: BoundModel | None, mesh: Mesh) -> dict[str, Params]:
    frozen = {}
    for name, weights in run.method.frozen.items():
        try:
            frozen[name] = weights.load()
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"config.objective.distance: the weights of {name} cannot be loaded: {error}") from error
    # the teacher's lie over the mesh already
    frozen = move(frozen, parameter_shardings(frozen, mesh))
    return frozen if teacher is None else {**frozen, TEACHER: teacher.params}


def _load_base(
    run: Run, mesh: Mesh, model: NetworkModel, teacher: BoundModel | None, shape: tuple[int, ...]
) -> dict[str, Params]:
    """Loads the parameters that an adapter changes; none where they are the teacher's.

    Raises: ConfigError where they are of another network, or the adapter does not fit them.
    """
    of_teacher = teacher is not None and run.init_from == run.method.teacher
    params = teacher.params if teacher is not None and of_teacher else load_first(run, mesh).params
    shapes = parameter_shapes(model.module, shape)
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        differences = network_differences(run.init_from, model.module, shape)
        raise ConfigError(f"config.init_from={run.init_from!r}: is of another network than config.net{differences}")
    try:
        run.trained(shapes)
    except ValueError as error:
        raise ConfigError(f"config.lora.targets: {error}") from error
    return {} if of_teacher else {BASE: params}


def started_from(other: Params, fresh: Params, name: str, differences: Callable[[], str] = lambda: "") -> Params:
    """Takes the parameters of the run `name`, with fresh ones for modules of `ADDED` that it lacks.

    Raises: ConfigError, with the `differences` of the networks, where the others do not fit.
    """
    ours, theirs = flatten_dict(fresh), flatten_dict(other)
    # some modules are new with the objective, such as the head of a learned weight: an older run has none
    added = {path: leaf for path, leaf in ours.items() if path not in theirs and ADDED & set(path)}
    started: dict[Any, Any] = theirs | added
    if jax.tree.map(np.shape, started) != jax.tree.map(np.shape, ours):
        raise ConfigError(
            f"config.init_from={name!r}: its network is another one than config.net describes{differences()}"
        )
    if added:
        modules = sorted({part for path in added for part in ADDED & set(path)})
        log.info("%s has no %s: %s parameters start afresh", name, ", ".join(modules), f"{count_parameters(added):,}")
    return unflatten_dict(started)
