"""The other runs that a run needs: its teacher, and the run that it starts from."""

import logging
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from cmjax.config.fields import ConfigError, about
from cmjax.config.model import NetworkModel, predicted
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.data.base import Source, class_names
from cmjax.data.latents import about_latents
from cmjax.runs.classes import differing_classes, other_encoders
from cmjax.runs.trained import Trained, load, open_trained

log = logging.getLogger(__name__)


def check_others(run: Run) -> None:
    """Raise ConfigError where a run that this one needs is absent, or guidance needs a run that learned to go without
    labels, and it did not. Starts no device."""
    others = _others(run)
    for name, field in others:
        _named(name, field, open_trained)
    if not run.method.guided_by or run.label_dropout:
        return
    name, field = others[0]  # the teacher guides the target, or without one the run that this one starts from
    recorded, guided_by = open_trained(name).recorded, f"config.objective.{run.method.guided_by}"
    if not recorded.has_data:  # imported weights do not say how they were trained
        # pipelines are used with guidance, and so were made for it
        level = logging.INFO if recorded.model.prompted else logging.WARNING
        log.log(level, "%s: nothing says whether config.%s=%r learned to go without a label", guided_by, field, name)
    elif not recorded.learned_without_labels:
        where = "that run" if run.method.teacher else "this run or that one"
        raise ConfigError(
            f"config.{field}={name!r}: was trained with config.data.label_dropout=0, and {guided_by} needs a network "
            f"that learned to go without a label: train {where} with config.data.label_dropout=0.1"
        )


def _others(run: Run) -> list[tuple[str, str]]:
    """Lists the folders of the other runs, the teacher's first, each with the field that names it."""
    named = ((run.method.teacher, _teacher_field(run)), (run.init_from, "init_from"))
    return [(name, field) for name, field in named if name]


def load_teacher(run: Run, mesh: Mesh) -> BoundModel:
    """Load the teacher. If it uses dropout in the objective, its rate is the student's."""

    def read(name: str) -> BoundModel:
        teacher = open_trained(name)
        if run.method.teacher_drops_out:
            teacher = teacher.dropping_out(run.model_spec.net.get("dropout", 0.0))
        return teacher.load(mesh=mesh)

    return _named(run.method.teacher, _teacher_field(run), read)


def load_first(run: Run, mesh: Mesh) -> BoundModel:
    """Load the model of the run `init_from`. Raises: ConfigError."""
    return _named(run.init_from, "init_from", partial(load, mesh=mesh))


def check_teacher(run: Run, teacher: BoundModel, student: NetworkModel, shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the teacher does not fit the objective, the data or the student's classes."""
    name, needed, field = run.method.teacher, run.method.teacher_kind, _teacher_field(run)
    # a network of prompts sees latents of any size
    fits = teacher.shape[-1:] == shape[-1:] if student.prompted else teacher.shape == shape
    if teacher.kind != needed or not fits:
        raise ConfigError(
            f"config.{field}={name!r} is a {teacher.kind} of images {teacher.shape}; a {needed} of images {shape} is "
            "needed"
        )
    check_start(run, teacher, student)
    conditional = open_trained(name).model.class_conditional
    if conditional != student.class_conditional:
        raise ConfigError(
            f"config.net.class_conditional={student.class_conditional}: config.{field}={name!r} has {conditional}; "
            "they must agree"
        )


def check_start(run: Run, teacher: BoundModel, student: NetworkModel) -> None:
    """Raise ConfigError where a network of prompts starts from one of another schedule, or with another prediction."""
    if not student.prompted:
        return
    name, field = run.method.teacher, _teacher_field(run)
    if teacher.path != student.path:
        raise ConfigError(f"config.model.path: is {student.path}, and config.{field}={name!r} is of {teacher.path}")
    theirs, ours = predicted(open_trained(name).recorded.preconditioning), predicted(run.model_spec.written)
    if theirs != ours:
        raise ConfigError(
            f"config.model.preconditioning={run.model_spec.written!r}: predicts {ours}, and config.{field}={name!r} "
            f"predicts {theirs}"
        )


def check_data_of_others(run: Run, student: NetworkModel, source: Source) -> None:
    """Raise ConfigError where another run's labels mean other classes, or other encoders made its latents."""
    for name, field in _others(run):
        other, where = open_trained(name), f"config.{field}={name!r}"
        if student.class_conditional:
            check_classes(other, source, where)
        encoded_by = about_latents(source)
        if encoded_by and (problem := other_encoders(other.encoders(), encoded_by)):
            raise ConfigError(f"{where}: was trained on {problem}")


def check_classes(trained: Trained, source: Source, where: str) -> None:
    """Raise ConfigError where a run with classes was trained with others than those of the data."""
    if not trained.model.class_conditional or source.num_classes is None:
        return
    # a record of an earlier version may have no names; the numbers must agree in any case
    theirs = trained.record["num_classes"]
    if theirs != source.num_classes:
        raise ConfigError(f"{where}: it was trained with {theirs} classes, and the data have {source.num_classes}")
    if problem := differing_classes(trained.record.get("class_names"), class_names(source)):
        raise ConfigError(f"{where}: its labels mean other classes: {problem}")


def network_differences(name: str, module: Any, shape: tuple[int, ...]) -> str:
    """Describe how another run's network differs from this one, as "; net.width is 32 there and 64 here"."""
    other = open_trained(name)
    theirs, ours = ({f"net.{f.name}": getattr(m, f.name) for f in fields(m)} for m in (other.model.module, module))
    # a Linen module's own fields: its name in the tree, and what holds it
    theirs["net.name"], ours["net.name"] = (type(m).__name__.lower() for m in (other.model.module, module))
    names = [field for field in ours if field in theirs and field != "net.parent"]
    theirs["a sample"], ours["a sample"] = other.shape, tuple(shape)
    differing = [field for field in (*names, "a sample") if theirs[field] != ours[field]]
    return "".join(f"; {field} is {theirs[field]!r} there and {ours[field]!r} here" for field in differing)


def _teacher_field(run: Run) -> str:
    return f"objective.{run.method.teacher_as}"


def _named(workdir: str, field: str, read: Callable[[str], Any]) -> Any:
    """Call `read` on another run's folder. Raises: ConfigError naming the field that names the folder."""
    try:
        return read(workdir)
    except (ConfigError, RuntimeError) as error:
        # by default a run's folder has the name of its recipe, and its variant behind a dash
        recipe, _, variant = Path(workdir).name.partition("-")
        raise ConfigError(
            f"{about(f'config.{field}', repr(workdir), error)}. Train it first, as with\n"
            f"  python -m cmjax.main --config=configs/{recipe}.py{variant and ':'}{variant} --workdir={workdir}"
        ) from error
