"""Opens a trained run's folder, and loads its model with an average of its parameters."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from cmjax.config.averages import long_average
from cmjax.config.fields import ConfigError, changed
from cmjax.config.model import NetworkModel
from cmjax.config.recorded import Recorded, read_recorded, recorded_samples
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.data.base import kind_of
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.record import read_record
from cmjax.runs.workdir import INDEX, Workdir, cache_compilations
from cmjax.system.files import absolute, is_address, to_path
from cmjax.training.average_rates import average_name
from cmjax.training.saved import CheckpointError
from cmjax.training.saved_averages import restore_average

# annotations alone need these: loading a model imports neither data nor objectives nor samplers
if TYPE_CHECKING:
    from cmjax.config.run import Run
    from cmjax.config.samples import SamplingOptions
    from cmjax.data.base import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Opens a run's folder. record: of `config.json`. step: of the checkpoint; None for the newest."""

    folder: Path
    step: int | None
    record: Mapping[str, Any]
    recorded: Recorded

    @property
    def model(self) -> NetworkModel:
        return self.recorded.model

    @cached_property
    def samples(self) -> "SamplingOptions":
        """The settings of the run's samples, as `recorded_samples`. A model is loaded without them."""
        return recorded_samples(self.record["config"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample, (h, w, c)."""
        return tuple(self.record["shape"])

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None for a model without classes."""
        return self.record["num_classes"] if self.model.class_conditional else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes in their order; their numbers where no names are recorded."""
        classes = self.num_classes or 0
        return tuple(self.record.get("class_names") or map(str, range(classes)))[:classes]

    @property
    def of_latents(self) -> bool:
        """Says whether its samples are latents, as far as that is known."""
        return "encoding" in self.record or kind_of(self.shape) == "latents"

    def encoders(self) -> Mapping[str, str]:
        """Gives the keys of what encoded its data, "autoencoder" and "text_encoder", each where it is recorded."""
        return {name: self.record[name] for name in ("autoencoder", "text_encoder") if name in self.record}

    @property
    def imported(self) -> Mapping[str, str] | None:
        """The origin of the weights; None where this run trained them."""
        return self.record.get("imported")

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return Workdir(self.folder).newest

    @property
    def used_step(self) -> int:
        """The step of the checkpoint that is read. Raises: CheckpointError where there is none."""
        step = self.newest_step if self.step is None else self.step
        if step is None:
            raise CheckpointError(f"no checkpoint in {Workdir(self.folder).checkpoints}")
        return step

    @property
    def title(self) -> str:
        """The title of its plots: "digits_ct, step 4000", or the folder's name alone for imported weights."""
        name = absolute(self.folder).name
        return name if self.imported else f"{name}, step {self.used_step}"

    @property
    def named(self) -> str:
        """The prefix of files made of it, as "step-400-"; "" for the newest checkpoint."""
        return "" if self.step is None else f"step-{self.step}-"

    def run(self) -> "Run":
        """Read the configuration that the run was trained with.

        Raises: ConfigError where no run here trained the weights.
        """
        # here, not above: loading a model reads no data, objective or metrics
        from cmjax.config.run import read_run

        return read_run(self.record["config"])

    @property
    def kind(self) -> str:
        """The kind of its samples: "images", "latents", "signals" or "points"."""
        return "latents" if self.of_latents else kind_of(self.shape)

    @property
    def images_shape(self) -> tuple[int, ...] | None:
        """The shape of an image, (h, w, c); None where its samples are latents, and nothing says what was encoded."""
        if not self.of_latents:
            return self.shape
        shape = self.record.get("encoding", {}).get("images", {}).get("shape")
        return None if shape is None else tuple(shape)

    @property
    def images_name(self) -> str:
        """The name of the data set of `open_images`."""
        images = self.record.get("encoding", {}).get("images", {})
        return images.get("name") or self.run().data.name

    def open_images(self, split: str) -> "Source":
        """Open the images of a split that samples are compared with: the run's data, or those that its latents were
        encoded from.

        Raises: DataError where they are not there.
        """
        from cmjax.config.data import images_of

        encoding = self.record.get("encoding")
        return self.run().open_source(split) if encoding is None else images_of(encoding).open(split)

    def parameter_shapes(self) -> Params:
        """Gives the shapes of what the run's checkpoints hold: the network's parameters, or an adapter."""
        shapes, lora = parameter_shapes(self.model.module, self.shape), self.recorded.lora
        return shapes if lora is None else lora.shapes(shapes)

    def dropping_out(self, rate: float) -> "Trained":
        """Gives the same run with another rate of dropout."""
        config = changed(self.record["config"], "net.dropout", rate)
        return replace(self, recorded=read_recorded(config, self.record["num_classes"]))

    def load(self, *, average: int = 0, mesh: Mesh | None = None) -> BoundModel:
        """Load the model with an average of its parameters, as `load`."""
        params = self.averaged(average=average, mesh=mesh)
        if self.recorded.lora is not None:
            from cmjax.runs.pipelines import base_of

            params = jax.jit(self.recorded.lora.merged)(base_of(self, mesh), params)
        return replace(self.model.bind(params, self.shape), unlabelled=self.recorded.goes_without_labels)

    def averaged(self, *, average: int = 0, mesh: Mesh | None = None) -> Params:
        """Load an average of what the run trained: parameters, or those of an adapter."""
        kept = self.recorded.averages
        if not 0 <= average < len(kept):
            texts = ", ".join(kept)
            raise ConfigError(
                f"average={average}: {self.folder} keeps {len(kept)} average(s), numbered from 0: {texts}"
            )
        params = restore_average(
            self.folder / "checkpoints", self.parameter_shapes, average_name(average), step=self.step, mesh=mesh
        )
        if not self.imported and (warning := long_average(self.record["config"], average, self.used_step)):
            log.warning("%s: %s", self.folder, warning)
        return params


def open_trained(workdir_or_checkpoint: str | Path, *, data_dir: str | None = None) -> Trained:
    """Open a run's folder, or one checkpoint of it. data_dir: of its data, where they were moved.

    Raises: ConfigError where the path is no run's folder.
    """
    folder, step = _local(workdir_or_checkpoint), None
    # checkpoints/<step> is one checkpoint of the run above it
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        folder, step = folder.parent.parent, int(folder.name)
    if (folder / INDEX).is_file():
        from cmjax.runs.pipelines import open_pipeline  # most runs read no foreign files

        return open_pipeline(folder)
    record = read_record(folder)
    trained = Trained(folder, step, record, read_recorded(record["config"], record["num_classes"]))
    # the record of imported weights has no section of data
    if data_dir is None or not trained.recorded.has_data:
        return trained
    return replace(trained, record={**record, "config": changed(record["config"], "data.data_dir", data_dir)})


def _local(workdir: str | Path) -> Path:
    if not is_address(workdir):
        return to_path(workdir)
    # most models are in a folder, and what fetches the others imports readers of files
    from cmjax.runs.addresses import fetch_run

    return fetch_run(str(workdir))


def open_for_sampling(workdir_or_checkpoint: str | Path, *, data_dir: str | None = None) -> Trained:
    """Opens a run as `open_trained`, and keeps the programs that are compiled from here on beside it."""
    trained = open_trained(workdir_or_checkpoint, data_dir=data_dir)
    cache_compilations(trained.folder)
    return trained


def load(workdir_or_checkpoint: str | Path, *, average: int = 0, mesh: Mesh | None = None) -> BoundModel:
    """Load the trained model of a run's folder, bound to an average of its parameters.

    Args:    workdir_or_checkpoint: `runs/digits_ct` for the newest checkpoint, or `runs/digits_ct/checkpoints/4000`;
             the address of a model, `hf://owner/name` of a model hub or `cmjax://digits_ct` of cmjax's own.
             average: which of `config.optimizer.averages`.
             mesh: of all devices of all processes, over which the parameters are laid as in training; every process
             must call then. Without, they come to the first device of this process.
    Returns: flow_map(x, t, **conditions) with x (b, h, w, c) in [-1, 1] units and t a scalar or (b,): the estimate of
             the clean image, f(x, t) of a consistency model or D(x, t) of a teacher.
    Raises:  ConfigError where the path is no run's folder; CheckpointError where no checkpoint can be read.
    """
    return open_trained(workdir_or_checkpoint).load(average=average, mesh=mesh)
