"""Reads a whole configuration into a `Run`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array

from cmjax.config.data import Data, read_data
from cmjax.config.effects import without_effect
from cmjax.config.evaluation import Evaluation, read_evaluation
from cmjax.config.examples import check_no_images, read_augment, read_label_dropout, read_workers
from cmjax.config.fields import Fields
from cmjax.config.lora import read_lora
from cmjax.config.methods import read_spec
from cmjax.config.model import ModelSpec, NetworkModel
from cmjax.config.objective import read_method
from cmjax.config.optimizer import read_optimizer
from cmjax.config.recorded import ITS_TEACHER
from cmjax.config.samples import SamplingOptions, read_samples
from cmjax.core.times import part_of
from cmjax.core.typing import Params, Schedule
from cmjax.data.checks import check_spread
from cmjax.data.sources import Source
from cmjax.training.lora import BASE, Lora
from cmjax.training.method import TEACHER, Method

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """save_every: steps. keep: the newest so many; keep_every: steps between those that are kept for good."""

    save_every: int
    keep: int
    keep_every: int | None


@dataclass(frozen=True)
class Log:
    """every: steps between records. bins: of noise levels whose mean losses are recorded; 0 for none."""

    every: int
    tensorboard: bool
    wandb: bool
    bins: int


@dataclass(frozen=True)
class Run:
    """Holds all that a training run needs, checked. Reading it touches no device and no data."""

    seed: int
    steps: int
    batch_size: int
    grad_accumulation: int
    steps_per_call: int
    fsdp: int
    init_from: str
    lora: Lora | None
    horizontal_flip: bool
    label_dropout: float
    workers: int
    augment: Callable[..., tuple[Array, Array]] | None
    data: Data
    model_spec: ModelSpec
    method: Method
    optimizer: optax.GradientTransformation
    skip_nonfinite: int
    schedules: Mapping[str, Schedule]
    checkpoint: Checkpoints
    log: Log
    samples: SamplingOptions
    num_metrics: int
    evaluation: Evaluation
    report: bool
    config: Mapping[str, Any]

    def open_source(self, split: str) -> Source:
        """Opens the examples of a split, as `Data.open`. A warning says where their std is not the model's."""
        source = self.data.open(split)
        if split == "train":
            by_sigma = self.model_spec.path_name in ("ve", "trig")
            # on the other paths the noise has std 1, and so should the data
            expected = self.model_spec.constants["sigma_data"] if by_sigma else 1.0
            field = "config.model.sigma_data" if by_sigma else f"the path {self.model_spec.path_name}"
            check_spread(source, self.data.data_dir or self.data.name, expected, field)
        return source

    def warn_of_no_effect(self, shape: tuple[int, ...]) -> None:
        """Warns of the fields that have no effect with samples of this shape."""
        if reasons := without_effect(self.config, shape):
            log.warning("not as asked: %s", "; ".join(f"config.{field}: {why}" for field, why in reasons.items()))

    def trained(self, params: Params) -> Params:
        """Gives the shapes of what is trained of a network with these parameters: them, or those of an adapter."""
        return params if self.lora is None else self.lora.shapes(params)

    def whole(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        """Gives the network's parameters: those that are trained, or frozen ones with the changes of an adapter."""
        return params if self.lora is None else self.lora.merged(self.base(frozen), params)

    @staticmethod
    def base(frozen: Mapping[str, Params]) -> Params:
        """Gives the parameters that an adapter changes: the teacher's, where the run starts from that."""
        return frozen[BASE if BASE in frozen else TEACHER]

    def make_model(self, num_classes: int | None) -> NetworkModel:
        """Makes the model for a data set of so many classes."""
        return self.model_spec.make(num_classes)


def read_run(config: Mapping[str, Any], *, data_there: bool = True) -> Run:
    """Checks a whole configuration and makes its plain objects. data_there: as in `read_data`.

    Raises: ConfigError naming the field, the value and the choices.
    """
    fields = Fields(config)
    of_data, net = fields.section("data"), fields.section("net")
    data = read_data(of_data, there=data_there)
    steps, batch_size = fields.integer("steps", at_least=1), fields.integer("batch_size", at_least=1)
    parts = fields.integer("grad_accumulation", at_least=1)
    if batch_size % parts:
        raise fields.error("grad_accumulation", f"must divide batch_size={batch_size}")
    spec = read_spec(fields)
    method = read_method(fields.section("objective"), spec, steps)
    check_no_images(fields, data, method.frozen)
    _check_together(fields, spec, method, batch_size // parts)
    # The averages of the parameters hold the target's too, whose rate is the method's.
    of_optimizer = fields.section("optimizer")
    by = {"target_rate": method.target_rate, "stages": method.stages, "steps": steps, "batch_size": batch_size}
    optimizer, learning_rate = read_optimizer(of_optimizer, network=net.text("name"), **by)
    run = Run(
        seed=fields.integer("seed", at_least=0),
        steps=steps,
        batch_size=batch_size,
        grad_accumulation=parts,
        steps_per_call=fields.integer("steps_per_call", at_least=1, at_most=10**4, absent=1),
        fsdp=fields.section("mesh").integer("fsdp", at_least=1),
        init_from=_read_init_from(fields, method),
        lora=read_lora(fields),
        horizontal_flip=of_data.boolean("horizontal_flip"),
        label_dropout=read_label_dropout(of_data, net),
        workers=read_workers(of_data),
        augment=read_augment(of_data, net, spec.kind),
        data=data,
        model_spec=spec,
        method=method,
        optimizer=optimizer,
        skip_nonfinite=of_optimizer.integer("skip_nonfinite", at_least=0, absent=0),
        schedules={**method.schedules, "learning_rate": learning_rate},
        checkpoint=_read_checkpoints(fields.section("checkpoint")),
        log=_read_log(fields.section("log")),
        samples=read_samples(fields.section("samples"), spec),
        num_metrics=fields.section("metrics").integer("num", at_least=0, at_most=10**6),
        evaluation=read_evaluation(fields.section("evaluate")) if fields.has("evaluate") else Evaluation(),
        report=fields.boolean("report", absent=True),
        config=config,
    )
    _check_calls(fields, run)
    return run


def _read_init_from(fields: Fields, method: Method) -> str:
    """Reads the folder of the run whose parameters this one starts from, "" for none."""
    name = fields.path("init_from")
    if name == ITS_TEACHER and not method.teacher:
        raise fields.error("init_from", "config.objective distils no teacher: name a run's folder")
    return method.teacher if name == ITS_TEACHER else name


def _check_calls(fields: Fields, run: Run) -> None:
    """Raise ConfigError where a field was not read, or something is to be done between two steps of one call."""
    # last: only now is it known which fields nobody read
    fields.done()
    numbers = {"steps": run.steps, "checkpoint.save_every": run.checkpoint.save_every, "log.every": run.log.every}
    numbers |= {"samples.every": run.samples.every, "evaluate.every": run.evaluation.every}
    for name, number in numbers.items():
        if number % run.steps_per_call:
            raise fields.error("steps_per_call", f"must divide config.{name}={number}")


def _check_together(fields: Fields, spec: ModelSpec, method: Method, part: int) -> None:
    """Raise ConfigError where the method does not fit the network, or a part of the batch of `part` samples."""
    # a part's first samples learn in another way: some must, and some must not
    if method.fraction and not 0 < part_of(method.fraction, part) < part:
        problem = f"config.objective.fraction={method.fraction} of a part of {part} must leave samples of both kinds"
        raise fields.error("grad_accumulation", problem)
    if part % method.group:
        problem = f"a part, of {part} samples (config.grad_accumulation), must hold whole groups of {method.group}"
        raise fields.error("batch_size", problem)
    section = fields.section("data")
    if method.guided_by and not (method.teacher or fields.text("init_from") or section.number("label_dropout")):
        field = f"config.objective.{method.guided_by}={fields.section('objective').value(method.guided_by)!r}"
        problem = f"{field} needs a network that learns to go without a label: set it to 0.1"
        raise section.error("label_dropout", problem)
    name = fields.section("objective").text("name")
    for field, taken, what in (
        ("guided", method.guidance is not None, "gives no scale of guidance"),
        ("guided_interval", method.interval is not None, "gives no interval of guidance"),
        ("velocity_head", "velocity_head" in method.choices, "trains no second head"),
    ):
        if spec.net.get(field) and not taken:
            raise fields.section("net").error(field, f"config.objective.name={name!r} {what}: set it to False")


def _read_checkpoints(fields: Fields) -> Checkpoints:
    return Checkpoints(
        save_every=fields.integer("save_every", at_least=1),
        keep=fields.integer("keep", at_least=1),
        keep_every=fields.integer("keep_every", at_least=0) or None,
    )


def _read_log(fields: Fields) -> Log:
    return Log(
        every=fields.integer("every", at_least=1),
        tensorboard=fields.boolean("tensorboard"),
        wandb=fields.boolean("wandb"),
        bins=fields.integer("bins", at_least=0, at_most=1000, absent=0),
    )
