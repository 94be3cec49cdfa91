"""Reads the sections `net` and `model`: the network's module, its path, its preconditioning and its constants."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.fields import Choice, ConfigError, Fields, by_name
from cmjax.config.network import read_network
from cmjax.core import model as core
from cmjax.core import paths
from cmjax.core import preconditioning as scalings
from cmjax.core.grids import path_grid
from cmjax.core.model import BoundModel, Kind
from cmjax.core.paths import Path
from cmjax.core.typing import Params, PRNGKey
from cmjax.nets import takes_classes
from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.conditional_unet import STEPS, ConditionalUNet, prompted_net
from cmjax.ranges import LARGE, Positive


def _linear(*, noise_scale: Positive = 1.0) -> Path:
    # one object for the usual path: paths are compared
    return paths.linear if noise_scale == 1 else paths.linear_to(noise_scale=noise_scale)


PATHS: dict[str, Callable[..., Path]] = {
    "ve": lambda: paths.ve,
    "trig": paths.trig,
    "linear": _linear,
    "vp": paths.vp,
    "ddpm": paths.ddpm,
}
LAST_TIMES = {"trig": math.pi / 2, "linear": 1.0, "vp": 1.0, "ddpm": 1.0}
"""Path -> its last time, at which it is noise alone, or its schedule ends."""
_OF_VE = by_name(scalings.consistency, scalings.piecewise, scalings.edm)
_TRIG = by_name(scalings.trig, scalings.trig_edm)
_FLOWS = by_name(scalings.linear_flow, scalings.linear_gap, scalings.linear_expanded, scalings.linear_ends)
_DISCRETE = {
    "denoiser": {"epsilon": scalings.epsilon, "v": scalings.v_prediction},
    "consistency": {"lcm": scalings.lcm},
}
PRECONDITIONINGS: dict[str, dict[str, dict[str, Callable]]] = {
    "ve": {
        "denoiser": by_name(scalings.edm, scalings.consistency, scalings.linear_denoiser),
        "consistency": {**_OF_VE, **by_name(scalings.linear_denoiser, scalings.linear_consistency)},
        "flow_map": {"ctm": scalings.ctm},
    },
    "trig": {"denoiser": _TRIG, "consistency": _TRIG, "flow_map": by_name(scalings.trig_flow)},
    "linear": {
        "denoiser": {"linear": scalings.linear},
        "consistency": {"linear": scalings.linear},
        "flow_map": {
            **_FLOWS,
            "edm_flow": scalings.linear_flow,
            "clean_gap": scalings.linear_flow,
            "scaled_flow": scalings.linear_flow,
        },
    },
    "vp": {**_DISCRETE, "flow_map": by_name(scalings.path_flow)},
    "ddpm": _DISCRETE,
}
"""Path -> kind of model -> its scalings by name.

