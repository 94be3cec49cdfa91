"""The flags of one mode, in the groups of its help."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from absl import flags as absl_flags


@dataclass
class Flags:
    """The flags of one mode, in groups for its help."""

    values: absl_flags.FlagValues = field(default_factory=absl_flags.FlagValues)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def group(self, title: str) -> None:
        """Begin a group: the flags that follow stand under this title."""
        self.groups[title] = []

    def text(self, name: str, default: str | None, help: str) -> None:
        absl_flags.DEFINE_string(name, default, help, self._named(name))

    def checkpoint(self) -> None:
        """Which of the run's checkpoints is read."""
        self.text("checkpoint", "newest", "newest, or the step of an older one, as 4000.")

    def texts(self, name: str, help: str) -> None:
        """One value or more, separated by commas."""
        absl_flags.DEFINE_list(name, None, help, self._named(name))

    def several(self, name: str, help: str) -> None:
        """A flag that may be written several times; its value is the list of what was."""
        absl_flags.DEFINE_multi_string(name, None, help, self._named(name))

    def integer(
        self, name: str, default: int | None, help: str, at_least: int | None = None, at_most: int = 2**31 - 1
    ) -> None:
        absl_flags.DEFINE_integer(name, default, help, at_least, at_most, flag_values=self._named(name))

    def number(self, name: str, default: float | None, help: str, low: float | None = None, high: Any = None) -> None:
        absl_flags.DEFINE_float(name, default, help, low, high, self._named(name))

    def boolean(self, name: str, default: bool | None, help: str) -> None:
        absl_flags.DEFINE_boolean(name, default, help, flag_values=self._named(name))

    def one_of(self, name: str, default: str | None, choices: Iterable[str], help: str) -> None:
        absl_flags.DEFINE_enum(name, default, list(choices), help, flag_values=self._named(name))

    def _named(self, name: str) -> absl_flags.FlagValues:
        next(reversed(self.groups.values())).append(name)
        return self.values
