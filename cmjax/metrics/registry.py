"""Defines every metric once: what it computes, of which features, and which direction is better.

`--mode=evaluate`, the end of a run, the search of times and the report all read `METRICS`. A metric compares the
`Accumulator` of some images with that of a reference.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cmjax.metrics.accumulator import KEPT, SPLIT, Accumulator
from cmjax.metrics.functional import cmmd, frechet_distance, kid_of_subsets, prdc

PIXELS = "pixels"
"""The features that are whole pixel values 0 to 255: `prdc` does not see their scale, and is exact on integers."""


@dataclass(frozen=True)
class Metric:
    """Describes a metric, or several that are computed in one call.

    values: their names. compute: (images' accumulator, reference's accumulator) -> value for each name.
    features: the network whose outputs are compared, or `PIXELS`; None: the one that --features names. needs: the
    output of the network that is accumulated, as in `accumulator.Outputs`. rule: its parameters in words.
    least: the fewest images of either set that have a value.
    """

    values: tuple[str, ...]
    compute: Callable[[Accumulator, Accumulator], tuple[float, ...]]
    features: str | None
    needs: str
    rule: str
    larger_is_better: bool = False
    least: int = 2  # what a covariance and an unbiased mean over pairs need

    @property
    def without_reference(self) -> bool:
        """Says whether it is of the images alone."""
        return self.needs in ("probabilities", "distances")

    def of(self, images: Accumulator, reference: Accumulator) -> dict[str, float]:
        """Computes the values by name."""
        return dict(zip(self.values, self.compute(images, reference), strict=True))


def _frechet(images: Accumulator, reference: Accumulator, *, outputs: str = "features") -> tuple[float, ...]:
    return (frechet_distance(reference.statistics(outputs), images.statistics(outputs)),)


def _kid(images: Accumulator, reference: Accumulator) -> tuple[float, ...]:
    return (kid_of_subsets(images.kept_rows(), reference.kept_rows()),)


def _cmmd(images: Accumulator, reference: Accumulator) -> tuple[float, ...]:
    return (cmmd(images.kept_rows(), reference.kept_rows()),)


_FIRST = f"the first {KEPT} images of each set at most"


def _prdc(values: tuple[str, ...], features: str | None = None, *, k: int) -> Metric:
    """Makes the metric of the first of the values of `prdc`, under these names."""

    def compute(images: Accumulator, reference: Accumulator) -> tuple[float, ...]:
        radii = reference.squared_radii(k)
        return prdc(reference.kept_rows(), images.kept_rows(), k=k, real_radii=radii)[: len(values)]

    # a k-th neighbour beside the image itself needs k + 1 images
    return Metric(values, compute, features, "rows", f"k = {k}; {_FIRST}", larger_is_better=True, least=k + 1)


METRICS: dict[str, Metric] = {
    "fid": Metric(("fid",), _frechet, "inception", "features", "Fréchet distance of pool3, 2048 features"),
    "sfid": Metric(
        ("sfid",),
        partial(_frechet, outputs="spatial"),
        "inception",
        "spatial",
        "of 7 channels of mixed_6, 2023 features",
    ),
    "is": Metric(
        ("is",),
        lambda images, reference: (images.inception_score(),),
        None,
        "probabilities",
        f"splits of {SPLIT}",
        larger_is_better=True,
        least=1,
    ),
    "kid": Metric(("kid",), _kid, None, "rows", f"100 subsets of 1000; {_FIRST}"),
    "pr": _prdc(("precision", "recall"), k=3),
    "prdc": _prdc(("precision_5", "recall_5", "density", "coverage"), k=5),
    "prdc_pixels": _prdc(("precision_pixels", "recall_pixels", "density_pixels", "coverage_pixels"), PIXELS, k=5),
    "fd": Metric(("fd",), _frechet, "dataset", "features", "Fréchet distance"),
    "fd_dinov2": Metric(("fd_dinov2",), _frechet, "dinov2", "features", "Fréchet distance of the class token"),
    "cmmd": Metric(("cmmd",), _cmmd, "clip", "rows", f"σ = 10, times 1000; {_FIRST}"),
    "lpips": Metric(
        ("lpips",),
        lambda images, reference: (images.mean_distance(),),
        "vgg",
        "distances",
        "mean over pairs of samples",
        larger_is_better=True,
    ),
}
"""All that --metrics may name."""

METRIC_OF = {value: name for name, metric in METRICS.items() for value in metric.values}
"""Name of a value -> its metric: "recall" -> "pr"."""


def better(value: str) -> str:
    """Says in which direction a value improves: "larger" or "smaller"; "" of a name that no metric has."""
    if value not in METRIC_OF:
        return ""
    return "larger" if METRICS[METRIC_OF[value]].larger_is_better else "smaller"


def too_few(metrics: Iterable[str], num: int) -> str:
    """Says which of the metrics have no value of so few images; "" where all have one."""
    lacking = {metric: METRICS[metric].least for metric in metrics if num < METRICS[metric].least}
    needs = ", ".join(f"{metric} needs at least {least} image{'s' * (least > 1)}" for metric, least in lacking.items())
    return f"{needs}, and there {'is' if num == 1 else 'are'} {num}" if lacking else ""
