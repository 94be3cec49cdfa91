"""The section `evaluate`, and the options of --mode=evaluate: which metrics, of which networks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.published import PUBLISHED
from cmjax.data.batches import UINT8
from cmjax.metrics.registry import FIGURES, too_few
from cmjax.system.files import to_path

WEIGHTS = Path("~/.cache/cmjax")
"""The folder of published networks' files, where none is named."""


LABELS = ("balanced", "random")
"""How the labels of many samples are chosen: every class in turn, or each at random."""
FEATURES = ("inception", "dinov2", "clip", "own")
"""What --features may name."""


@dataclass(frozen=True)
class Evaluation:
    """What images are judged by. every: steps between evaluations of a run in training; 0: none.

    metrics: of `FIGURES`; empty: the default for the weights that are there. features: the network of those that fit
    several; "": Inception where its weights are there, else the data's own. weights: their folder. uint8: of `UINT8`.
    labels: of samples with classes, of `LABELS`: every class in turn, or each at random, as EDM evaluates.
    """

    every: int = 0
    num: int = 1000
    metrics: tuple[str, ...] = ()
    features: str = ""
    weights: Path = WEIGHTS
    uint8: str = "round"
    labels: str = "balanced"


def read_evaluation(fields: Fields) -> Evaluation:
    """The section `evaluate`."""
    default = Evaluation()
    evaluation = Evaluation(
        every=fields.integer("every", at_least=0),
        num=fields.integer("num", at_least=2),
        metrics=_metrics(fields) if fields.has("metrics") else (),
        features=fields.one_of("features", ("", *FEATURES)) if fields.has("features") else "",
        weights=to_path(fields.text("weights") or WEIGHTS) if fields.has("weights") else default.weights,
        uint8=fields.one_of("uint8", UINT8) if fields.has("uint8") else default.uint8,
        labels=fields.one_of("labels", LABELS) if fields.has("labels") else default.labels,
    )
    if evaluation.every:
        _check_number(fields, evaluation)
    return evaluation


def _check_number(fields: Fields, evaluation: Evaluation) -> None:
    if why := too_few(networks_of(evaluation), evaluation.num):
        raise fields.error("num", why)


def evaluation_of_options(
    metrics: Sequence[str] | None, features: str | None, weights: str | None, **others: Any
) -> Evaluation:
    """The same of the command line's options. Raises: ConfigError."""
    values = {"metrics": tuple(metrics or ()), "features": features or "", "weights": weights or ""}
    fields = Fields({**values, **others, "every": 0}, prefix="--")
    evaluation = read_evaluation(fields)
    _check_number(fields, evaluation)
    return evaluation


def _metrics(fields: Fields) -> tuple[str, ...]:
    value = fields.value("metrics")
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise fields.error("metrics", "must be names, like ('fid', 'kid')")
    names = tuple(name.strip() for name in map(str, names) if name.strip())
    for name in names:
        if name not in FIGURES:
            raise fields.error("metrics", f"{name} is none of {', '.join(FIGURES)}")
    return names


def networks_of(evaluation: Evaluation) -> dict[str, str]:
    """Each metric's network; the defaults are filled in by what weights are there.

    Raises: ConfigError where a metric needs what its network does not tell.
    """
    there = bool(_there("inception", evaluation.weights))
    features = evaluation.features or ("inception" if there else "own")
    metrics = evaluation.metrics or (("fid" if there else "fd"), "kid", "prdc")
    found = {metric: FIGURES[metric].network or features for metric in metrics}
    if "is" in found and found["is"] not in ("inception", "own"):
        raise ConfigError(f"--features={found['is']}: the metric is needs classes, of inception or own")
    return found


def _there(name: str, folder: Path) -> list[Path]:
    """The files of the first alternative that is whole."""
    for names in PUBLISHED[name].files:
        files = [folder.expanduser() / file for file in names]
        if all(file.is_file() for file in files):
            return files
    return []


def weights_file(name: str, folder: Path) -> list[Path]:
    """The files of a network's weights in `folder`.

    Raises: ConfigError naming what is missing, where it comes from and where it belongs.
    """
    if files := _there(name, folder):
        return files
    wanted = " or ".join(" and ".join(names) for names in PUBLISHED[name].files)
    raise ConfigError(
        f"{PUBLISHED[name].about} has no weights in {folder}: put {wanted} there, from {PUBLISHED[name].source}, or "
        "name their folder with --weights; --metrics=fd,kid,prdc --features=own needs none"
    )
