"""Shapes of the data, the teacher and the frozen weights of a run, for a plan made where they cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model_like
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.data.sources import DataError
from cmjax.data.tfds import KNOWN
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.trained import open_trained
from cmjax.training.method import TEACHER

CLASSES = 1000
"""The classes of a data set that is not here, for a class-conditional model: ImageNet's."""


@dataclass(frozen=True)
class DataShapes:
    """The shape of an example, and the classes. assumed: in words, what was not read."""

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
        shape, num_classes = KNOWN[data.name]
        return DataShapes(shape, np.uint8, num_classes)
    there = data.data_dir and Path(data.data_dir).expanduser().exists()
    if there and not (data.name == "folder" and data.image_size):
        try:
            source = run.open_source("train")
        except DataError as error:
            raise ConfigError(f"config.data.data_dir={data.data_dir!r}: {error}") from error
        dtype = source.gather(np.zeros(1, np.int64))["image"].dtype
        return DataShapes(tuple(source.shape), dtype, source.num_classes)
    if not data.image_size or not (data.channels or data.name == "folder"):
        missing = "config.data.image_size" if not data.image_size else "config.data.channels"
        raise ConfigError(f"{missing}=0: the data set {data.name!r} is not here and not known: set it, for the plan")
    shape = (*data.image_size, data.channels or 3)
    classes = CLASSES if run.model_spec.net["class_conditional"] else None
    assumed = f"images of {shape}" + (f" in {classes} classes" if classes else "")
    return DataShapes(shape, np.uint8 if shape[2] in (1, 3) else np.float32, classes, assumed)


def teacher_shapes(config: Mapping[str, Any], run: Run, data: DataShapes) -> tuple[BoundModel | None, str]:
    """Make the teacher with shapes for parameters: from its run where that is here, else with the student's network.

    Returns: it, and in words what was assumed.
    """
    if not run.method.teacher:
        return None, ""
    try:
        model, assumed = open_trained(run.method.teacher).model, ""
    except ConfigError:
        model = read_model_like(config, run.method.teacher_kind, data.num_classes)
        assumed = f"the teacher {run.method.teacher}, which is not here, has the student's network"
    return model.bind(parameter_shapes(model.module, data.shape), data.shape), assumed


def frozen_shapes(run: Run, teacher: BoundModel | None) -> dict[str, Params]:
    """The shapes of the frozen parameters that a run trains with, as `Setup.frozen`."""
    frozen = {name: weights.shapes() for name, weights in run.method.frozen.items()}
    return frozen if teacher is None else {**frozen, TEACHER: teacher.params}
