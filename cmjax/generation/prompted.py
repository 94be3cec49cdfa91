"""The conditions of samples during a training by prompts: of fixed prompts, or of captions of the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.data.base import DataError, Source
from cmjax.data.latents import empty_prompt
from cmjax.runs.workdir import PIPELINE


def prompted_conditions(run: Run, model: NetworkModel, source: Source, workdir: Path, num: int) -> dict[str, Any]:
    """Makes the conditions of `num` samples, host arrays: of `samples.prompts` in turn, or of the first captions.

    `negative` is among them where guidance needs the conditions of the empty prompt.

    Raises: ConfigError where there are no text encoders.
    """
    if prompts := run.samples.prompts:
        conditions = _of_prompts(prompts, source.shape, workdir)
    else:
        examples = source.gather(np.arange(min(num, len(source))))
        conditions = {name: np.asarray(examples[name], np.float32) for name in model.conditions}
    rows = np.arange(num) % len(conditions["context"])
    conditions = {name: value[rows] for name, value in conditions.items()}
    if run.samples.guidance == 1 or model.guided:
        return conditions
    return {**conditions, "negative": _without(run, conditions)}


def _of_prompts(prompts: Sequence[str], shape: Sequence[int], workdir: Path) -> dict[str, np.ndarray]:
    from cmjax.interop.keys import ForeignError
    from cmjax.interop.pipeline import load_pipeline  # most runs read no foreign files
    from cmjax.system.libraries import MissingLibrary

    try:
        pipeline = load_pipeline(workdir / PIPELINE, with_unet=False)
    except (ForeignError, MissingLibrary) as error:
        raise ConfigError(f"config.samples.prompts: the text encoder cannot be read: {error}") from error
    height, width = (side * pipeline.autoencoder.factor for side in shape[:2])
    encode = jax.jit(type(pipeline).conditions, static_argnames="size")
    encoded: Mapping[str, Any] = encode(pipeline, pipeline.tokens(prompts), size=(height, width))
    return {name: np.asarray(value, np.float32) for name, value in encoded.items()}


def _without(run: Run, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        empty = empty_prompt(run.data.data_dir)
    except DataError as error:
        raise ConfigError(f"config.data.data_dir={error}") from error
    return {name: np.broadcast_to(value, conditions[name].shape) for name, value in empty.items()}
