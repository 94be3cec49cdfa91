"""The flags of one mode, in the groups of its help."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from absl import flags as absl_flags


@dataclass
class Flags:
    """Declares the flags of one mode, in groups for its help. A thin layer over absl."""

    values: absl_flags.FlagValues = field(default_factory=absl_flags.FlagValues)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def group(self, title: str) -> None:
        """Start a group: the help lists the flags that follow under this title."""
        self.groups[title] = []

    def text(self, name: str, default: str | None, help: str) -> None:
        absl_flags.DEFINE_string(name, default, help, self._named(name))

    def checkpoint(self) -> None:
        """Declare the flag that chooses a checkpoint of the run."""
        self.text("checkpoint", "newest", "newest, or the step of an older one, as 4000.")

    def texts(self, name: str, help: str) -> None:
        """Declare a flag of one or more values, separated by commas."""
        absl_flags.DEFINE_list(name, None, help, self._named(name))

    def several(self, name: str, help: str) -> None:
        """Declare a flag that may be repeated; its value is the list of all values."""
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
