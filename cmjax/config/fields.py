"""Reads and checks the fields of a configuration; an error names the field, and a field that nothing reads is an error.

A choice with parameters is written as a call, `"pseudo_huber(c=0.03)"`, of a function from a plain dict of choices, or
as a section, `{"name": "pseudo_huber", "c": 0.03}`, whose parameters are fields themselves.
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin

from cmjax.ranges import Real
from cmjax.system.errors import UserError
from cmjax.system.files import path_problem

LARGEST = 3e38  # the largest number of float32, in which everything is computed


class ConfigError(UserError, ValueError):
    """A wrong configuration; the message names the field, the value and the choices."""


@dataclass(frozen=True)
class Choice:
    """Holds what a field chose: the name of a function, its parameters as they were written, and the function itself.

    make: the function with its parameters bound: those that were written, and those that the reader gave.
    """

    name: str
    parameters: Mapping[str, Any]
    make: Callable[..., Any]

    def __str__(self) -> str:
        written = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.name}({written})" if written else self.name


class Fields:
    """One section of a configuration. Read every field, then call `done`.

    `prefix` stands before a field's name in messages: "--" for what comes from options of the command line.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", *, prefix: str = "config."):
        self._values, self._path, self._prefix = values, path, prefix
        # A field that stays here is a mistake, such as a misspelt one that has a default: `done` names it.
        self._unread = set(values)
        self._sections: dict[str, Fields] = {}

    def name(self, field: str) -> str:
        """Gives the field with the sections it stands in, as the command line spells it."""
        return f"{self._path}.{field}" if self._path else field

    def error(self, field: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._prefix}{self.name(field)}={self._values.get(field)!r}: {problem}")

    @contextmanager
    def naming(self, field: str) -> Iterator[None]:
        """Turns what a choice of this field raises, for a parameter out of its range, into a ConfigError."""
        try:
            yield
        except ConfigError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise self.error(field, str(error)) from error

    def has(self, field: str) -> bool:
        return field in self._values

    def remaining(self) -> list[str]:
        return sorted(self._unread)

    def value(self, field: str, *, absent: Any = None) -> Any:
        """Gives the value as written. A field that is missing, as in an older record, is `absent`, if that is set."""
        if field not in self._values:
            if absent is not None:
                return absent
            raise ConfigError(f"config.{self.name(field)} is missing{suggestion(field, self._unread)}")
        self._unread.discard(field)
        return self._values[field]

    def section(self, field: str) -> "Fields":
        value = self.value(field)
        if not isinstance(value, Mapping):
            raise self.error(field, "must be a section of fields, not a single value")
        return self._sections.setdefault(field, Fields(value, self.name(field)))

    def number(
        self,
        field: str,
        *,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float = LARGEST,
        absent: float | None = None,
    ) -> float:
        value = self.value(field, absent=absent)
        # A bool is an int to Python, and True would be the number 1.
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = ""
            with suppress(TypeError, ValueError):  # a text that was meant as a number, such as "1e-3" of a recipe
                hint = f": write {float(value):g} without quotes" if isinstance(value, str) else ""
            raise self.error(field, f"must be a number{hint}")
        if not value <= at_most or not math.isfinite(value):
            raise self.error(field, f"must be a finite number of at most {at_most:g}")
        if at_least is not None and not value >= at_least:
            raise self.error(field, f"must be at least {at_least}")
        if above is not None and not value > above:
            raise self.error(field, f"must be above {above}")
        return value

    def integer(self, field: str, *, at_least: int, at_most: int = 2**31 - 1, absent: int | None = None) -> int:
        value = self.number(field, at_least=at_least, absent=absent)
        if value % 1 != 0:
            raise self.error(field, "must be a whole number")
        if value > at_most:
            raise self.error(field, f"must be at most {at_most}")
        return int(value)

    def boolean(self, field: str, *, absent: bool | None = None) -> bool:
        return self._of_kind(field, bool, absent)

    def text(self, field: str, *, absent: str | None = None) -> str:
        return self._of_kind(field, str, absent)

    def _of_kind(self, field: str, kind: type, absent: Any) -> Any:
        value = self.value(field, absent=absent)
        if problem := value_problem(value, kind):
            raise self.error(field, problem)
        return value

    def path(self, field: str) -> str:
        """Reads the name of a file or folder, "" for none."""
        value = self.text(field)
        if problem := path_problem(value):
            raise self.error(field, problem)
        return value

    def numbers(self, field: str, *, may_be_empty: bool = False) -> tuple[float, ...]:
        value = self.value(field)
        numbers: list[Any] = list(value) if isinstance(value, Iterable) else []
        empty = may_be_empty and isinstance(value, tuple | list) and not numbers
        if not (numbers or empty) or any(value_problem(number, Real) for number in numbers):
            raise self.error(field, "must be one or more numbers, like (80.0, 0.8)")
        return tuple(map(float, numbers))

    def booleans(self, field: str) -> tuple[bool, ...]:
        value = self.value(field)
        if not isinstance(value, tuple | list) or not value or not all(isinstance(one, bool) for one in value):
            raise self.error(field, "must be one or more of True and False, like (True, False)")
        return tuple(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """Reads texts; () for none."""
        value = self.value(field)
        if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
            raise self.error(field, 'must be texts, like ("one", "another")')
        return tuple(value)

    def one_of(self, field: str, choices: Iterable[str], *, absent: str | None = None) -> str:
        value = self.text(field, absent=absent)
        if value not in choices:
            raise self.error(field, f"must be one of {', '.join(choices)}{suggestion(value, choices)}")
        return value

    def choice(self, field: str, choices: Mapping[str, Callable], **known: Any) -> Choice:
        """Reads the chosen function and its parameters: those written, and those of `known` that it takes."""
        return self._bound(field, self.value(field), choices, known)

    def call(self, field: str, choices: Mapping[str, Callable], **known: Any) -> Any:
        """Gives the result of calling the chosen function, with what it raises named by the field."""
        return self.called(field, self.choice(field, choices, **known))

    def choices(self, field: str, choices: Mapping[str, Callable], **known: Any) -> list[Choice]:
        """Does the same as `choice` for a field that holds one choice or more."""
        written = self.value(field)
        written = [written] if isinstance(written, str | Mapping) else written
        if not isinstance(written, Iterable) or not (written := list(written)):
            raise self.error(field, f"must be one or more of {', '.join(choices)}")
        return [self._bound(field, one, choices, known) for one in written]

    def called(self, field: str, choice: Choice) -> Any:
        """Gives the result of calling a choice of this field, with what it raises named by the field."""
        with self.naming(field):
            return choice.make()

    def _bound(self, field: str, value: Any, choices: Mapping[str, Callable], known: Mapping[str, Any]) -> Choice:
        name, written = self._named(field, value, choices)
        if name not in choices:
            raise self.error(field, f"must be one of {', '.join(choices)}{suggestion(name, choices)}")
        # What the reader gives is no parameter of a recipe: it may not be written, and need not be.
        parameters = list(inspect.signature(choices[name]).parameters.values())
        settable = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY or p.default is not p.empty]
        free = [p for p in settable if p not in known]
        if unknown := [p for p in written if p not in free]:
            takes = ", ".join(free) or "no parameters"
            raise self.error(field, f"{name} takes {takes}, not {', '.join(unknown)}{suggestion(unknown[0], free)}")
        for parameter in (p for p in parameters if p.name in written):
            if problem := value_problem(written[parameter.name], parameter.annotation):
                raise self.error(field, f"{parameter.name} {problem}, not {written[parameter.name]!r}")
        required = [p.name for p in parameters if p.name in free and p.default is p.empty]
        if missing := [p for p in required if p not in written]:
            example = ", ".join(f"{p}=…" for p in missing)
            raise self.error(field, f"{name} needs {', '.join(missing)}: write {name}({example})")
        make = partial(choices[name], **{p: v for p, v in known.items() if p in settable}, **written)
        return Choice(name, written, make)

    def _named(self, field: str, value: Any, choices: Iterable[str]) -> tuple[str, dict[str, Any]]:
        """Gives the name and the parameters of a choice as it is written, a text or a section."""
        if isinstance(value, str):
            return self._parse_call(field, value)
        if not isinstance(value, Mapping):
            raise self.error(field, f"must be one of {', '.join(choices)}")
        if not isinstance(value.get("name"), str):
            raise self.error(field, f"must have the field name, one of {', '.join(choices)}")
        return value["name"], {parameter: v for parameter, v in value.items() if parameter != "name"}

    def _parse_call(self, field: str, text: str) -> tuple[str, dict[str, Any]]:
        try:
            # parsed, and never evaluated: no code in a recipe's text or a flag is run
            node = ast.parse(text.strip(), mode="eval").body
            if isinstance(node, ast.Name):
                return node.id, {}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
                return node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (SyntaxError, ValueError):
            pass
        raise self.error(field, 'must be a name, or a name with parameters like "name(parameter=1.0)"')

    def done(self) -> None:
        """Raise ConfigError for the fields that nothing read, here and in the sections."""
        for section in self._sections.values():
            section.done()
        if self._unread:
            names = ", ".join(f"config.{self.name(field)}" for field in self.remaining())
            known = [field for field in self._values if field not in self._unread]
            raise ConfigError(f"{names}: nothing reads this here; remove it{suggestion(self.remaining()[0], known)}")


