"""The train step of a configuration: made, compiled, and its inputs."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.core.grids import bin_of, level_edges
from cmjax.core.model import BoundModel
from cmjax.core.typing import PRNGKey, Samples
from cmjax.data.batches import preprocess
from cmjax.data.latents import sample_latents
from cmjax.nets.adapter import count_parameters
from cmjax.runs.setup import Setup
from cmjax.system.memory import FOR_ACTIVATIONS, program_bytes, too_little
from cmjax.training.state import Examples, TrainState
from cmjax.training.step import CompiledStep, TrainStep, compile_train_step, make_method_step, prepare_inputs

log = logging.getLogger(__name__)

LATENTS = 1
"""Folded into a step's key, it gives the key of the samples of latents."""


def compile_step(setup: Setup, state: TrainState, batch: Examples) -> tuple[CompiledStep, float]:
    """Compile the train step of a run. Returns: it, and the seconds that this took.

    Raises: ConfigError where the devices have no room for what it computes.
    """
    run = setup.run
    # before it, since compiling may take minutes
    log.info("compiling the train step of %s parameters", f"{count_parameters(state.params):,}")
    began = time.perf_counter()
    train_step = train_step_of(run, setup.model, setup.teacher, setup.mesh, setup.empty)
    compiled = compile_train_step(train_step, state, setup.frozen, batch, setup.mesh, steps_per_call=run.steps_per_call)
    # the memory that the executable asks for, before its first call fails without a remedy
    if problem := too_little("a step of training", program_bytes(compiled.executable), FOR_ACTIVATIONS):
        raise ConfigError(f"config: {problem}")
    seconds = time.perf_counter() - began
    log.info("compiled in %.1f s; training steps %d to %d", seconds, int(state.step), run.steps)
    return compiled, seconds


def train_step_of(
    run: Run, model: NetworkModel, teacher: BoundModel | None, mesh: Mesh, empty: Mapping[str, Any] | None = None
) -> TrainStep:
    """Make the train step of a configuration, not yet compiled. empty: of `prepare_inputs`."""
    by_level: dict[str, Any] = {}
    if bins := run.log.bins:
        edges = bin_edges(model, bins)
        by_level = {"bins": bins, "bin_of": lambda t: bin_of(model.path.noise_level(t), edges)}
    return make_method_step(
        model.function,
        run.method.with_teacher(teacher, model.path).on(mesh),
        run.optimizer,
        prepare=inputs_of(run, model, empty),
        seed=run.seed,
        grad_accumulation=run.grad_accumulation,
        skip_nonfinite=run.skip_nonfinite,
        schedules=run.schedules,
        whole=run.whole,
        **by_level,
    )


def inputs_of(
    run: Run, model: NetworkModel, empty: Mapping[str, Any] | None = None
) -> Callable[[Examples, PRNGKey], tuple[Samples, dict[str, Array]]]:
    """Bind the configuration's choices to `prepare_inputs`: (batch, key) -> x0 and the network's conditions."""
    prepare = partial(
        prepare_inputs,
        preprocess=partial(preprocess, horizontal_flip=run.horizontal_flip),
        augment=run.augment,
        conditions=model.conditions,
        label_dropout=run.label_dropout,
        empty=empty,
        negative=run.method.guidance is not None and model.prompted,
        **run.method.labels,
    )
    # a key of its own: the draws of other data stay as they were
    return lambda batch, key: prepare(sample_latents(batch, jax.random.fold_in(key, LATENTS)), key)


def bin_edges(model: NetworkModel, bins: int) -> np.ndarray:
    """Gives the noise levels (bins + 1,) that bound the bins of a run's losses."""
    return level_edges(bins, path=model.path, t_min=model.constants["t_min"], t_max=model.constants["t_max"])
