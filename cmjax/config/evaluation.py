"""Reads the section `evaluate`, and the options of --mode=evaluate: which metrics, of which features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmjax.config.fields import Fields
from cmjax.config.samples import LABELS
from cmjax.data.batches import UINT8
from cmjax.metrics.registry import METRICS, too_few
from cmjax.system.files import to_path

WEIGHTS = Path("~/.cache/cmjax")  # the folder of published networks' files, where none is named
FEATURES = ("inception", "dinov2", "clip", "dataset")  # what --features may name
OLD_FEATURES = {"own": "dataset"}  # names that earlier versions had for features
WITH_CLASSES = ("inception", "dataset")  # features of networks that classify, as the Inception Score needs
DEFAULT_METRICS = ("fd", "kid", "prdc")
"""The metrics where none are named; fid in place of fd where Inception's weights are there."""


@dataclass(frozen=True)
class Evaluation:
    """Says how images are evaluated.

    every: steps between evaluations of a run in training; 0: none. metrics: of `METRICS`; empty: `DEFAULT_METRICS`.
    features: the network of metrics that fit several; "": Inception where its weights are there, else the data set's.
    weights: the folder of published weights. uint8: of `UINT8`. labels: of samples with classes, of `LABELS`.
    """

    every: int = 0
    num: int = 1000
    metrics: tuple[str, ...] = ()
    features: str = ""
    weights: Path = WEIGHTS
    uint8: str = "round"
    labels: str = "balanced"


def read_evaluation(fields: Fields) -> Evaluation:
    """Reads the section `evaluate`."""
    features = OLD_FEATURES.get(fields.value("features", absent=""))
    evaluation = Evaluation(
        every=fields.integer("every", at_least=0),
        num=fields.integer("num", at_least=2),
        metrics=_metrics(fields),
        features=features or fields.one_of("features", ("", *FEATURES), absent=""),
        weights=to_path(fields.text("weights", absent="") or WEIGHTS),
        uint8=fields.one_of("uint8", UINT8, absent="round"),
        labels=fields.one_of("labels", LABELS, absent="balanced"),
    )
    if "is" in evaluation.metrics and evaluation.features not in ("", *WITH_CLASSES):
        raise fields.error("features", f"the metric is needs classes, of {' or '.join(WITH_CLASSES)}")
    if evaluation.every:
        _check_number(fields, evaluation)
    return evaluation


def _check_number(fields: Fields, evaluation: Evaluation) -> None:
    if why := too_few(evaluation.metrics or DEFAULT_METRICS, evaluation.num):
        raise fields.error("num", why)


def evaluation_of_options(
    metrics: Sequence[str] | None, features: str | None, weights: str | None, **others: Any
) -> Evaluation:
    """Reads the command line's options in the same way. Raises: ConfigError."""
    values = {"metrics": tuple(metrics or ()), "features": features or "", "weights": weights or ""}
    fields = Fields({**values, **others, "every": 0}, prefix="--")
    evaluation = read_evaluation(fields)
    _check_number(fields, evaluation)
    return evaluation


def _metrics(fields: Fields) -> tuple[str, ...]:
    value = fields.value("metrics", absent=())
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise fields.error("metrics", "must be names, like ('fid', 'kid')")
    names = tuple(name.strip() for name in map(str, names) if name.strip())
    for name in names:
        if name not in METRICS:
            raise fields.error("metrics", f"{name} is none of {', '.join(METRICS)}")
    return names
