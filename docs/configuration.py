"""The reference of every field of a configuration, from what its readers ask for.

`configuration.toml` has what no reader knows: what each field means.
"""

import dataclasses
import inspect
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from recording import Read, all_reads, keywords_of

from cmjax.config.network import Size
from cmjax.config.objective import READERS
from cmjax.nets import NETS, defaults
from cmjax.ranges import LARGE, NotNegative, Within
from configs import common

SECTIONS = (
    "",
    "data",
    "net",
    "lora",
    "model",
    "objective",
    "optimizer",
    "samples",
    "checkpoint",
    "log",
    "metrics",
    "evaluate",
)
KINDS = {"denoiser": "a diffusion model", "consistency": "a consistency model", "flow_map": "a flow map"}
LABELS: dict[str, Callable[[Read], str]] = {
    "objective": lambda read: f"`{read.recipe.method}`",
    "net": lambda read: f"`{read.recipe.network}`",
    "model": lambda read: f"{KINDS[read.recipe.kind]} on `{read.recipe.path}`",
    "samples": lambda read: KINDS[read.recipe.kind],
}
"""What it depends on which fields a section has, and which values."""
IN_RECIPES = {"steps", "batch_size", "data.name", "optimizer.rule", "optimizer.learning_rate", "optimizer.averages"}
"""Fields that `configs/common.py` leaves to the recipe."""
ASKED_OF_ALL = ("objective.guidance", "objective.blend")
"""Fields of which every method is asked whether it has them."""
Kind = tuple[str, tuple[str, ...]]  # what a value may be, and a line for each choice


@cache
def texts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("configuration.toml").read_text())


@cache
def by_field() -> dict[str, list[Read]]:
    """Gives the reads of each field, without those of sections."""
    reads: dict[str, list[Read]] = {}
    for read in all_reads():
        reads.setdefault(read.field, []).append(read)
    sections = {field.partition(".")[0] for field in reads if "." in field}
    return {field: of_field for field, of_field in reads.items() if field not in sections}


def meaning(field: str) -> str:
    section, _, name = field.rpartition(".")
    table = texts()["fields"]
    return (table[section] if section else table)[name]


def page() -> str:
    """Writes all fields as Markdown, a heading for each, so that the site's search leads to it."""
    sections = {field.rpartition(".")[0] for field in by_field()}
    ordered = [section for section in SECTIONS if section in sections] + sorted(sections - set(SECTIONS))
    return "\n\n".join(part for section in ordered for part in _section(section))


def _section(section: str) -> Iterable[str]:
    yield f"## {f'`{section}`' if section else 'The run'}" + " {#" + (section or "run") + "}"
    yield texts()["sections"][section or "run"]
    fields = [field for field in by_field() if field.rpartition(".")[0] == section]
    everyone = {LABELS[section](read) for field in fields for read in by_field()[field]} if section in LABELS else set()
    for field in sorted(fields, key=_order):
        yield f"### `{field}` {{#{field}}}"
        yield meaning(field)
        yield _about(field, section, everyone)


def _order(field: str) -> int:
    """The place of a field in `configuration.toml`, which has them by what belongs together."""
    section, _, name = field.rpartition(".")
    table = texts()["fields"]
    return list(table[section] if section else table).index(name)


def _about(field: str, section: str, everyone: set[str]) -> str:
    """What a field's value may be, its default, and what has such a field."""
    label = LABELS.get(section, lambda read: "")
    of = {label(read) for read in by_field()[field] if read.by != "has" or field not in ASKED_OF_ALL}
    lines = []
    kinds = _kinds(field, label)
    for (text, choices), labels in kinds.items():
        whose = f" ({_listed(labels)})" if len(kinds) > 1 and len(labels) < len(of) else ""
        lines += [f"- {text[0].upper()}{text[1:]}{whose}", *(f"    - {choice}" for choice in choices)]
    lines.append(f"- Default: {_default(field)}")
    if section in LABELS and of != everyone:
        lines.append(f"- Only of {_listed(of)}")
    return "\n".join(lines)


def _kinds(field: str, label: Callable[[Read], str]) -> dict[Kind, set[str]]:
    """What a field's value may be, each with the labels of what it may be that of."""
    kinds: dict[Kind, set[str]] = {}
    for read in by_field()[field]:
        if kind := _kind(read):
            kinds.setdefault(kind, set()).add(label(read))
    # a reader that asks again, as for a number of any size or for the text of a choice, says less
    return {kind: kinds[kind] for kind in kinds if not any(_says_more(other, kind) for other in kinds)}


def _says_more(other: Kind, kind: Kind) -> bool:
    return other != kind and (kind[0] == "text" or other[0].startswith(f"{kind[0]},"))


