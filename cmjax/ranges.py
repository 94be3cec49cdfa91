"""Ranges of parameters, as annotations in signatures: `c: NotNegative`.

A configuration reads them there and refuses values outside.
"""

from dataclasses import dataclass
from typing import Annotated

LARGE = 1e6  # beyond it the squares and exponentials of a parameter leave float32, or its tables the memory


@dataclass(frozen=True)
class Within:
    """The numbers from `low` to `high`, without those in `without`: the range of a parameter that a recipe may set."""

    low: float
    high: float
    without: tuple[float, ...] = ()

    def problem(self, value: float) -> str | None:
        """Checks a value; gives the problem, as "must be above 0", or None."""
        if value < self.low or (value == self.low and value in self.without):
            return f"must be {'above' if self.low in self.without else 'at least'} {self.low:g}"
        if not value <= self.high or (value == self.high and value in self.without):  # also what is not a number
            return f"must be {'below' if self.high in self.without else 'at most'} {self.high:g}"
        return None


Real = Annotated[float, Within(-LARGE, LARGE)]
LogMean = Annotated[float, Within(-30, 30)]
LogStd = Annotated[float, Within(0, 10, without=(0,))]
"""The std of the logarithm of a noise level, whose samples are finite in float32."""
Positive = Annotated[float, Within(0, LARGE, without=(0,))]
NotNegative = Annotated[float, Within(0, LARGE)]
AtLeastOne = Annotated[float, Within(1, LARGE)]
AboveOne = Annotated[float, Within(1, LARGE, without=(1,))]
Fraction = Annotated[float, Within(0, 1)]
Rate = Annotated[float, Within(0, 1, without=(1,))]  # the rate of an average, which would never change at 1
Inside = Annotated[float, Within(0, 1, without=(0, 1))]
Count = Annotated[int, Within(1, LARGE)]
Width = Annotated[int, Within(1, 2**14)]  # the width of a layer
Depth = Annotated[int, Within(1, 1000)]
Steps = Annotated[int, Within(0, 2**31 - 1)]  # steps of the optimizer, which counts in int32
