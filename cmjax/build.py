"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cmjax.core import curricula, distances, losses, pairs, paths, preconditioning, solvers, weightings
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import Denoiser, Params, PRNGKey, Schedule
from cmjax.data import sources
from cmjax.fields import ConfigError, Fields
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.lpips import load_lpips, lpips
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import UNet
from cmjax.training import optimizer as optimizers
from cmjax.training.step import Objective

NETS = {"mlp": MLP, "unet": UNet}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECONDITIONINGS = {
    "denoiser": {"edm": preconditioning.edm},
    "consistency": {"consistency": preconditioning.consistency, "piecewise": preconditioning.piecewise},
}
TIMES = {"lognormal": pairs.lognormal_times}
INTERVALS = {"uniform": pairs.uniform_intervals, "lognormal": pairs.lognormal_intervals}
CURRICULA = {
    "constant": curricula.constant,
    "square_root_growth": curricula.square_root_growth,
    "doubling": curricula.doubling,
}
TARGETS = {
    "stop_gradient": curricula.student_as_target,
    "ema": curricula.constant_rate,
    "scheduled_ema": curricula.scheduled_rate,
}
WEIGHTINGS = {
    "uniform": weightings.uniform,
    "inverse_gap": weightings.inverse_gap,
    "snr": weightings.snr,
    "snr_plus_one": weightings.snr_plus_one,
    "truncated_snr": weightings.truncated_snr,
    "karras": weightings.karras,
}
ODE_STEPS = {"euler": solvers.euler_step, "heun": solvers.heun_step}
RULES = {"adam": optax.scale_by_adam, "radam": optax.scale_by_radam}
LEARNING_RATES = {
    "constant": optimizers.constant_rate,
    "cosine": optimizers.cosine_rate,
    "linear": optimizers.linear_rate,
}
AVERAGES = {"ema": optimizers.ema, "half_life": optimizers.half_life}


def _lpips(*, vgg: str, heads: str, resize: int = 224) -> tuple[Callable, Callable]:
    """LPIPS, and the loader of its weights: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`."""
    return partial(lpips, resize=resize), partial(load_lpips, vgg, heads)


DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "pseudo_huber": distances.pseudo_huber,
    "lpips": _lpips,
}


@dataclass(frozen=True)
class Model:
    """A preconditioned network without parameters. `kind` is "denoiser" or "consistency", as in `FlowMap`."""

    module: nn.Module
    denoiser: Denoiser
    kind: str
    constants: Mapping[str, float]
    class_conditional: bool

    def init(self, key: PRNGKey, shape: tuple[int, ...]) -> Params:
        """Fresh parameters for samples of `shape` (h, w, c)."""
        return init_params(self.module, key, shape)

    def bind(self, params: Params, shape: tuple[int, ...]) -> FlowMap:
        c = self.constants
        return FlowMap(params, self.denoiser, tuple(shape), c["t_min"], c["t_max"], self.kind)


@dataclass(frozen=True)
class Method:
    """An objective that waits for its networks. `frozen` loads what it uses and training leaves alone."""

    objective: Callable[[Model, FlowMap | None], Objective]
    target_rate: Schedule | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    teacher: str = ""
    frozen: Mapping[str, Callable[[], Params]] = field(default_factory=dict)


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
    open_source: Callable[..., sources.Source]
    make_model: Callable[[int | None], Model]
    method: Method
    optimizer: optax.GradientTransformation
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
    kind, constants, make_model = _read_model(fields)
    method = _read_method(fields.section("objective"), constants, steps)
    optimizer, learning_rate = _read_optimizer(fields.section("optimizer"), steps, batch_size, method.target_rate)
    run = Run(
        seed=fields.integer("seed", at_least=0),
        steps=steps,
        batch_size=batch_size,
        grad_accumulation=parts,
        fsdp=fields.section("mesh").integer("fsdp", at_least=1),
        init_from=fields.text("init_from"),
        horizontal_flip=fields.section("data").boolean("horizontal_flip"),
        open_source=_read_data(fields.section("data")),
        make_model=make_model,
        method=method,
        optimizer=optimizer,
        schedules={**method.schedules, "learning_rate": learning_rate},
        checkpoint=_read_checkpoint(fields.section("checkpoint")),
        log=_read_log(fields.section("log")),
        samples=_read_samples(fields.section("samples"), kind, constants),
        num_figures=fields.section("figures").integer("num", at_least=0),
    )
    fields.done()
    return run