`edm_flow` and `clean_gap` are `linear_flow` of the velocity that follows from an EDM network, and from a network of the
gap that gives images; `scaled_flow` that of the network times the scale of guidance, which it takes."""
VELOCITIES: dict[str, Callable] = {
    "edm_flow": lambda net, constants: scalings.edm_velocity(net, sigma_data=constants["sigma_data"]),
    "clean_gap": lambda net, constants: scalings.clean_velocity(net),
    "scaled_flow": lambda net, constants: scalings.scaled_velocity(net),
}
OF_BOTH_ENDS = "linear_ends"  # the preconditioning of a flow map whose network takes t and s, and not t and t − s
OF_ONE_TIME = ("linear_gap", "clean_gap", "linear_expanded")  # those of a flow map whose network takes one time


@dataclass(frozen=True)
class ModelSpec:
    """Describes a model before its data set is known; `make(num_classes)` makes it. net: the network's fields.
    preconditioning: its name; written: with its parameters."""

    kind: Kind
    constants: Mapping[str, float]
    path: Path
    path_name: str
    preconditioning: str
    written: Any
    scalings: Callable[..., scalings.Scalings]
    grid: Callable[[int], np.ndarray]
    net: Mapping[str, Any]
    make: Callable[[int | None], "NetworkModel"]


@dataclass(frozen=True)
class NetworkModel:
    """A preconditioned network without parameters. `kind` is that of `BoundModel`.

    function: the network on its path, (params, x, t) or (params, x, t, s) of the kind "flow_map".
    grid: n -> the path's times for n sampling steps, ascending.
    """

    module: nn.Module
    function: core.Model
    kind: Kind
    constants: Mapping[str, float]
    grid: Callable[[int], np.ndarray]
    class_conditional: bool

    @property
    def path(self) -> Path:
        return self.function.path

    @property
    def guided(self) -> bool:
        """Whether the network takes the scale of classifier-free guidance."""
        return getattr(self.module, "guided", False)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The entries of a batch that the network takes beside its images: a label, or what comes of a prompt."""
        return getattr(self.module, "conditions", ("label",) if self.class_conditional else ())

    @property
    def prompted(self) -> bool:
        """Whether the network sees prompts."""
        return isinstance(self.module, ConditionalUNet)

    @property
    def guided_interval(self) -> bool:
        """Whether the network takes the interval of classifier-free guidance."""
        return getattr(self.module, "guided_interval", False)

    def init(self, key: PRNGKey, shape: tuple[int, ...]) -> Params:
        """Makes fresh parameters for samples of `shape` (h, w, c)."""
        return init_params(self.module, key, shape)

    def bind(self, params: Params, shape: tuple[int, ...]) -> BoundModel:
        c = self.constants
        return BoundModel(params, self.function, tuple(shape), c["t_min"], c["t_max"], self.kind, self.path)


def read_model_spec(fields: Fields, kind: Kind, *, made_by: str, made_for: Sequence[str] = ()) -> ModelSpec:
    """Reads the model as far as it is known without its data set, checked.

    Args: kind: as in `BoundModel`. made_by: the field that asks for this kind, for errors. made_for: the paths that
          the method is for, () for all.
    """
    section = fields.section("model")
    path_name, path, constants = _read_path(section, kind)
    chosen = _read_preconditioning(section, kind, made_by, made_for, path_name, path, constants)
    scale = chosen.make
    grid = partial(path_grid, path=path, **{name: constants[name] for name in ("t_min", "t_max", "rho")})

    net = fields.section("net")
    module_class, conditional, knobs = read_network(net)
    _check_inputs(net, knobs, chosen.name, kind, made_by)
    as_function = as_net
    if module_class is ConditionalUNet:
        steps = section.choice("path", PATHS, **constants).parameters.get("steps", STEPS)
        as_function = partial(_as_prompted, steps)

    def make_model(num_classes: int | None) -> NetworkModel:
        if conditional and not num_classes:
            raise ConfigError("config.net.class_conditional=True: the data set has no classes")
        classes: dict[str, Any] = (
            {"num_classes": num_classes if conditional else 0} if takes_classes(module_class) else {}
        )
        module: Any = module_class(**knobs, **classes)
        network = VELOCITIES.get(chosen.name, lambda net, constants: net)(as_function(module), constants)
        function = core.Model(network, path, scale)
        return NetworkModel(module, function, kind, constants, grid, conditional)

    options = {**knobs, "class_conditional": conditional}
    if module_class is ConditionalUNet:
        options |= {"prompted": True, "guided": knobs.get("guidance_width", 0) > 0}
    return ModelSpec(
        kind,
        constants,
        path,
        path_name,
        chosen.name,
        section.value("preconditioning"),
        scale,
        grid,
        options,
        make_model,
    )


