"""Examples that cannot be read: named, counted, and replaced up to a limit."""

import logging
import threading

from cmjax.data.base import DataError

log = logging.getLogger(__name__)


class Damage:
    """The damaged examples of one data set.

    Args: where: the data set, for messages. limit: how many there may be; None: any number.
    """

    def __init__(self, where: str, limit: int | None):
        self._where, self._limit = where, limit
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[str, int | None]:
        return self._where, self._limit

    def __setstate__(self, state: tuple[str, int | None]) -> None:
        self.__init__(*state)

    def note(self, name: str, why: str) -> None:
        """Count an example and say, once, that another stands in for it.

        Raises: DataError where there are more of them than the limit.
        """
        with self._lock:
            if name in self._names:
                return
            self._names.add(name)
            count = len(self._names)
        log.warning("%s: %s cannot be read (%s); another example stands in for it", self._where, name, why)
        if self._limit is not None and count > self._limit:
            raise DataError(
                f"{self._where}: {count} examples cannot be read, the last of them {name} ({why}); repair the data, or "
                f"allow more by config.data.max_corrupt, which is {self._limit}"
            )
