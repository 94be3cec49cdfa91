"""Accumulates what metrics need of a set of images, batch by batch; the images themselves are not kept.

Sums are in float64. In float32 a covariance of 2048 features moves a Fréchet distance by 1e-2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Num, Shaped

from cmjax.metrics.functional import Statistics, probability_sums, score_of_sums, squared_radii

KEPT = 10_000  # rows of features that are kept for distances between single images; moments are of all rows
SPLIT = 5000  # images a split of the Inception Score.   [Dhariwal & Nichol 2021]

Outputs = Mapping[str, Shaped[np.ndarray, "..."]]
"""Outputs of a network for a batch, those that metrics need: "features" (b, d) and "spatial" (b, e), whose moments are
taken; "rows" (b, d), features that are kept; "probabilities" (b, classes); "distances" (b,)."""


class Moments:
    """Accumulates the mean and the covariance of rows that come in batches.

    The sums are of the rows less the first batch's mean, so that little cancels in Σ(x − s)(x − s)ᵀ/n − m mᵀ.
    """

    def __init__(self, dimensions: int):
        self.count = 0
        self.shift = np.zeros(dimensions)
        self.total = np.zeros(dimensions)
        self.products = np.zeros((dimensions, dimensions))

    def add(self, rows: Num[np.ndarray, "_ _"]) -> None:
        """Adds rows (b, d). Raises: ValueError for a value that is not finite."""
        rows = np.asarray(rows, np.float64)
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"features must be finite, got {int(np.sum(~np.isfinite(rows)))} values that are not")
        if not self.count and len(rows):
            self.shift = rows.mean(axis=0)
        rows = rows - self.shift
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.products += rows.T @ rows

    def statistics(self) -> Statistics:
        """Computes `functional.statistics` of all rows. Raises: ValueError for fewer than two."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two images, got {self.count}")
        mean = self.total / self.count
        cov = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        # rounding leaves the two halves a little different, and `eigh` reads one of them
        return Statistics(mean + self.shift, (cov + cov.T) / 2)


class Accumulator:
    """Accumulates sums and rows of a set of images.

    most_rows: how many rows are kept. known: statistics, as of a file, that stand in place of the sums'.
    """

    def __init__(self, *, most_rows: int = KEPT):
        self.most_rows = most_rows
        self.known: dict[str, Statistics] = {}
        self.moments: dict[str, Moments] = {}
        self.rows: list[np.ndarray] = []
        self.radii: dict[int, np.ndarray] = {}
        self.splits: list[np.ndarray] = []
        self.distances = np.zeros(2)

    def add(self, outputs: Outputs) -> None:
        """Adds a batch."""
        for name in ("features", "spatial"):
            if name in outputs:
                rows = outputs[name]
                # the width is known from the first batch on
                self.moments.setdefault(name, Moments(rows.shape[1])).add(rows)
        if "rows" in outputs and (room := self.most_rows - sum(map(len, self.rows))) > 0:
            self.rows.append(np.asarray(outputs["rows"][:room], np.float32))  # 82 MB of 2048 features
            # distances to k-th neighbours among fewer rows
            self.radii.clear()
        if "probabilities" in outputs:
            self._add_probabilities(np.asarray(outputs["probabilities"], np.float64))
        if "distances" in outputs:
            self.distances += np.array([np.sum(outputs["distances"], dtype=np.float64), outputs["distances"].size])

    def _add_probabilities(self, p: np.ndarray) -> None:
        while len(p):
            # the last split may be begun already: a batch does not know where splits end
            if not self.splits or self.splits[-1][0] == SPLIT:
                # the layout of `probability_sums`: the count, Σ p log p, and Σ p of each class
                self.splits.append(np.zeros(2 + p.shape[1]))
            part, p = np.split(p, [min(len(p), SPLIT - int(self.splits[-1][0]))])
            self.splits[-1] += probability_sums(part)

    def statistics(self, name: str = "features") -> Statistics:
        """Computes those of "features" or "spatial". Raises: KeyError where there are none."""
        return self.known[name] if name in self.known else self.moments[name].statistics()

    def kept_rows(self) -> Float64[np.ndarray, "n d"]:
        """Joins the kept rows, the features of the first images."""
        return np.concatenate(self.rows).astype(np.float64)

    def squared_radii(self, k: int) -> Float64[np.ndarray, " n"]:
        """Computes `functional.squared_radii` of the kept rows, once: one reference meets many sets of images."""
        if k not in self.radii:
            self.radii[k] = squared_radii(self.kept_rows(), k=k)
        return self.radii[k]

    def inception_score(self) -> float:
        """Computes `functional.inception_score` from the splits' sums."""
        return score_of_sums(self.splits)

    def mean_distance(self) -> float:
        return float(self.distances[0] / self.distances[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """Collects the sums and the rows, to be written to a file."""
        arrays: dict[str, Any] = {"distances": self.distances}
        for name, moments in self.moments.items():
            arrays |= {f"{name}/{key}": np.asarray(value) for key, value in vars(moments).items()}
        if self.rows:
            arrays["rows"] = np.concatenate(self.rows)
        if self.splits:
            arrays["splits"] = np.stack(self.splits)
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Accumulator":
        """Makes the accumulator whose `arrays` these are. Raises: KeyError where one is missing."""
        accumulator = cls()
        accumulator.distances = np.array(arrays["distances"])
        for name in ("features", "spatial"):
            if f"{name}/total" in arrays:
                moments = accumulator.moments[name] = Moments(len(arrays[f"{name}/total"]))
                moments.count = int(arrays[f"{name}/count"])
                for key in ("shift", "total", "products"):
                    getattr(moments, key)[:] = arrays[f"{name}/{key}"]
        accumulator.rows = [arrays["rows"]] if "rows" in arrays else []
        accumulator.splits = list(np.array(arrays["splits"])) if "splits" in arrays else []
        return accumulator