def _read_preconditioning(
    section: Fields,
    kind: Kind,
    made_by: str,
    made_for: Sequence[str],
    path_name: str,
    path: Path,
    constants: Mapping[str, float],
) -> Choice:
    """Reads the scalings of a model of this kind on its path."""
    known = PRECONDITIONINGS[path_name].get(kind, {})
    elsewhere = kind == "flow_map" and made_for and path_name not in made_for
    if not known or (elsewhere and section.value("preconditioning") not in known):
        able = [name for name in made_for or PRECONDITIONINGS if kind in PRECONDITIONINGS[name]]
        raise section.error("path", f"{made_by} needs {able[0]}")
    chosen = section.choice("preconditioning", known, path=path, **constants)
    if chosen.name == "edm_flow" and path != paths.linear:
        raise section.error("preconditioning", "edm_flow needs config.model.path=linear, of noise_scale 1")
    if chosen.name == "trig_edm" and not constants["t_min"]:
        raise section.error("t_min", "must be above 0 with preconditioning trig_edm: its network takes ln σ")
    # Traced, not computed: reading a configuration touches no device.
    try:
        jax.eval_shape(chosen.make, *(2 if kind == "flow_map" else 1) * (jax.ShapeDtypeStruct((1,), jnp.float32),))
    except (TypeError, ValueError) as error:  # a parameter of another type or out of its range
        raise section.error("preconditioning", str(error)) from error
    return chosen


def _as_prompted(steps: int, module: Any) -> Callable[..., Any]:
    return partial(prompted_net, module, steps)


def _check_inputs(net: Fields, knobs: Mapping[str, Any], preconditioning: str, kind: Kind, made_by: str) -> None:
    """Raises ConfigError where a network's times are not those that the preconditioning gives it."""
    two_times = kind == "flow_map" and preconditioning not in OF_ONE_TIME
    if bool(knobs.get("two_times")) != two_times:
        why = made_by if kind != "flow_map" else f"config.model.preconditioning={preconditioning}"
        raise net.error("two_times", f"{why} gives it {'two times' if two_times else 'one time'}")
    if knobs.get("second_time_from") and preconditioning != OF_BOTH_ENDS:
        needed = f"config.model.preconditioning={OF_BOTH_ENDS}"
        raise net.error("second_time_from", f"needs {needed}: its last blocks see s and not t − s")
    if preconditioning == "scaled_flow" and not knobs.get("guided"):
        raise net.error("guided", "must be True with preconditioning scaled_flow: it takes the scale of guidance")
    if knobs.get("velocity_head") and preconditioning == "edm_flow":
        raise net.error("velocity_head", "is of a network that gives velocities: not with preconditioning edm_flow")


def _read_path(section: Fields, kind: Kind) -> tuple[str, Path, dict[str, float]]:
    """Reads the path's name, the path, and the constants of the section `model`."""
    constants = {name: section.number(name, above=0, at_most=LARGE) for name in ("sigma_data", "t_max")}
    constants["rho"] = section.number("rho", at_least=1, at_most=100)
    chosen = section.choice("path", PATHS, **constants)
    name, path = chosen.name, section.called("path", chosen)
    constants["t_min"] = section.number("t_min", at_least=0)
    if not constants["t_min"] and (name == "ve" or kind == "denoiser"):
        raise section.error("t_min", f"must be above 0 {'on the path ve' if name == 've' else 'for a denoiser'}")
    if constants["t_max"] > LAST_TIMES.get(name, math.inf):
        raise section.error("t_max", f"must be at most {LAST_TIMES[name]:.6g} on the path {name}")
    if path.spaced_by_level and constants["t_max"] >= path.signal_ends:
        raise section.error("t_max", f"must be below {path.signal_ends:.6g}: steps are spaced by noise level there")
    if constants["t_min"] >= constants["t_max"]:
        raise section.error("t_min", f"must be below t_max={constants['t_max']}")
    return name, path, constants


def predicted(preconditioning: Any) -> str:
    """Gives what a network of a discrete diffusion model's path predicts, "epsilon" or "v"."""
    written = str(preconditioning)
    return "v" if written == "v" or re.search(r"prediction\W+v\b", written) else "epsilon"


def check_network(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the network cannot be made for samples of `shape` (h, w, c). Nothing is computed."""
    try:
        parameter_shapes(module, shape)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"config.net: for images of {shape}: {' '.join(str(error).split())}") from error
