"""Evaluates sets of images by metrics: makes the networks, computes references once, and records the protocol."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.data import NO_IMAGES
from cmjax.config.evaluation import Evaluation
from cmjax.config.fields import ConfigError
from cmjax.data.batches import RULES
from cmjax.evaluation.accumulation import VERSION, DataSets, ImagesOf, accumulate_images, accumulate_split
from cmjax.evaluation.networks import (
    PIXEL_NETWORK,
    FeatureNetwork,
    dataset_network,
    networks_of,
    published_network,
)
from cmjax.interop.statistics import OfNetwork, Pair, read_statistics
from cmjax.metrics.accumulator import Accumulator
from cmjax.metrics.functional import Statistics
from cmjax.metrics.registry import METRICS, PIXELS, too_few
from cmjax.system.content import content_key
from cmjax.system.files import to_path
from cmjax.system.processes import on_first_process
from cmjax.system.progress import Update

log = logging.getLogger(__name__)

MOMENTS = ("features", "spatial")  # the needs of metrics that a file of statistics satisfies
OF_DATA = ("dataset", PIXELS)  # features that are compared with held-out images, unless another reference is named


@dataclass(frozen=True)
class Evaluator:
    """Evaluates sets of images. Every process has one; the accumulators are in the first alone.

    network_of: each metric's network. needed: by network, of its outputs. references, real: accumulators by network.
    protocol: of each metric, what its value depends on beside the images.
    """

    networks: Mapping[str, FeatureNetwork]
    needed: Mapping[str, tuple[str, ...]]
    network_of: Mapping[str, str]
    references: Mapping[str, Accumulator]
    real: Mapping[str, Accumulator]
    protocol: Mapping[str, Any]

    def accumulate(
        self, images_of: ImagesOf, num: int, *, keep: Path | None = None, update: Update = lambda done, text: None
    ) -> dict[str, Accumulator]:
        """Accumulates images 0 … num − 1 as `accumulate_images`."""
        return accumulate_images(self.networks, self.needed, images_of, num, keep=keep, update=update)

    def values(self, accumulators: Mapping[str, Accumulator]) -> dict[str, float]:
        """Computes the metrics' values by name. Every process must call it."""

        def compute() -> dict[str, float]:
            values = {}
            for metric, network in self.network_of.items():
                if network in accumulators:
                    values |= METRICS[metric].of(accumulators[network], self.references[network])
            for name in [name for name, value in values.items() if not math.isfinite(value)]:
                log.warning("%s is %s, and is left out", name, values.pop(name))
            return values

        return on_first_process(compute)

    @cached_property
    def of_real(self) -> dict[str, float]:
        """The values of real images, as many as there are samples or as the data have; without metrics of samples
        alone."""
        return self.values(self.real)

    def reference_statistics(self) -> dict[str, OfNetwork]:
        """Collects what `write_statistics` writes; in the first process alone."""
        statistics = {}
        for name, accumulator in self.references.items():
            kinds = accumulator.known.keys() | accumulator.moments.keys()
            if kinds:
                pairs: dict[str, Pair] = {kind: accumulator.statistics(kind) for kind in sorted(kinds)}
                statistics[name] = OfNetwork(pairs, self.networks[name].key)
        return statistics


def make_evaluator(
    evaluation: Evaluation, data: DataSets | None, *, num: int, reference: str | None, cache_dir: Path
) -> Evaluator:
    """Makes the evaluator of `num` images. Every process must call it.

    Args:   data: the data set; None where a file alone is the reference. reference: "train", "test" or a file of
            statistics; None: held-out images for the data set's features, whose classifier knows the others, and
            training images for a published network.
    Raises: ConfigError or DataError where weights or references are missing.
    """
    network_of = networks_of(evaluation)
    rule = _rule_of_pixels(evaluation, network_of, data)
    from_file = {} if reference in (None, "train", "test") else _read(str(reference), network_of)
    networks, needed, references, real, about = {}, {}, {}, {}, {}
    # each network is made once, however many metrics compare its features
    for name in dict.fromkeys(network_of.values()):
        metrics = [metric for metric, used in network_of.items() if used == name]
        # the classifier of the data has seen the training images
        split = reference if reference in ("train", "test") else "test" if name in OF_DATA else "train"
        needed[name] = tuple(sorted({METRICS[metric].needs for metric in metrics}))
        needs = {METRICS[metric].needs for metric in metrics if not METRICS[metric].without_reference}
        # what the file has needs no data
        needs -= from_file[name].pairs.keys() if name in from_file else set()
        if needs and data is None:
            raise ConfigError(
                f"--reference={reference}: has no {' and no '.join(sorted(needs))} of {name} to compare with; name the "
                "data with --workdir or --config"
            )
        if needs and data is not None:
            _check_number(data, split, metrics)
        network = networks[name] = _network(name, evaluation, data, cache_dir)
        references[name], text = Accumulator(), ""
        if needs and data is not None:
            # one file serves other metrics as well; a covariance of pixels would be too large
            kept = needs if name == PIXELS else needs | {"features", "rows"}
            references[name], text = accumulate_split(network, tuple(sorted(kept)), data, split, cache_dir)
        if name in from_file:
            references[name].known = _checked(str(reference), from_file[name], network, data)
            text = f"{Path(str(reference)).name}{text and '; rows: '}{text}"
        about[name] = {"network": name, "of": network.about, "reference": text}
        # real images are compared as samples are: none of them is in the reference
        other = "train" if split == "test" else "test"
        others = None if data is None else data.split(other)
        if data is not None and others is not None and not too_few(metrics, min(num, len(others))):
            real[name], about[name]["real"] = accumulate_split(network, needed[name], data, other, cache_dir, most=num)
    rules = {}
    for metric, name in network_of.items():
        digest = on_first_process(partial(_hash_of, references[name], METRICS[metric].needs))
        rules[metric] = {"rule": METRICS[metric].rule, **about[name], "hash": digest}
    # the protocol is compared with that of kept rows: another rule, reference or version makes a value anew
    protocol = {"version": VERSION, "uint8": rule, "metrics": rules}
    return Evaluator(networks, needed, network_of, references, real, protocol)