def read_model(config: Mapping[str, Any], num_classes: int | None) -> Model:
    """The model of a configuration that was checked when its run began."""
    return _read_model(Fields(config))[2](num_classes)


def _read_model(fields: Fields) -> tuple[str, dict[str, float], Callable[[int | None], Model]]:
    kind = "denoiser" if fields.section("objective").one_of("name", METHODS) == "denoising" else "consistency"
    section = fields.section("model")
    constants = {name: section.number(name, above=0) for name in ("sigma_data", "t_min", "t_max", "rho")}
    if constants["t_min"] >= constants["t_max"]:
        raise section.error("t_min", f"must be below t_max={constants['t_max']}")
    scalings = section.choice("preconditioning", PRECONDITIONINGS[kind], **constants)

    net = fields.section("net")
    module_class = NETS[net.one_of("name", NETS)]
    conditional = net.boolean("class_conditional")
    knobs: dict[str, Any] = {"dtype": DTYPES[net.one_of("dtype", DTYPES)]}
    free = {f.name: f.default for f in dataclasses.fields(module_class)}
    for name in set(net.remaining()) & set(free) - {"parent", "name", "num_classes"}:
        knobs[name] = _like(net, name, free[name])

    def make_model(num_classes: int | None) -> Model:
        if conditional and not num_classes:
            raise ConfigError("config.net.class_conditional=True: the data set has no classes")
        module = module_class(**knobs, num_classes=num_classes if conditional else 0)
        denoiser = preconditioning.precondition(as_net(module), scalings)
        return Model(module, denoiser, kind, constants, conditional)

    return kind, constants, make_model


def _like(fields: Fields, name: str, default: Any) -> Any:
    """The field's value, of the type of a network field's default."""
    if isinstance(default, bool):
        return fields.boolean(name)
    if isinstance(default, int):
        return fields.integer(name, at_least=0)
    if isinstance(default, float):
        return fields.number(name, at_least=0)
    if isinstance(default, tuple):
        return tuple(int(v) if v == int(v) else v for v in fields.numbers(name))
    return fields.value(name)


