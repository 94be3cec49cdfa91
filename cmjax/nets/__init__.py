"""The networks by their names, and the fields that a recipe lists of each."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cmjax.nets.adm import ADM
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.nets.dit import DiT
from cmjax.nets.edm2 import EDM2
from cmjax.nets.imf_dit import IMFDiT
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import UNet

NETS: dict[str, Any] = {
    "adm": ADM, "conditional_unet": ConditionalUNet, "dit": DiT, "edm2": EDM2, "imf_dit": IMFDiT, "mlp": MLP,
    "unet": UNet,
}  # fmt: skip
UNLISTED = {"adm": {"heads"}, "unet": {"skip_scale"}}
"""Fields that recipes do not list, by the network: imported networks alone set them."""


def defaults(name: str) -> dict[str, Any]:
    """Lists the fields that a recipe lists of the network `name`, with the module's defaults.

    `dtype` is a text, such as "float32". `class_conditional` stands in place of `num_classes`, which the data set
    gives, of a network that can take classes. A field whose default is None, such as `out_channels`, is not listed.
    """
    hidden = {"parent", "name", "num_classes"} | UNLISTED.get(name, set())
    fields = {f.name: f.default for f in dataclasses.fields(NETS[name]) if f.name not in hidden}
    listed = {field: default for field, default in fields.items() if default is not None}
    classes = {"class_conditional": False} if takes_classes(NETS[name]) else {}
    return {**listed, "dtype": jnp.dtype(NETS[name].dtype).name, **classes}


def takes_classes(network: Any) -> bool:
    """Whether a class of `NETS` can take labels."""
    return hasattr(network, "num_classes")
