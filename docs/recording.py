"""Notes what the readers of a configuration ask for, of every recipe."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any
from unittest import mock

from cmjax.config.fields import Fields
from cmjax.config.methods import METHODS
from cmjax.config.recipes import INSTALLED, list_recipes, load_recipe
from cmjax.config.run import read_run
from cmjax.core import losses

READERS = (
    "has",
    "value",
    "number",
    "integer",
    "boolean",
    "text",
    "path",
    "numbers",
    "booleans",
    "texts",
    "one_of",
    "choice",
    "choices",
)
"""The methods of `Fields` that read a field."""


@dataclass(frozen=True)
class Recipe:
    """The choices on which it depends which fields a recipe has."""

    method: str
    network: str
    path: str

    @property
    def kind(self) -> str:
        return METHODS[self.method].kind


@dataclass(frozen=True)
class Read:
    """One read of a field: by which method of `Fields`, with which parameters, and of which recipe."""

    field: str
    by: str
    parameters: Mapping[str, Any]
    recipe: Recipe


class Recorder(Fields):
    """Fields that note each read of a field."""

    def __init__(self, values: Mapping[str, Any], path: str = "", *, note: Callable[[str, str, Mapping], None]):
        super().__init__(values, path)
        self._note, self._reading = note, False

    def section(self, field: str) -> Fields:
        if not isinstance(super().section(field), Recorder):  # which raises where the field is no section
            self._sections[field] = Recorder(self._values[field], self.name(field), note=self._note)
        return self._sections[field]


def _noted(name: str) -> Callable[..., Any]:
    """Makes the method of `Recorder` that notes a read, and reads as that of `Fields` does."""
    method = getattr(Fields, name)
    signature = inspect.signature(method)

    @wraps(method)
    def read(self: Recorder, *args: Any, **keywords: Any) -> Any:
        if self._reading:  # a reader within another one, as `number` within `integer`
            return method(self, *args, **keywords)
        parameters = dict(signature.bind(self, *args, **keywords).arguments)
        del parameters["self"]
        self._note(self.name(parameters.pop("field")), name, parameters)
        self._reading = True
        try:
            return method(self, *args, **keywords)
        finally:
            self._reading = False

    return read


for _name in READERS:
    setattr(Recorder, _name, _noted(_name))


def keywords_of(method: str) -> dict[str, inspect.Parameter]:
    """Gives what the loss of a method takes by keyword."""
    parameters = inspect.signature(getattr(losses, method)).parameters
    return {name: p for name, p in parameters.items() if p.kind == p.KEYWORD_ONLY}


def reads_of(config: Mapping[str, Any]) -> list[Read]:
    """Reads a configuration, and lists its reads."""
    reads: list[Read] = []
    recipe = Recipe(config["objective"]["name"], config["net"]["name"], str(config["model"]["path"]).partition("(")[0])

    def note(field: str, by: str, parameters: Mapping[str, Any]) -> None:
        reads.append(Read(field, by, parameters, recipe))

    with mock.patch("cmjax.config.run.Fields", partial(Recorder, note=note)):
        read_run(config, data_there=False)
    return reads


def all_reads() -> list[Read]:
    """Lists the reads of every recipe that comes with cmjax."""
    return [read for name in list_recipes(INSTALLED) for read in reads_of(_whole(name))]


def _whole(name: str) -> dict[str, Any]:
    """Gives a recipe with the fields that recipes leave out, and that a reader asks for only where they are there."""
    config = load_recipe(name).to_dict()
    config["objective"].setdefault("coupling", "independent")
    if "derivative" in keywords_of(config["objective"]["name"]):
        config["objective"].setdefault("derivative", "jvp")
    return config
