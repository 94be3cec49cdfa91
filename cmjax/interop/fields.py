"""Reads a peer's config.json and checks its fields: each has a default, a check of its value, and what it must be."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.interop.keys import ForeignError

Fits = Callable[[Any], bool]
Field = tuple[Any, Fits, str]
"""The peer's default, a check of the value, and what it must be."""


def is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_flag(value: Any) -> bool:
    return type(value) is bool


def all_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list | tuple) and bool(value) and all(map(fits, value))


def optional(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def one_or_all(fits: Fits) -> Fits:
    return lambda value: fits(value) or all_of(fits)(value)


def one_of(default: str, choices: Iterable[str]) -> Field:
    """Makes the field whose value is one of these names."""
    choices = tuple(choices)
    return default, choices.__contains__, f"one of {', '.join(choices)}"


COUNT, FLAG, POSITIVE = (
    (is_count, "a whole number above 0"),
    (is_flag, "true or false"),
    (is_positive, "a number above 0"),
)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a config.json of diffusers. Raises: ForeignError."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ForeignError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ForeignError(f"{path} holds no fields")
    return config


def checked_fields(config: Mapping[str, Any], fields: Mapping[str, Field], where: Any) -> dict[str, Any]:
    """Reads the values of `fields`, defaults where the config has none.

    Raises: ForeignError naming all fields with a wrong value.
    """
    values, problems = values_and_problems(config, fields)
    if problems:
        raise ForeignError(f"{where}: {'; '.join(problems)}")
    return values


def values_and_problems(config: Mapping[str, Any], fields: Mapping[str, Field]) -> tuple[dict[str, Any], list[str]]:
    """Reads the values of `fields`, defaults where the config has none, and says what is wrong with each."""
    values = {name: config.get(name, default) for name, (default, _, _) in fields.items()}
    wrong = [name for name, (_, fits, _) in fields.items() if not fits(values[name])]
    return values, [f"{name}={values[name]!r} must be {fields[name][2]}" for name in wrong]