def by_name(*functions: Callable) -> dict[str, Callable]:
    """Makes a dict of the choices of these functions, each by its own name."""
    return {function.__name__: function for function in functions}


def value_problem(value: Any, annotation: Any) -> str | None:
    """Checks the value of a parameter; gives the problem, as "must be above 0", or None.

    annotation: of the parameter: a type, a Literal, a range as `Within` has it, or one of these or None.
    """
    options = get_args(annotation)
    if type(None) in options:
        return None if value is None else value_problem(value, next(o for o in options if o is not type(None)))
    if get_origin(annotation) is Literal:
        return None if value in options else f"must be one of {', '.join(options)}{suggestion(str(value), options)}"
    # Annotated[int, Within(0, 8)]: the type, then its ranges
    kind, ranges = (options[0], options[1:]) if get_origin(annotation) is Annotated else (annotation, ())
    if kind is bool or kind is str:
        return None if isinstance(value, kind) else f"must be {'True or False' if kind is bool else 'a text'}"
    if isinstance(value, bool) or not isinstance(value, int | float):  # a bool is an int to Python
        return "must be a number"
    if not math.isfinite(value):
        return "must be a finite number"
    for within in ranges:
        if problem := within.problem(value):
            return problem
    return "must be a whole number" if kind is int and value % 1 else None


def changed(config: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """Gives the configuration with another value of the field, whose sections are separated by dots: "net.remat"."""
    section, dot, rest = field.partition(".")
    return {**config, section: changed(config[section], rest, value) if dot else value}


def suggestion(word: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """Suggests the choice most like a word, as " (did you mean x?)"; "" where none is. prefix: of the choice."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def about(field: str, value: str, error: Exception) -> str:
    """Writes an error of a field or a flag, "--teacher=x: it has …"; the value is not repeated where the error begins
    with it."""
    said, name = str(error), value.strip("'")
    again = said.removeprefix(f"{name} ")
    return f"{field}={value} {again}" if again != said else f"{field}={value}: {said.removeprefix(f'{name}: ')}"