def _rule_of_pixels(evaluation: Evaluation, network_of: Mapping[str, str], data: DataSets | None) -> str:
    """Says how samples become pixels. Raises: ConfigError where a metric is of images alone, and the data are none."""
    if data is None or data.name not in NO_IMAGES:
        return RULES[evaluation.uint8]
    for metric, network in network_of.items():
        if network not in OF_DATA or METRICS[metric].without_reference:
            raise ConfigError(
                f"--metrics={metric}: is of images, and the data are {data.name}; name others, as "
                "--metrics=fd,kid,prdc --features=dataset"
            )
    return "floats as they are"


def _network(name: str, evaluation: Evaluation, data: DataSets | None, cache_dir: Path) -> FeatureNetwork:
    if name != "dataset":
        return PIXEL_NETWORK if name == PIXELS else published_network(name, evaluation.weights)
    if data is None:
        raise ConfigError("--metrics=fd: the data set's classifier needs the data: name --workdir or --config")
    return dataset_network(lambda: data.train, data.test, cache_dir)


def _read(reference: str, network_of: Mapping[str, str]) -> dict[str, OfNetwork]:
    """Reads the file's statistics. Raises: ConfigError where a metric that compares statistics has none in the file, or
    no metric does."""
    try:
        statistics = read_statistics(to_path(reference).expanduser())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--reference={reference}: must be train, test or a file of statistics: {error}") from error
    compared = {metric: name for metric, name in network_of.items() if METRICS[metric].needs in MOMENTS}
    for metric, name in compared.items():
        needs = METRICS[metric].needs
        if name not in statistics or needs not in statistics[name].pairs:
            there = "; ".join(f"{' and '.join(of.pairs)} of {network}" for network, of in statistics.items())
            raise ConfigError(
                f"--reference={reference}: has statistics of {there}, and {metric} compares {needs} of {name}; leave "
                f"out {metric}, or name train, test or another file"
            )
    if not compared:
        raise ConfigError(
            f"--reference={reference}: is a file of statistics, which {', '.join(network_of)} cannot use: single "
            "images are compared; name train or test"
        )
    return statistics


def _checked(reference: str, of: OfNetwork, network: FeatureNetwork, data: DataSets | None) -> dict[str, Statistics]:
    """Gives the statistics of a file for a network. Raises: ConfigError where they are of other features."""
    # files of other programs have no key; for published networks they are trusted, and the length is checked below
    if of.key != network.key and (of.key or network.name == "dataset"):
        raise ConfigError(
            f"--reference={reference}: is of other features ({of.key or 'it does not say which'}) than those of "
            f"{network.about} ({network.key}); --save_reference writes a file of these"
        )
    shape = (32, 32, 3) if data is None else data.train.shape
    # the length of the features, by two black images: LPIPS takes no single one
    features = network.outputs_for(np.zeros((2, *shape), np.uint8), tuple(of.pairs))
    for kind, (mean, _) in of.pairs.items():
        if len(mean) != features[kind].shape[1]:
            raise ConfigError(
                f"--reference={reference}: its mean has {len(mean)} values, and {network.name} has "
                f"{features[kind].shape[1]} {kind}"
            )
    return {kind: Statistics(*pair) for kind, pair in of.pairs.items()}


def _check_number(data: DataSets, split: str, metrics: Sequence[str]) -> None:
    """Raises ConfigError where a split has too few images for a metric."""
    source = data.split(split)
    if source is not None and (why := too_few(metrics, len(source))):
        raise ConfigError(f"{why} {split} images of {data.name} to compare with: have more data, or leave it out")


def _hash_of(reference: Accumulator, needs: str) -> str | None:
    """Hashes the means and covariances, or the rows, that a metric compares with; None where it compares with none."""
    if needs == "rows":
        return content_key(*reference.rows)
    there = needs in reference.known or needs in reference.moments
    return content_key(*reference.statistics(needs)) if there else None
