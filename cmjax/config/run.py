"""A whole configuration, checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax
from jaxtyping import Array

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.methods import read_method
from cmjax.config.model import Model, read_model_plan
from cmjax.config.samples import read_samples
from cmjax.core.times import part_of
from cmjax.core.typing import Params, Schedule
from cmjax.data import augment, sources
from cmjax.data.base import DataError
from cmjax.data.workers import check_grain
from cmjax.nets.magnitude import normalize_weights
from cmjax.training import optimizer as optimizers
from cmjax.training.method import Method

RULES = {"adam": optax.scale_by_adam, "radam": optax.scale_by_radam}
LEARNING_RATES = {
    "constant": optimizers.constant_rate,
    "cosine": optimizers.cosine_rate,
    "linear": optimizers.linear_rate,
    "inverse_sqrt": optimizers.inverse_sqrt_rate,
}
AVERAGES = {"ema": optimizers.ema, "half_life": optimizers.half_life, "power": optimizers.power}
PROJECTIONS = {"edm2": normalize_weights}
"""What training does to the updated parameters of a network, by its name."""
AUGMENTATIONS = {"edm": augment.edm}


@dataclass(frozen=True)
class Run:
    """What a training run needs, read from a configuration and checked; nothing has touched a device or data yet."""

    seed: int
    steps: int
    batch_size: int
    grad_accumulation: int
    fsdp: int
    init_from: str
    horizontal_flip: bool
    label_dropout: float
    workers: int
    augment: Callable[..., tuple[Array, Array]] | None
    open_source: Callable[..., sources.Source]
    make_model: Callable[[int | None], Model]
    method: Method
    optimizer: optax.GradientTransformation
    skip_nonfinite: int
    schedules: Mapping[str, Schedule]
    checkpoint: Mapping[str, Any]
    log: Mapping[str, Any]
    samples: Mapping[str, Any]
    num_figures: int


def read_run(config: Mapping[str, Any]) -> Run:
    """Check a whole configuration and make its plain objects.

    Raises: ConfigError naming the field, the value and the choices.
    """
    fields = Fields(config)
    steps, batch_size = fields.integer("steps", at_least=1), fields.integer("batch_size", at_least=1)
    parts = fields.integer("grad_accumulation", at_least=1)
    if batch_size % parts:
        raise fields.error("grad_accumulation", f"must divide batch_size={batch_size}")
    model = read_model_plan(fields)
    method = read_method(fields.section("objective"), model, steps)
    part = batch_size // parts
    if method.share and not 0 < part_of(method.share, part) < part:
        problem = f"config.objective.share={method.share} of a part of {part} must leave samples of both kinds"
        raise fields.error("grad_accumulation", problem)
    if model.net.get("guided") and method.guidance is None:
        problem = f"config.objective.name={fields.section('objective').text('name')!r} gives no scale of guidance"
        raise fields.section("net").error("guided", f"{problem}: set it to False")
    projection = PROJECTIONS.get(fields.section("net").text("name"))
    optimizer, learning_rate = _read_optimizer(
        fields.section("optimizer"), steps, batch_size, method.target_rate, projection
    )
    run = Run(
        seed=fields.integer("seed", at_least=0),
        steps=steps,
        batch_size=batch_size,
        grad_accumulation=parts,
        fsdp=fields.section("mesh").integer("fsdp", at_least=1),
        init_from=fields.text("init_from"),
        horizontal_flip=fields.section("data").boolean("horizontal_flip"),
        label_dropout=_read_label_dropout(fields.section("data"), fields.section("net")),
        workers=_read_workers(fields.section("data")),
        augment=_read_augment(fields.section("data"), fields.section("net"), model.kind),
        open_source=_read_data(fields.section("data")),
        make_model=model.make,
        method=method,
        optimizer=optimizer,
        skip_nonfinite=_read_skip_nonfinite(fields.section("optimizer")),
        schedules={**method.schedules, "learning_rate": learning_rate},
        checkpoint=_read_checkpoint(fields.section("checkpoint")),
        log=_read_log(fields.section("log")),
        samples=read_samples(fields.section("samples"), model),
        num_figures=fields.section("figures").integer("num", at_least=0),
    )
    fields.done()
    return run


def _read_optimizer(
    fields: Fields,
    steps: int,
    batch_size: int,
    target_rate: Schedule | None,
    projection: Callable[[Params], Params] | None,
) -> tuple[optax.GradientTransformation, Schedule]:
    rule = fields.choice("rule", RULES)
    peak = fields.number("learning_rate", above=0)
    learning_rate = fields.call("schedule", LEARNING_RATES, peak=peak, total_steps=steps, batch_size=batch_size)
    rates: dict[str, Schedule] = {} if target_rate is None else {optimizers.TARGET: target_rate}
    for i, rate in enumerate(fields.calls("averages", AVERAGES, batch_size=batch_size)):
        rates[f"ema{i}"] = rate
    optimizer = optimizers.make_optimizer(
        rule(),
        learning_rate=learning_rate,
        clip_norm=fields.number("clip_norm", at_least=0),
        weight_decay=fields.number("weight_decay", at_least=0),
        average_rates=rates,
        projection=projection,
    )
    return optimizer, learning_rate


def _read_skip_nonfinite(fields: Fields) -> int:
    """How many steps may be skipped; 0 in configurations older than the choice."""
    return fields.integer("skip_nonfinite", at_least=0) if fields.has("skip_nonfinite") else 0


def _read_label_dropout(data: Fields, net: Fields) -> float:
    """The share of labels that training leaves out, for classifier-free guidance."""
    rate = data.number("label_dropout", at_least=0)
    if rate >= 1:
        raise data.error("label_dropout", "must be below 1: the share of labels that are left out")
    if rate and not net.boolean("class_conditional"):
        raise data.error("label_dropout", "config.net.class_conditional=False: there are no labels to leave out")
    return rate


def _read_workers(data: Fields) -> int:
    workers = data.integer("workers", at_least=0) if data.has("workers") else 0
    try:
        check_grain(workers)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return workers


def _read_augment(data: Fields, net: Fields, kind: str) -> Callable[..., tuple[Array, Array]] | None:
    """(images, key) -> (images, labels); the network must take the labels, for it models images without."""
    if not data.text("augment"):
        return None
    probabilities = data.call("augment", AUGMENTATIONS)
    if kind != "denoiser":
        problem = (
            "only config.objective.name='denoising' trains with augmentation; a student is given images as they are"
        )
        raise data.error("augment", f"{problem}: leave it empty")
    if data.boolean("horizontal_flip"):
        problem = "config.data.augment mirrors images too, and tells the network of it"
        raise data.error("horizontal_flip", f"{problem}: set it to False")
    if not net.has("augment_dim"):
        raise data.error("augment", f"config.net.name={net.text('name')!r} has no input for its labels; leave it empty")
    size, takes = augment.label_size(probabilities), net.integer("augment_dim", at_least=0)
    if takes != size:
        problem = f"it gives each image {size} labels, and the network takes config.net.augment_dim={takes}"
        raise data.error("augment", f"{problem}: set that to {size}")
    return partial(augment.augment, probabilities=probabilities)


def _read_data(fields: Fields) -> Callable[..., sources.Source]:
    name, data_dir = fields.text("name"), fields.text("data_dir")
    size, channels = fields.integer("image_size", at_least=0), fields.integer("channels", at_least=0)
    if name != "digits" and not data_dir:
        raise fields.error("data_dir", f"must be given for config.data.name={name!r}")
    if name == "digits" and data_dir:
        raise fields.error("data_dir", "the digits come with scikit-learn; leave it empty")
    limit = int(1e9 * (fields.number("memory_limit_gb", above=0) if fields.has("memory_limit_gb") else 4.0))
    corrupt = fields.integer("max_corrupt", at_least=0) if fields.has("max_corrupt") else 10
    if name == "folder" and not size:
        raise fields.error("image_size", "must be given for a folder of images, in pixels")

    def open_source(split: str, progress=None) -> sources.Source:
        if name == "digits":
            return sources.digits(split)
        if name == "arrays":
            return sources.arrays(data_dir, split, memory_limit_bytes=limit)
        options = {"progress": progress, "memory_limit_bytes": limit, "max_corrupt": corrupt}
        if name == "folder":
            return sources.folder(data_dir, split, image_size=size, channels=channels or 3, **options)
        return sources.tfds(name, split, data_dir=data_dir, **options)

    def open_checked(split: str, progress=None) -> sources.Source:
        source = open_source(split, progress)
        if size and size not in source.shape[:2]:
            raise fields.error("image_size", f"the images of {name} are {source.shape}; set it to 0 or to their size")
        if channels and channels != source.shape[2]:
            raise fields.error("channels", f"the images of {name} are {source.shape}; set it to 0 or to theirs")
        return source

    return open_checked


def _read_checkpoint(fields: Fields) -> dict[str, Any]:
    every = fields.integer("save_every", at_least=1)
    return {"save_every": every, "keep": fields.integer("keep", at_least=1),
            "keep_every": fields.integer("keep_every", at_least=0) or None}  # fmt: skip


def _read_log(fields: Fields) -> dict[str, Any]:
    return {
        "every": fields.integer("every", at_least=1),
        "tensorboard": fields.boolean("tensorboard"),
        "wandb": fields.boolean("wandb"),
        "bins": fields.integer("bins", at_least=0) if fields.has("bins") else 0,
    }
