"""Checks the data of networks that see prompts, and reads their conditions without a prompt."""

from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.data.base import DataError, Source
from cmjax.data.latents import empty_prompt

TOKENS = 77
"""The number of tokens of a prompt, as CLIP reads it."""


def empty_of(run: Run, model: NetworkModel, source: Source) -> dict[str, np.ndarray] | None:
    """Reads the network's conditions without a prompt, for `prepare_inputs`; None where the run does not need them.

    Raises: ConfigError where the data have no text embeddings, or of another width than the network's.
    """
    if not model.prompted:
        return None
    where = f"config.data.data_dir={run.data.data_dir!r}"
    one: dict[str, Any] = source.gather(np.zeros(1, np.int64))
    if missing := [name for name in model.conditions if name not in one]:
        raise ConfigError(f"{where}: has no {', '.join(missing)} of captions: encode it with --pipeline, see the docs")
    module: Any = model.module
    wanted = {"context": module.context_width, "pooled": module.pooled_width, "sizes": module.sizes}
    for name in model.conditions:
        if one[name].shape[-1] != wanted[name]:
            theirs, field = one[name].shape[-1], {"context": "context_width", "pooled": "pooled_width"}.get(name, name)
            raise ConfigError(f"{where}: its {name} has {theirs} features, and config.net.{field}={wanted[name]}")
    if not run.label_dropout and run.method.guidance is None:
        return None
    try:
        return empty_prompt(run.data.data_dir)
    except DataError as error:
        raise ConfigError(f"config.data.data_dir={error}") from error


def shapes_of_prompts(model: NetworkModel, num: int) -> dict[str, tuple[int, ...]]:
    """Gives the shapes of the conditions of `num` prompts; {} for a network that sees none."""
    if not model.prompted:
        return {}
    module: Any = model.module
    shapes = {"context": (TOKENS, module.context_width), "pooled": (module.pooled_width,), "sizes": (module.sizes,)}
    return {name: (num, *shapes[name]) for name in model.conditions}


def planned_conditions(model: NetworkModel, num: int, *, guidance: float) -> dict[str, Any]:
    """Gives zeros in place of the conditions of `num` samples, where nothing is sampled."""
    conditions = {name: np.zeros(shape, np.float32) for name, shape in shapes_of_prompts(model, num).items()}
    negative = {name: value for name, value in conditions.items() if name != "sizes"}
    return conditions if guidance == 1 or model.guided else {**conditions, "negative": negative}


def planned_empty(model: NetworkModel) -> dict[str, np.ndarray] | None:
    """Gives zeros in place of the conditions without a prompt, where no data are read."""
    shapes = shapes_of_prompts(model, 1)
    return {name: np.zeros(shape[1:], np.float32) for name, shape in shapes.items() if name != "sizes"} or None
