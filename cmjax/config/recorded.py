"""Reads the configuration in a run's record: its model and its samples, and what of it a checkpoint depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from cmjax.config.averages import average_texts, same_but_for_start, uncorrected
from cmjax.config.fields import Fields
from cmjax.config.methods import NO_AVERAGE, read_model, read_spec
from cmjax.config.model import NetworkModel
from cmjax.config.renamed import with_new_names
from cmjax.config.samples import AS_BEFORE, Decoding, SamplingOptions, read_decoding, read_samples, scales_of
from cmjax.nets import NETS, defaults

if TYPE_CHECKING:
    from cmjax.training.lora import Lora

ITS_TEACHER = "teacher"  # the `init_from` of a run that starts from the model that it distils


@dataclass(frozen=True)
class Recorded:
    """A run's model, and where it comes from.

    averages, path, preconditioning: as they are written. learned_without_labels: whether training left some labels
    out. teacher, init_from: folders of the runs that it distils and that it started from, "" for none. has_data:
    whether the data set is recorded, which it is not for weights that no run here trained. decoding: of its
    latents. scales: of guidance, the least and the largest in training; None where the network takes none.
    lora: the adapter that the run's checkpoints hold; None where they hold the network's parameters.
    """

    model: NetworkModel
    averages: tuple[str, ...]
    learned_without_labels: bool
    path: str
    preconditioning: str
    teacher: str
    init_from: str
    has_data: bool
    decoding: Decoding
    scales: tuple[float, float] | None
    lora: "Lora | None" = None

    @property
    def goes_without_labels(self) -> bool:
        """Says whether the network may have learned to do without labels, in this run or in one not read here."""
        others = self.teacher or self.init_from or not self.has_data
        return bool(self.learned_without_labels or others or not self.model.class_conditional)


def read_recorded(config: Mapping[str, Any], num_classes: int | None) -> Recorded:
    """Read the configuration of a record, which was checked when its run began."""
    teacher = config.get("objective", {}).get("teacher", "")
    return Recorded(
        model=read_model(config, num_classes),
        averages=average_texts(config),
        learned_without_labels=bool(config.get("data", {}).get("label_dropout")),
        path=str(config["model"]["path"]),
        preconditioning=config["model"]["preconditioning"],
        teacher=teacher,
        init_from=teacher if config.get("init_from") == ITS_TEACHER else config.get("init_from", ""),
        has_data="data" in config,
        decoding=read_decoding(Fields(config.get("data", {}))),
        scales=scales_of(config),
        lora=_lora_of(config),
    )


def recorded_samples(config: Mapping[str, Any]) -> SamplingOptions:
    """Reads how the run makes its samples; the defaults of `SamplingOptions` for weights that no run here trained.

    Raises: ConfigError where a library that its solver needs is not installed.
    """
    fields = Fields(config)
    trained = fields.has("samples") and fields.has("data")
    return read_samples(fields.section("samples"), read_spec(fields)) if trained else SamplingOptions()


FREE = ("net.remat", "net.attention", "net.dropout", "net.dtype", "model.rho", "optimizer.averages.corrected")
"""Fields that no checkpoint depends on, as when a run's memory ran out."""
SHAPES_STATE = ("net.", "model.", "lora.", "objective.name", "optimizer.rule", "optimizer.averages")
"""The sections and fields that a run's checkpoints depend on."""


def shapes_state(field: str, old: Any, new: Any) -> bool:
    """Says whether a run's checkpoints depend on this change of a field, so that the run cannot go on with it."""
    if field == "objective.target":  # an average of the parameters is kept, whatever its rate, or none is
        return NO_AVERAGE in (old, new)
    if field == "optimizer.restart_each_stage":  # the rule's state counts updates; runs without the field do not
        return bool(old) != bool(new)
    if field == "optimizer.averages" and None not in (old, new):
        return not same_but_for_start(old, new)
    return field.startswith(SHAPES_STATE) and field not in FREE


BESIDE_TRAINING = ("samples", "metrics", "evaluate", "log", "checkpoint", "report", "mesh", "steps_per_call")
WITHOUT_COLUMNS = {"image_column": "", "label_column": "", "caption_column": ""}
"""The fields of tables' columns, with their values for other data."""
BESIDE_TRAINING_OF_DATA = ("data_dir", "workers", "memory_limit_gb", "max_corrupt", "caption_column", *AS_BEFORE)
"""Sections and fields that change no parameter: what is sampled, written and logged, and where data and devices are."""


def is_of_training(field: str) -> bool:
    """Says whether the parameters that a run reaches depend on a field, as "optimizer.learning_rate"."""
    section, _, rest = field.partition(".")
    return section not in BESIDE_TRAINING and not (section == "data" and rest in BESIDE_TRAINING_OF_DATA)


def with_free_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the old configuration with all that is not of training as the new one has it."""
    free = {name: new[name] for name in BESIDE_TRAINING if name in new}
    data = {name: new["data"][name] for name in BESIDE_TRAINING_OF_DATA if name in new.get("data", {})}
    return {**old, **free, **({"data": {**old["data"], **data}} if "data" in old else {})}


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the configuration without the paths of one machine: folders of data are left out, and other runs are named
    without theirs."""
    config = dict(config)
    if "data" in config:
        config["data"] = {**config["data"], "data_dir": "", "autoencoder": ""}
    if config.get("init_from"):
        config["init_from"] = PurePath(config["init_from"]).name
    if config.get("objective", {}).get("teacher"):
        config["objective"] = {**config["objective"], "teacher": PurePath(config["objective"]["teacher"]).name}
    return config


def is_class_conditional(config: Mapping[str, Any]) -> bool:
    """Says whether the model of a configuration takes classes."""
    return bool(config["net"].get("class_conditional"))


def completed(config: Mapping[str, Any], record_format: int) -> dict[str, Any]:
    """Gives the configuration with the fields that older runs did not record, as they were without a choice."""
    config = with_new_names(config)
    if record_format < 2 and "averages" in (optimizer := config.get("optimizer", {})):
        config = {**config, "optimizer": {**optimizer, "averages": uncorrected(optimizer["averages"])}}
    net = config.get("net", {})
    # a field that a network got later has the default that leaves older networks as they are
    network = defaults(net["name"]) if net.get("name") in NETS else {}
    data = {"data": {**AS_BEFORE, **WITHOUT_COLUMNS, **config["data"]}} if "data" in config else {}
    return {**config, **data, "model": {"path": "ve", **config.get("model", {})}, "net": {**network, **net}}


def _lora_of(config: Mapping[str, Any]) -> "Lora | None":
    if "lora" not in config:
        return None
    # here, not above: most runs train no adapter
    from cmjax.config.lora import read_lora

    return read_lora(Fields(config))
