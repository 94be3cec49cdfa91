"""Samples a run as it trains, always from the same noise."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from cmjax.config.model import NetworkModel
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.data.sources import Source
from cmjax.generation.decoding import Decoder
from cmjax.generation.samplers import NamedSampler, run_samplers
from cmjax.generation.sampling import class_labels, guided_by, sample_images
from cmjax.plotting.plots import save_png
from cmjax.plotting.samples import image_of
from cmjax.system.files import to_path
from cmjax.system.processes import is_first
from cmjax.training.average_rates import EMA
from cmjax.training.logging import Results
from cmjax.training.optimizer import averages
from cmjax.training.state import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSamples:
    """Samples a run by each of its samplers, always from the same noise, as its parameters change. decoder: of latents,
    which without one are shown as they are. frozen: of `Setup`, for what a run with an adapter does not train."""

    run: Run
    model: NetworkModel
    source: Source
    workdir: Path
    decoder: Decoder | None = None
    frozen: Mapping[str, Params] = field(default_factory=dict)
    samplers: dict[str, NamedSampler] = field(init=False)

    def __post_init__(self):
        samplers = run_samplers(self.run.samples, self.model)
        # the class is frozen, and this field follows from the others
        object.__setattr__(self, "samplers", {sampler.name: sampler for sampler in samplers})

    def flow_map(self, state: TrainState) -> BoundModel:
        params = averages(state.opt_state)[EMA]
        # an adapter is merged by one program; what is trained whole stays as it lies
        params = params if self.run.lora is None else jax.jit(self.run.whole)(params, self.frozen)
        return self.model.bind(params, self.source.shape)

    def conditioned(
        self, state: TrainState, num: int, *, random_seed: int | None = None
    ) -> tuple[BoundModel, dict[str, np.ndarray]]:
        """Gives the averaged model and the conditions of `num` samples, guided as the recipe says. random_seed: of
        labels, as in `class_labels`."""
        if self.model.prompted:
            from cmjax.generation.prompted import prompted_conditions  # here, not above: most runs see no prompts

            conditions = prompted_conditions(self.run, self.model, self.source, self.workdir, num)
        else:
            num_classes = self.source.num_classes if self.model.class_conditional else None
            conditions = class_labels(num, num_classes, random_seed=random_seed)
        return guided_by(self.flow_map(state), conditions, self.run.samples, self.model)

    def sample(self, state: TrainState, num: int) -> dict[str, np.ndarray]:
        flow_map, conditions = self.conditioned(state, num)
        how = {"seed": self.run.seed, "conditions": conditions, "decode": self.decoder}
        return {name: sample_images(named.sampler, flow_map, num, **how) for name, named in self.samplers.items()}

    def save_grids(self, images: Mapping[str, np.ndarray], step: int) -> dict[str, str]:
        """Writes PNGs into the run's folder. Returns: name -> path."""
        paths = {}
        for name, batch in images.items():
            path = self.workdir / "samples" / f"{step:07d}-{name}.png"
            paths[name] = str(path)
            # every process has the images; one writes them
            if is_first():
                save_png(path, image_of(batch[: self.run.samples.num]))
        return paths

    def refresh(self, state: TrainState, step: int) -> Results:
        """Samples and writes grids; a disk that is full is logged."""
        images = self.sample(state, self.run.samples.num)
        try:
            return grids(self.save_grids(images, step))
        except OSError as error:  # a full disk is no reason to end
            log.warning("no images of step %d: %s", step, error.strerror or error)
            return Results()


def grids(paths: Mapping[str, str]) -> Results:
    """Gives the results of `save_grids`."""
    return Results(images={f"samples/{name}": to_path(path) for name, path in paths.items()})
