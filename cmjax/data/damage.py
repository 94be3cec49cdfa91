"""Names, counts and replaces examples that cannot be read, up to a limit."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from cmjax.data.base import DataError

log = logging.getLogger(__name__)

Example = TypeVar("Example")

LAST = 3
"""Damaged examples that an error names."""


class Damage:
    """Counts the damaged examples of one data set. A copy in another process counts by itself and logs nothing.

    Args: where: the data set, for messages. limit: how many there may be; None: any number.
    """

    def __init__(self, where: str, limit: int | None, *, silent: bool = False):
        self.where, self.limit, self.silent = where, limit, silent
        self._reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return partial(Damage, silent=True), (self.where, self.limit)

    def note(self, name: str, why: str) -> None:
        """Counts an example, and logs once that another one replaces it.

        Raises: DataError where there are more of them than the limit.
        """
        with self._lock:
            known = name in self._reasons
            if not known:
                self._reasons[name] = self._new[name] = why
            last, count = list(self._reasons.items())[-LAST:], len(self._reasons)
        if self.limit is not None and count > self.limit:
            reasons = "; ".join(f"{name}: {why}" for name, why in last)
            raise DataError(
                f"{self.where}: {count} examples cannot be read; repair or remove them, or allow more by "
                f"config.data.max_corrupt, which is {self.limit}. The last: {reasons}"
            )
        if not (known or self.silent):
            log.warning("%s: %s cannot be read (%s); another example replaces it", self.where, name, why)

    def take(self) -> dict[str, str]:
        """The examples noted since this was last asked, with the reasons."""
        with self._lock:
            taken, self._new = self._new, {}
        return taken


def first_whole(
    decode: Callable[[int], Example], index: int, names: Callable[[int], str], length: int, damage: Damage
) -> Example:
    """Decodes the example at `index`, or the next one that can be decoded; the first follows the last.

    Which one it is depends on the data alone: a batch remains a function of (seed, step).

    Raises: DataError where there is none, or `damage` has more than its limit.
    """
    for here in (place % length for place in range(index, index + length)):
        try:
            return decode(here)
        except MemoryError:
            raise
        except Exception as error:  # what is damaged raises errors of many kinds
            kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            damage.note(names(here), f"{kind}{error}".splitlines()[0])
    raise DataError(f"{damage.where}: not one of its {length} examples can be read, beginning with {names(index)}")
