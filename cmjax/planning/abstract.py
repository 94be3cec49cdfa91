"""A run with shapes in place of its data, its teacher and its weights, for a plan made where they cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmjax.config.data import NO_IMAGES, OF_ANY_SIZE
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model_like
from cmjax.config.model import NetworkModel, check_network
from cmjax.config.run import Run, read_run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.data.base import is_image
from cmjax.data.batches import batch_shapes
from cmjax.data.latents import TEXT
from cmjax.data.sources import DataError
from cmjax.data.tfds import KNOWN
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.prompted_data import planned_empty, shapes_of_prompts
from cmjax.runs.setup import mesh_of
from cmjax.runs.train_step import train_step_of
from cmjax.runs.trained import open_trained
from cmjax.system.mesh import batch_sharding, bytes_per_device, over_steps, parameter_shardings
from cmjax.system.program import jaxpr_flops
from cmjax.training.lora import BASE
from cmjax.training.method import TEACHER
from cmjax.training.state import TrainState
from cmjax.training.step import state_shapes, trace_train_step

CLASSES = 1000  # the classes of a data set that is not here, for a class-conditional model: ImageNet's


@dataclass(frozen=True)
class DataShapes:
    """Holds the shape of an example, and the classes. assumed: in words, what was not read."""

    shape: tuple[int, ...]
    dtype: Any
    num_classes: int | None
    assumed: str = ""


def data_shapes(run: Run) -> DataShapes:
    """Find the shapes of a run's data: of a known data set, from the recipe, or read from the data.

    Raises: ConfigError where none of these has them.
    """
    data = run.data
    if data.name in KNOWN:
        # the table comes first: a plan then needs no data
        shape, num_classes = KNOWN[data.name]
        return DataShapes(shape, np.uint8, num_classes)
    there = data.data_dir and Path(data.data_dir).expanduser().exists()
    if there and not (data.name in OF_ANY_SIZE and data.image_size):
        try:
            source = run.open_source("train")
        except DataError as error:
            raise ConfigError(f"config.data.data_dir={data.data_dir!r}: {error}") from error
        dtype = source.gather(np.zeros(1, np.int64))["image"].dtype
        return DataShapes(tuple(source.shape), dtype, source.num_classes)
    if data.name in NO_IMAGES:
        raise ConfigError(f"config.data.data_dir={data.data_dir!r}: is not here; the plan needs the {data.name}")
    if not data.image_size or not (data.channels or data.name in OF_ANY_SIZE):
        missing = "config.data.image_size" if not data.image_size else "config.data.channels"
        raise ConfigError(f"{missing}=0: the data set {data.name!r} is not here and not known: set it, for the plan")
    shape = (*data.image_size, data.channels or 3)
    classes = CLASSES if run.model_spec.net["class_conditional"] else None
    assumed = f"images of {shape}" + (f" in {classes} classes" if classes else "")
    # images are stored as bytes, latents as floats
    return DataShapes(shape, np.uint8 if is_image(shape) else np.float32, classes, assumed)


def teacher_shapes(run: Run, data: DataShapes) -> tuple[BoundModel | None, str]:
    """Make the teacher with shapes for parameters: from its run where that is here, else with the student's network.

    Returns: it, and in words what was assumed.
    """
    if not run.method.teacher:
        return None, ""
    try:
        model, assumed = open_trained(run.method.teacher).model, ""
    except ConfigError:
        model = read_model_like(run.config, run.method.teacher_kind, data.num_classes)
        assumed = f"the teacher {run.method.teacher}, which is not here, has the student's network"
    return model.bind(parameter_shapes(model.module, data.shape), data.shape), assumed


def frozen_shapes(run: Run, teacher: BoundModel | None) -> dict[str, Params]:
    """Gives the shapes of the frozen parameters that a run trains with, as `Setup.frozen`."""
    frozen = {name: weights.shapes() for name, weights in run.method.frozen.items()}
    return frozen if teacher is None else {**frozen, TEACHER: teacher.params}


@dataclass(frozen=True)
class AbstractRun:
    """Holds a run laid over a mesh whose devices need not be there. assumed: in words, what was not read."""

    run: Run
    mesh: Mesh
    data: DataShapes
    model: NetworkModel
    teacher: BoundModel | None
    assumed: tuple[str, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], devices: Sequence[Any]) -> "AbstractRun":
        """Read a configuration. Raises: ConfigError where something of it does not divide or is not known."""
        run = read_run(config, data_there=False)
        mesh, data = mesh_of(run, devices), data_shapes(run)
        model = run.make_model(data.num_classes)
        check_network(model.module, data.shape)
        teacher, assumed = teacher_shapes(run, data)
        return cls(run, mesh, data, model, teacher, tuple(filter(None, (data.assumed, assumed))))

    @cached_property
    def state(self) -> TrainState:
        return state_shapes(self.run.trained(self._shapes), self.run.optimizer)

    @property
    def _shapes(self) -> Params:
        return parameter_shapes(self.model.module, self.data.shape)

    @cached_property
    def frozen(self) -> dict[str, Params]:
        own = self.run.lora is not None and self.run.init_from != self.run.method.teacher
        return frozen_shapes(self.run, self.teacher) | ({BASE: self._shapes} if own else {})

    @cached_property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch, or batches, of one call."""
        shape, dtype, classes = self.data.shape, self.data.dtype, self.data.num_classes
        calls, size = self.run.steps_per_call, self.run.batch_size
        rows = (calls,) if calls > 1 else ()
        prompts = shapes_of_prompts(self.model, size)
        return batch_shapes(shape, dtype, classes, size, steps_per_call=calls) | {
            name: jax.ShapeDtypeStruct((*rows, *shape), TEXT[name]) for name, shape in prompts.items()
        }

    @cached_property
    def traced(self) -> jax.stages.Traced:
        """The train step, traced and not compiled."""
        step = train_step_of(self.run, self.model, self.teacher, self.mesh, planned_empty(self.model))
        calls = self.run.steps_per_call
        return trace_train_step(step, self.state, self.frozen, self.batch, self.mesh, steps_per_call=calls)

    @property
    def operations(self) -> float:
        """Operations of one step, on all devices together."""
        return jaxpr_flops(self.traced.jaxpr.jaxpr) / self.run.steps_per_call

    def argument_bytes(self, mesh: Mesh) -> tuple[int, int, int]:
        """Bytes on one device of a mesh of the state, the frozen parameters and the batches of one call."""
        state, frozen = (bytes_per_device(tree, parameter_shardings(tree, mesh)) for tree in (self.state, self.frozen))
        by_device = batch_sharding(mesh)
        # Batches of several steps have the step as their first axis, which every device holds whole.
        sharding = over_steps(by_device) if self.run.steps_per_call > 1 else by_device
        return state, frozen, bytes_per_device(self.batch, dict.fromkeys(self.batch, sharding))