def _read_denoising(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    times = fields.call("times", TIMES)
    weight = fields.choice("weight", WEIGHTINGS, **constants)

    def objective(model, teacher):
        def loss(params, target_params, frozen, key, x0, step, conditions):
            pair_key, loss_key = jax.random.split(key)
            pair = times(pair_key, len(x0), step)
            return losses.denoising_loss(
                model.denoiser, params, loss_key, x0, pair, path=paths.ve, weight=weight, conditions=conditions
            )

        return loss

    return Method(objective)


def _read_consistency(fields: Fields, constants: Mapping[str, float], steps: int, ode_step=None, teacher="") -> Method:
    """CT, or CD where there is an `ode_step` for the teacher."""
    curriculum = fields.call("curriculum", CURRICULA, total_steps=steps)
    grid = {name: constants[name] for name in ("t_min", "t_max", "rho")}
    draw = pairs.grid_pairs(curriculum, probabilities=fields.choice("intervals", INTERVALS), **grid)
    weight = fields.choice("weight", WEIGHTINGS, **constants)
    distance, frozen = _read_distance(fields)
    target_rate = fields.call("target", TARGETS, curriculum=curriculum)

    def objective(model, teacher):
        def loss(params, target_params, frozen, key, x0, step, conditions):
            pair_key, loss_key = jax.random.split(key)
            pair = draw(pair_key, len(x0), step)
            shared = {"path": paths.ve, "distance": distance(frozen), "weight": weight, "conditions": conditions}
            if teacher is None:
                return losses.consistency_training_loss(
                    model.denoiser, params, target_params, loss_key, x0, pair, **shared
                )
            return losses.consistency_distillation_loss(
                model.denoiser, params, target_params, loss_key, x0, pair,
                teacher=teacher.denoiser, teacher_params=frozen["teacher"], ode_step=ode_step, **shared,
            )  # fmt: skip

        return loss

    schedules: dict[str, Schedule] = {"num_scales": curriculum}
    if target_rate is not None:
        schedules["target_rate"] = target_rate
    return Method(objective, target_rate, schedules, teacher, frozen)


def _read_distillation(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    ode_step = fields.choice("ode_step", ODE_STEPS)
    teacher = fields.text("teacher")
    if not teacher:
        raise fields.error("teacher", "must name the workdir of a trained diffusion teacher")
    return _read_consistency(fields, constants, steps, ode_step, teacher)


METHODS = {"denoising": _read_denoising, "ct": _read_consistency, "cd": _read_distillation}


def _read_method(fields: Fields, constants: Mapping[str, float], steps: int) -> Method:
    return METHODS[fields.one_of("name", METHODS)](fields, constants, steps)


def _read_distance(fields: Fields) -> tuple[Callable[[Mapping[str, Params]], Callable], dict[str, Callable]]:
    chosen = fields.choice("distance", DISTANCES)
    if chosen.func is not _lpips:
        return lambda frozen: chosen, {}
    distance, load_weights = chosen()
    return lambda frozen: partial(distance, frozen["lpips"]), {"lpips": load_weights}


def _read_optimizer(
    fields: Fields, steps: int, batch_size: int, target_rate: Schedule | None
) -> tuple[optax.GradientTransformation, Schedule]:
    rule = fields.choice("rule", RULES)
    peak = fields.number("learning_rate", above=0)
    learning_rate = fields.call("schedule", LEARNING_RATES, peak=peak, total_steps=steps)
    rates: dict[str, Schedule] = {} if target_rate is None else {optimizers.TARGET: target_rate}
    for i, rate in enumerate(fields.calls("averages", AVERAGES, batch_size=batch_size)):
        rates[f"ema{i}"] = rate
    optimizer = optimizers.make_optimizer(
        rule(),
        learning_rate=learning_rate,
        clip_norm=fields.number("clip_norm", at_least=0),
        weight_decay=fields.number("weight_decay", at_least=0),
        average_rates=rates,
    )
    return optimizer, learning_rate


def _read_data(fields: Fields) -> Callable[..., sources.Source]:
    name, data_dir = fields.text("name"), fields.text("data_dir")
    size, channels = fields.integer("image_size", at_least=0), fields.integer("channels", at_least=0)

    def open_source(split: str, progress=None) -> sources.Source:
        if name == "digits":
            return sources.digits(split)
        if not data_dir:
            raise fields.error("data_dir", f"must be given for config.data.name={name!r}")
        if name == "arrays":
            return sources.arrays(data_dir, split)
        if name == "folder":
            if not size:
                raise fields.error("image_size", "must be given for a folder of images, in pixels")
            return sources.folder(data_dir, split, image_size=size, channels=channels or 3, progress=progress)
        return sources.tfds(name, split, data_dir=data_dir, progress=progress)

    def open_checked(split: str, progress=None) -> sources.Source:
        source = open_source(split, progress)
        if size and size not in source.shape[:2]:
            raise fields.error("image_size", f"the images of {name} are {source.shape}; set it to 0 or to their size")
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
    }


def _read_samples(fields: Fields, kind: str, constants: Mapping[str, float]) -> dict[str, Any]:
    settings: dict[str, Any] = {"every": fields.integer("every", at_least=0), "num": fields.integer("num", at_least=1)}
    if kind == "denoiser":
        solver = fields.one_of("solver", ODE_STEPS)
        return settings | {
            "solver": solver,
            "ode_step": ODE_STEPS[solver],
            "solver_steps": fields.integer("solver_steps", at_least=2),
        }
    times = fields.numbers("times")
    try:
        check_times(times, constants["t_min"], constants["t_max"])
    except ConfigError as error:
        raise fields.error("times", str(error)) from error
    return settings | {"times": times}


def check_times(times: tuple[float, ...], t_min: float, t_max: float) -> None:
    """Raise ConfigError where sampling times do not descend within [t_min, t_max]."""
    if any(t <= r for t, r in pairwise(times)):
        raise ConfigError(f"times must descend, got {', '.join(map(str, times))}")
    if not all(t_min <= t <= t_max for t in times):
        raise ConfigError(f"times must lie in [{t_min}, {t_max}], got {', '.join(map(str, times))}")