def _kind(read: Read) -> Kind | None:
    """What one read takes; None where it does not say."""
    given = read.parameters
    if text := texts()["kinds"].get(read.field):
        return text, ()
    if (annotation := _annotation(read)) is not None:
        return _of_annotation(annotation), ()
    if read.by in ("choice", "choices"):
        of = f"one of these{' or more' if read.by == 'choices' else ''}" if len(given["choices"]) > 1 else "this alone"
        return of, tuple(
            _choice(read.field, name, function, given.get("known", {})) for name, function in given["choices"].items()
        )
    if read.by in ("number", "integer"):
        low, high = given.get("at_least", given.get("above", -math.inf)), given.get("at_most", math.inf)
        within = Within(low, high, (low,) if "above" in given else ())
        return f"{'whole number' if read.by == 'integer' else 'number'}{_range(within)}", ()
    if read.by == "one_of":
        return _one_of(given["choices"]), ()
    plain = {
        "boolean": "`True` or `False`",
        "text": "text",
        "path": '`""`, or a folder',
        "numbers": "numbers, separated by commas",
    }
    return (plain[read.by], ()) if read.by in plain else None


def _annotation(read: Read) -> Any:
    """The annotation by which a value is checked that its reader takes as it is; None where there is none."""
    section, _, name = read.field.rpartition(".")
    if section == "objective" and read.by in ("has", "value"):
        keyword = keywords_of(read.recipe.method).get(name)
        return None if keyword is None or name in READERS else keyword.annotation
    if section == "net" and read.by in ("value", "integer"):
        kind = {f.name: f.type for f in dataclasses.fields(NETS[read.recipe.network])}.get(name)
        return {int: Size, float: NotNegative}.get(kind, kind)
    return None


def _of_annotation(annotation: Any) -> str:
    options = get_args(annotation)
    if NoneType in options:
        return f"{_of_annotation(next(option for option in options if option is not NoneType))}, or `None`"
    if get_origin(annotation) is Literal:
        return _one_of(options)
    kind, ranges = (options[0], options[1:]) if get_origin(annotation) is Annotated else (annotation, ())
    names = {bool: "`True` or `False`", str: "text", int: "whole number"}
    return names.get(kind, "number") + "".join(_range(within, largest=LARGE) for within in ranges)


def _range(within: Within, *, largest: float = math.inf) -> str:
    """Writes a range, as ", above 0 and at most 1".

    largest: a bound that only keeps numbers within float32, and is not written.
    """
    low, high = within.low, within.high
    parts = []
    if low > -largest:
        parts.append(f"{'above' if low in within.without else 'at least'} {_number(low)}")
    if high < largest:
        parts.append(f"{'below' if high in within.without else 'at most'} {_number(high)}")
    return f", {' and '.join(parts)}" if parts else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _one_of(choices: Iterable[str]) -> str:
    return "one of " + ", ".join(f"`{choice}`" if choice else '`""`' for choice in choices)


def _choice(field: str, name: str, function: Callable[..., Any], known: Mapping[str, Any]) -> str:
    """A line about a choice: its parameters with their defaults, what it is, and the parameters' ranges."""
    bound = function.keywords if isinstance(function, partial) else ()
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if (p.kind == p.KEYWORD_ONLY or p.default is not p.empty) and p.name not in known and p.name not in bound
    ]
    written = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    ranges = "; ".join(f"`{p.name}`: {_of_annotation(p.annotation)}" for p in parameters)
    about = sentence(field, name, function)
    return f"`{name}{f'({written})' if written else ''}`: {about}{f' {ranges}.' if ranges else ''}"


def sentence(field: str, name: str, function: Callable[..., Any]) -> str:
    """The first sentence of a choice's docstring, or that of `configuration.toml`.

    Raises: KeyError where there is neither.
    """
    if own := texts()["choices"].get(field, {}).get(name):
        return own
    if isinstance(function, partial) or not function.__doc__:
        raise KeyError(f"{field} = {name}: no docstring, and docs/configuration.toml has no [choices] of it")
    first = " ".join(function.__doc__.partition("\n\n")[0].split("   [")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", first)[0].replace("*", r"\*")


def _default(field: str) -> str:
    """The value that a recipe has where it says nothing."""
    section, _, name = field.rpartition(".")
    if text := texts()["absent"].get(field):
        return text
    if section == "net" and name != "name":
        return _by_value({f"`{net}`": defaults(net)[name] for net in NETS if name in defaults(net)})
    value: Any = _usual()
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is not None and field not in IN_RECIPES:
        return _written(value)
    absent = {}
    for read in by_field()[field]:
        if "absent" in read.parameters:
            absent[f"`{read.recipe.method}`"] = read.parameters["absent"]
        elif section == "objective" and _annotation(read) is not None:
            default = keywords_of(read.recipe.method)[name].default
            if default is not inspect.Parameter.empty:
                absent[f"`{read.recipe.method}`"] = default
    return _by_value(absent) if absent else "that of the recipe"


def _by_value(values: Mapping[str, Any]) -> str:
    """The values, each once, with the labels of those that have it where there are several."""
    labels: dict[str, set[str]] = {}
    for label, value in values.items():
        labels.setdefault(_written(value), set()).add(label)
    return ", ".join(f"{value} ({_listed(of)})" if len(labels) > 1 else value for value, of in labels.items())


def _written(value: Any) -> str:
    if value == math.inf:
        return "none"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{value}`" if value != "" else '`""`'


@cache
def _usual() -> dict[str, Any]:
    """The values that recipes share by `configs/common.py`."""
    usual = common.base()
    usual.optimizer = common.optimizer("adam", learning_rate=0.0, averages=())
    usual.samples = common.teacher_samples(every=0)
    return usual.to_dict()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
