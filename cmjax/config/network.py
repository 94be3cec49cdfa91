"""Reads the section `net`: a network's class, and the fields of its module."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp

from cmjax.config.fields import Fields, value_problem
from cmjax.nets import NETS, takes_classes
from cmjax.ranges import NotNegative, Within

Size = Annotated[int, Within(0, 2**14)]  # the range of a network's whole numbers, unless its module says more
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def read_network(net: Fields) -> tuple[Any, bool, dict[str, Any]]:
    """Reads a network's class, whether it takes labels, and its fields."""
    module_class = NETS[net.one_of("name", NETS)]
    conditional = takes_classes(module_class) and net.boolean("class_conditional")
    if net.value("dtype") == "float16":
        raise net.error("dtype", "ends at 65504 and loses small gradients, and no loss is scaled here: use bfloat16")
    knobs: dict[str, Any] = {"dtype": DTYPES[net.one_of("dtype", DTYPES)]}
    free = {f.name: f for f in dataclasses.fields(module_class)}
    for name in set(net.remaining()) & set(free) - {"parent", "name", "num_classes"}:
        knobs[name] = _network_field(net, name, free[name], module_class.choices)
    return module_class, conditional, knobs


def _network_field(fields: Fields, name: str, field: dataclasses.Field, choices: Mapping[str, Sequence[str]]) -> Any:
    """Reads the value of a network's field, of its kind and in its range."""
    if name in choices:
        return fields.one_of(name, choices[name])
    if isinstance(field.default, bool):
        return fields.boolean(name)
    if isinstance(field.default, tuple):
        if isinstance(next(iter(field.default), None), bool):
            return fields.booleans(name)
        numbers = fields.numbers(name, may_be_empty=name == "attention_resolutions")
        # a command line gives floats, where a network's numbers of channels are whole
        return tuple(int(v) if v == int(v) else v for v in numbers)
    kind: Any = {int: Size, float: NotNegative}.get(field.type, field.type)
    if problem := value_problem(fields.value(name), kind):
        raise fields.error(name, problem)
    return fields.integer(name, at_least=0) if isinstance(field.default, int) else fields.value(name)
