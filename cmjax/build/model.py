"""The network of a configuration: its module, preconditioning and constants."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cmjax.core import preconditioning
from cmjax.core.sampling import FlowMap
from cmjax.core.typing import Denoiser, Params, PRNGKey
from cmjax.fields import ConfigError, Fields
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.adm import ADM
from cmjax.nets.dit import DiT
from cmjax.nets.edm2 import EDM2
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import UNet

NETS: dict[str, Any] = {"adm": ADM, "dit": DiT, "edm2": EDM2, "mlp": MLP, "unet": UNet}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECONDITIONINGS = {
    "denoiser": {"edm": preconditioning.edm},
    "consistency": {"consistency": preconditioning.consistency, "piecewise": preconditioning.piecewise},
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


def read_model(config: Mapping[str, Any], num_classes: int | None) -> Model:
    """The model of a configuration that was checked when its run began."""
    return model_reader(Fields(config))[2](num_classes)


def model_reader(fields: Fields) -> tuple[str, dict[str, float], Callable[[int | None], Model]]:
    """The model's kind and constants, and a function that makes it once the number of classes is known."""
    kind = "denoiser" if fields.section("objective").text("name") == "denoising" else "consistency"
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
