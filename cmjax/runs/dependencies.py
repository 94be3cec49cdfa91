"""The other runs that a run needs: its teacher, and the run that it starts from."""

import logging
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from cmjax.config.fields import ConfigError, about
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.data.base import Source, class_names
from cmjax.data.latents import autoencoder_key
from cmjax.runs.classes import differing_classes, other_autoencoder
from cmjax.runs.trained import Trained, load, open_trained

log = logging.getLogger(__name__)


def check_others(run: Run) -> None:
    """Raise ConfigError where another run that this one needs is absent, or did not learn what the objective needs.
    Starts no device."""
    for name, field in ((run.method.teacher, _teacher_field(run)), (run.init_from, "init_from")):
        if name:
            _named(name, field, open_trained)
    if run.method.guided_by and not run.label_dropout:
        _check_goes_without_labels(run)


def _check_goes_without_labels(run: Run) -> None:
    """Raise ConfigError where the network that guides the target was never trained without labels.

    That is the teacher, or without one the run `init_from`. The record of imported weights does not say, so for them
    there is only a warning.
    """
    name, field = (run.method.teacher, _teacher_field(run)) if run.method.teacher else (run.init_from, "init_from")
    recorded, guided_by = open_trained(name).recorded, f"config.objective.{run.method.guided_by}"
    if not recorded.has_data:
        log.warning("%s: nothing says whether config.%s=%r learned to go without a label", guided_by, field, name)
    elif not recorded.learned_without_labels:
        where = "that run" if run.method.teacher else "this run or that one"
        raise ConfigError(
            f"config.{field}={name!r}: was trained with config.data.label_dropout=0, and {guided_by} needs a network "
            f"that learned to go without a label: train {where} with config.data.label_dropout=0.1"
        )


def load_teacher(run: Run, mesh: Mesh) -> BoundModel:
    """Load the teacher. If it uses dropout in the objective, its rate is the student's."""
    if not run.method.teacher_drops_out:
        return load_other(run.method.teacher, _teacher_field(run), mesh)
    rate = run.model_spec.net.get("dropout", 0.0)
    return _named(
        run.method.teacher, _teacher_field(run), lambda name: open_trained(name).dropping_out(rate).load(mesh=mesh)
    )


def load_other(workdir: str, field: str, mesh: Mesh) -> BoundModel:
    """Load the model of another run, to start from or to distil.

    Raises: ConfigError naming the field that names its folder.
    """
    return _named(workdir, field, partial(load, mesh=mesh))


def check_teacher(run: Run, teacher: BoundModel, student: NetworkModel, shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the teacher does not fit the objective, the data or the student's classes."""
    name, needed, field = run.method.teacher, run.method.teacher_kind, _teacher_field(run)
    if teacher.kind != needed or teacher.shape != shape:
        raise ConfigError(
            f"config.{field}={name!r} is a {teacher.kind} of images {teacher.shape}; a {needed} of images {shape} is "
            "needed"
        )
    conditional = open_trained(name).model.class_conditional
    if conditional != student.class_conditional:
        raise ConfigError(
            f"config.net.class_conditional={student.class_conditional}: config.{field}={name!r} has {conditional}; "
            "they must agree"
        )


def check_classes_of_others(run: Run, student: NetworkModel, source: Source) -> None:
    """Raise ConfigError where the labels of a teacher, or of the run `init_from`, mean other classes than these."""
    for name, field in ((run.method.teacher, _teacher_field(run)), (run.init_from, "init_from")):
        if name and student.class_conditional:
            check_classes(open_trained(name), source, f"config.{field}={name!r}")


def check_latents_of_others(run: Run, source: Source) -> None:
    """Raise ConfigError where a teacher, or the run `init_from`, learned the latents of another autoencoder."""
    for name, field in ((run.method.teacher, _teacher_field(run)), (run.init_from, "init_from")):
        if name and (problem := other_autoencoder(open_trained(name).record, autoencoder_key(source))):
            raise ConfigError(f"config.{field}={name!r}: was trained on latents of {problem}")


def check_classes(trained: Trained, source: Source, where: str) -> None:
    """Raise ConfigError where a run with classes was trained with others than those of the data."""
    if not trained.model.class_conditional or source.num_classes is None:
        return
    theirs = trained.record["num_classes"]
    if theirs != source.num_classes:
        raise ConfigError(f"{where}: it was trained with {theirs} classes, and the data have {source.num_classes}")
    if problem := differing_classes(trained.record.get("class_names"), class_names(source)):
        raise ConfigError(f"{where}: its labels mean other classes: {problem}")


def network_differences(name: str, module: Any, shape: tuple[int, ...]) -> str:
    """Describe how another run's network differs from this one, as "; net.width is 32 there and 64 here"."""
    other = open_trained(name)
    theirs, ours = ({f.name: getattr(m, f.name) for f in fields(m)} for m in (other.model.module, module))
    theirs["name"], ours["name"] = (type(m).__name__.lower() for m in (other.model.module, module))
    names = [field for field in ours if field in theirs and field != "parent"]
    pairs = {f"net.{field}": (theirs[field], ours[field]) for field in names if theirs[field] != ours[field]}
    pairs |= {"a sample": (other.shape, tuple(shape))} if other.shape != tuple(shape) else {}
    return "".join(f"; {field} is {there!r} there and {here!r} here" for field, (there, here) in pairs.items())


def _teacher_field(run: Run) -> str:
    return f"objective.{run.method.teacher_as}"


def _named(workdir: str, field: str, read: Callable[[str], Any]) -> Any:
    """Call `read` on another run's folder. Raises: ConfigError naming the field that names the folder."""
    try:
        return read(workdir)
    except (ConfigError, RuntimeError) as error:
        recipe, _, variant = Path(workdir).name.partition("-")
        raise ConfigError(
            f"{about(f'config.{field}', repr(workdir), error)}. Train it first, as with\n"
            f"  python -m cmjax.main --config=configs/{recipe}.py{variant and ':'}{variant} --workdir={workdir}"
        ) from error
