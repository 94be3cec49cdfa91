"""Figures of a set of images beside a reference, from what was tallied of both."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cmjax.metrics.accumulator import KEPT, SPLIT, Accumulator
from cmjax.metrics.functional import cmmd, frechet_distance, kid_of_subsets, prdc

Values = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """What one name of --metrics stands for.

    of: (images' tally, reference's tally) -> its values by name. network: the one whose features it is of; None for
    the one that --features names. needs: what is tallied for it. rule: what is said of it beside its values. least:
    how many images each of the two sets must have.
    """

    of: Callable[[Accumulator, Accumulator], Values]
    network: str | None
    needs: str
    rule: str
    least: int = 2

    @property
    def without_reference(self) -> bool:
        """Whether it is of the images alone."""
        return self.needs in ("probabilities", "distances")


def _frechet(name: str, outputs: str = "features") -> Callable[[Accumulator, Accumulator], Values]:
    return lambda fake, real: {name: frechet_distance(fake.statistics(outputs), real.statistics(outputs))}


def _kid(fake: Accumulator, real: Accumulator) -> Values:
    return {"kid": kid_of_subsets(fake.kept_rows(), real.kept_rows())}


def _precision_recall(fake: Accumulator, real: Accumulator) -> Values:
    found = prdc(real.kept_rows(), fake.kept_rows(), k=3)
    return {"precision": found.precision, "recall": found.recall}


def _prdc(fake: Accumulator, real: Accumulator) -> Values:
    found = prdc(real.kept_rows(), fake.kept_rows(), k=5)
    return {
        "precision_5": found.precision,
        "recall_5": found.recall,
        "density": found.density,
        "coverage": found.coverage,
    }


FIRST = f"the first {KEPT} images of each set at most"
FIGURES: dict[str, Figure] = {
    "fid": Figure(_frechet("fid"), "inception", "features", "Fréchet distance of pool3, 2048 features"),
    "sfid": Figure(_frechet("sfid", "spatial"), "inception", "spatial", "of 7 channels of mixed_6, 2023 features"),
    "is": Figure(
        lambda fake, real: {"is": fake.inception_score()}, None, "probabilities", f"splits of {SPLIT}", least=1
    ),
    "kid": Figure(_kid, None, "rows", f"100 subsets of 1000; {FIRST}"),
    "pr": Figure(_precision_recall, None, "rows", f"k = 3; {FIRST}", least=4),
    "prdc": Figure(_prdc, None, "rows", f"k = 5; {FIRST}", least=6),
    "fd": Figure(_frechet("fd"), "own", "features", "Fréchet distance"),
    "fd_dinov2": Figure(_frechet("fd_dinov2"), "dinov2", "features", "Fréchet distance of the class token"),
    "cmmd": Figure(
        lambda fake, real: {"cmmd": cmmd(fake.kept_rows(), real.kept_rows())},
        "clip",
        "rows",
        f"σ = 10, times 1000; {FIRST}",
    ),
    "lpips": Figure(
        lambda fake, real: {"lpips": fake.mean_distance()}, "vgg", "distances", "mean over pairs of samples"
    ),
}
"""All that --metrics may name."""

LARGER_IS_BETTER = {"is", "precision", "recall", "precision_5", "recall_5", "density", "coverage", "lpips"}


def too_few(metrics: Iterable[str], num: int) -> str:
    """Which of the metrics have no value of so few images, in words; "" where all have one.

    k neighbours need k + 1 images, a covariance and an unbiased mean over pairs two.
    """
    lacking = {metric: FIGURES[metric].least for metric in metrics if num < FIGURES[metric].least}
    needs = ", ".join(f"{metric} needs at least {least} image{'s' * (least > 1)}" for metric, least in lacking.items())
    return f"{needs}, and there {'is' if num == 1 else 'are'} {num}" if lacking else ""
