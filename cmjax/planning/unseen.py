"""The shapes of what a run reads, for a plan made where it cannot be read: data, a teacher, frozen weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.model import KINDS, PRECONDITIONINGS, Model, read_model
from cmjax.config.run import Run
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import Params
from cmjax.data.known import KNOWN
from cmjax.data.sources import DataError
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.load import split_checkpoint
from cmjax.runs.record import read_record
from cmjax.training.method import TEACHER

CLASSES = 1000
"""Of a data set that is not here, whose model is told classes: ImageNet's."""


@dataclass(frozen=True)
class DataShapes:
    """One example and its classes; `assumed` says what of it was not read."""

    shape: tuple[int, ...]
    dtype: Any
    num_classes: int | None
    assumed: str = ""


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a name in place of a data folder that was not given; a plan opens none."""
    data = config["data"]
    if data["name"] == "digits" or data["data_dir"]:
        return dict(config)
    return {**config, "data": {**data, "data_dir": "not-here"}}


def data_shapes(config: Mapping[str, Any], run: Run) -> DataShapes:
    """What the batches of a run hold, of a known data set, as the recipe says, or read from the data.

    Raises: ConfigError where none of these tells.
    """
    data = config["data"]
    name, size, channels = data["name"], data["image_size"], data["channels"]
    if name in KNOWN:
        shape, num_classes = KNOWN[name]
        return DataShapes(shape, np.uint8, num_classes)
    there = data["data_dir"] and Path(data["data_dir"]).expanduser().exists()
    if there and not (name == "folder" and size):
        try:
            source = run.open_source("train")
        except DataError as error:
            raise ConfigError(f"config.data.data_dir={data['data_dir']!r}: {error}") from error
        dtype = source.gather(np.zeros(1, np.int64))["image"].dtype
        return DataShapes(tuple(source.shape), dtype, source.num_classes)
    if not size or not (channels or name == "folder"):
        missing = "config.data.image_size" if not size else "config.data.channels"
        raise ConfigError(f"{missing}=0: the data set {name!r} is not here and not known: say it, for the plan")
    shape = (size, size, channels or 3)
    classes = CLASSES if config["net"]["class_conditional"] else None
    assumed = f"images of {shape}" + (f" in {classes} classes" if classes else "")
    return DataShapes(shape, np.uint8 if shape[2] in (1, 3) else np.float32, classes, assumed)


def teacher_shapes(config: Mapping[str, Any], run: Run, student: Model, data: DataShapes) -> tuple[FlowMap | None, str]:
    """The model that the objective distils, its parameters' shapes in their place, and what of it was not read: the
    run that it names, where that is here, else a model with the student's network."""
    if not run.method.teacher:
        return None, ""
    folder = split_checkpoint(run.method.teacher)[0]
    try:
        record = read_record(folder)
        model, assumed = read_model(record["config"], record["num_classes"]), ""
    except ConfigError:
        model = read_model(_like_the_student(config, run.method.teacher_kind), data.num_classes)
        assumed = f"the teacher {run.method.teacher}, which is not here, has the student's network"
    return model.bind(parameter_shapes(model.module, data.shape), data.shape), assumed


def frozen_shapes(run: Run, teacher: FlowMap | None) -> dict[str, Params]:
    """What `load_frozen` gives, as shapes."""
    frozen = {name: weights.shapes() for name, weights in run.method.frozen.items()}
    return frozen if teacher is None else {**frozen, TEACHER: teacher.params}


def _like_the_student(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    objective = next((name for name, made in KINDS.items() if made == kind), "ct")
    path = config["model"]["path"].partition("(")[0].strip()
    preconditioning = next(iter(PRECONDITIONINGS[path][kind]))
    model = {**config["model"], "preconditioning": preconditioning, "t_min": config["model"]["t_min"] or 0.001}
    net = {**config["net"], "two_times": kind == "flow_map", "guided": False}
    return {**config, "objective": {"name": objective}, "model": model, "net": net}
