"""The judge of sets of images: networks, references that are computed once, and what is said beside each figure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cmjax.config.evaluate import Evaluation, networks_of
from cmjax.config.fields import ConfigError
from cmjax.data.pixels import RULES
from cmjax.evaluation.judged import FIGURES
from cmjax.evaluation.metrics import Statistics
from cmjax.evaluation.tally import Tally
from cmjax.interop.statistics import Pair, read_statistics
from cmjax.judging.networks import Network, own_network, published_network
from cmjax.judging.tallying import VERSION, DataSets, ImagesOf, tally_images, tally_of_split
from cmjax.machine.content import content_key
from cmjax.machine.files import to_path
from cmjax.machine.processes import first_does
from cmjax.machine.progress import Update


@dataclass(frozen=True)
class Judge:
    """What images are judged by. Every process has one; the tallies are the first's alone.

    network_of: each metric's network. needed: by network, of its outputs. references, real: by network. protocol: of
    each metric, what its value depends on beside the images.
    """

    networks: Mapping[str, Network]
    needed: Mapping[str, tuple[str, ...]]
    network_of: Mapping[str, str]
    references: Mapping[str, Tally]
    real: Mapping[str, Tally]
    protocol: Mapping[str, Any]

    def tally(
        self, images_of: ImagesOf, num: int, *, keep: Path | None = None, update: Update = lambda done, text: None
    ) -> dict[str, Tally]:
        """As `tally_images`."""
        return tally_images(self.networks, self.needed, images_of, num, keep=keep, update=update)

    def values(self, tallies: Mapping[str, Tally]) -> dict[str, float]:
        """The metrics' values by name. Every process must call it."""
        return first_does(lambda: self._values(tallies))

    @cached_property
    def of_real(self) -> dict[str, float]:
        """The same of real images, as many as there are samples or as the data have; without what has none."""
        return first_does(lambda: self._values(self.real))

    def against(self, references: Mapping[str, Tally]) -> "Judge":
        """The same judge with other references."""
        return replace(self, references=references)

    def reference_statistics(self) -> dict[str, dict[str, Pair]]:
        """What `write_statistics` writes; in the first process alone."""
        found = {}
        for name, tally in self.references.items():
            kinds = tally.given.keys() | tally.moments.keys()
            if kinds:
                found[name] = {kind: tuple(tally.statistics(kind)) for kind in sorted(kinds)}
        return found

    def _values(self, tallies: Mapping[str, Tally]) -> dict[str, float]:
        values = {}
        for metric, network in self.network_of.items():
            if network in tallies:
                values |= FIGURES[metric].of(tallies[network], self.references[network])
        return values


def make_judge(
    evaluation: Evaluation, data: DataSets | None, *, num: int, reference: str | None, cache_dir: Path
) -> Judge:
    """The judge of `num` images. Every process must call it.

    Args:   data: the data set; None where a file alone is the reference. reference: "train", "test" or a file of
            statistics; None: held-out images for the data's own classifier, which knows the others, and training
            images for a published network.
    Raises: ConfigError or DataError where weights or references are missing.
    """
    network_of = networks_of(evaluation)
    given = {} if reference in (None, "train", "test") else _read(str(reference))
    networks, needed, references, real, about = {}, {}, {}, {}, {}
    for name in dict.fromkeys(network_of.values()):
        network = networks[name] = _network(name, evaluation, data, cache_dir)
        split = reference if reference in ("train", "test") else "test" if name == "own" else "train"
        figures = [FIGURES[metric] for metric, used in network_of.items() if used == name]
        needed[name] = tuple(sorted({figure.needs for figure in figures}))
        statistics = {key: Statistics(*pair) for key, pair in given.get(name, {}).items()}
        needs = {figure.needs for figure in figures if not figure.without_reference} - statistics.keys()
        there = not needs
        if data is None and not there:
            raise ConfigError(
                f"--reference={reference}: has no {' and no '.join(sorted(needs))} of {name} to compare with; name the "
                "data with --workdir or --config"
            )
        tally, text = Tally(), ""
        if not there and data is not None:
            kept = tuple(sorted(needs | {"features", "rows"}))  # one file serves other metrics as well
            tally, text = tally_of_split(network, kept, data, split, cache_dir)
        if statistics:
            tally, text = tally.with_statistics(statistics), f"{Path(str(reference)).name}{text and '; rows: '}{text}"
        references[name] = tally
        about[name] = {"network": name, "of": network.about, "reference": text}
        if data is not None and data.split(other := "train" if split == "test" else "test") is not None:
            real[name], about[name]["real"] = tally_of_split(network, needed[name], data, other, cache_dir, most=num)
    protocol = {
        metric: {"rule": FIGURES[metric].rule, **about[name], "hash": _hash_of(references[name], FIGURES[metric].needs)}
        for metric, name in network_of.items()
    }
    said = {"version": VERSION, "uint8": RULES[evaluation.uint8], "metrics": protocol}
    return Judge(networks, needed, network_of, references, real, said)


def _network(name: str, evaluation: Evaluation, data: DataSets | None, cache_dir: Path) -> Network:
    if name != "own":
        return published_network(name, evaluation.weights)
    if data is None:
        raise ConfigError("--metrics=fd: the data's own classifier needs the data: name --workdir or --config")
    return own_network(lambda: data.train, data.test, cache_dir=cache_dir)


def _read(reference: str) -> dict[str, dict[str, Pair]]:
    try:
        return read_statistics(to_path(reference).expanduser())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--reference={reference}: must be train, test or a file of statistics: {error}") from error


def _hash_of(reference: Tally, needs: str) -> str | None:
    """Of the means and covariances, or of the rows, that a metric compares with; None where it compares with none."""

    def digest() -> str | None:
        if needs == "rows":
            arrays = reference.rows
        elif needs in reference.given or needs in reference.moments:
            arrays = list(reference.statistics(needs))
        else:
            return None
        return content_key(*arrays)

    return first_does(digest)
