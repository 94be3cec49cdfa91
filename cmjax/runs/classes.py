"""The classes of a run by their names: in its record, where a label is chosen, and between runs."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmjax.config.fields import ConfigError, suggestion
from cmjax.data.base import ArraySource, Source, class_names, known_labels
from cmjax.data.on_demand import KeptSource, fingerprint

if TYPE_CHECKING:
    from cmjax.runs.trained import Trained

SHOWN = 20
"""Classes that a message lists."""


def classes_of(source: Source) -> dict[str, Any]:
    """What a record says of the classes: "class_names", and "class_counts", of the examples to train on, where they are
    known without reading them; empty without classes."""
    names, labels = class_names(source), known_labels(source)
    if names is None:
        return {}
    counts = None if labels is None else np.bincount(labels, minlength=len(names)).tolist()
    return {"class_names": list(names), "class_counts": counts}


def about_data(source: Source) -> dict[str, Any]:
    """What a record says of its data: `classes_of` and `data_key_of`."""
    return classes_of(source) | data_key_of(source)


def data_key_of(source: Source) -> dict[str, str]:
    """What a record says of the content of its data, as "data_key": the `fingerprint` of those that fit into memory,
    and nothing of larger ones, which would be read whole for it."""
    try:
        return {"data_key": fingerprint(source)} if isinstance(source, ArraySource | KeptSource) else {}
    except OSError:  # whoever reads the damaged file says so
        return {}


def recorded_classes(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `classes_of` said of the data of a record."""
    return {name: record[name] for name in ("class_names", "class_counts") if name in record}


def in_words(names: Sequence[str]) -> str:
    """The classes with their numbers: `0 cat, 1 dog`; the names alone where they are the numbers."""
    numbered = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(names)]
    return ", ".join(numbered[:SHOWN]) + (f", … {numbered[-1]}" if len(numbered) > SHOWN else "")


def differing_classes(old: Sequence[str] | None, new: Sequence[str] | None) -> str:
    """How the classes differ, in words; empty where they are the same, or one of them has no names but the numbers."""
    if old is None or new is None or list(old) == list(new) or not (_are_names(old) and _are_names(new)):
        return ""
    pairs = enumerate(zip(old, new, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), min(len(old), len(new)))
    one, other = (f'"{names[place]}"' if place < len(names) else "none" for names in (old, new))
    return f"class {place} is {one} there, and {other} in these data"


def _are_names(names: Sequence[str]) -> bool:
    return list(names) != list(map(str, range(len(names))))


def check_classes(trained: "Trained", source: Source, where: str) -> None:
    """Raise ConfigError where a run with classes was trained with others than those of the data."""
    if not trained.model.class_conditional or source.num_classes is None:
        return
    theirs = trained.record["num_classes"]
    if theirs != source.num_classes:
        raise ConfigError(f"{where}: it was trained with {theirs} classes, and the data have {source.num_classes}")
    if problem := differing_classes(trained.record.get("class_names"), class_names(source)):
        raise ConfigError(f"{where}: its labels mean other classes: {problem}")


def class_of(label: str | int, names: Sequence[str]) -> int:
    """The number of the class that `--label` names, by its number or its name.

    Raises: ConfigError where there is no such class, or the name of one is the number of another.
    """
    text = unicodedata.normalize("NFC", str(label))
    kind, colon, rest = text.partition(":")
    by = kind if colon and kind in ("name", "number") and text not in names else ""
    text = rest if by else text
    number = int(text) if by != "name" and text.isdecimal() and int(text) < len(names) else None
    named = list(names).index(text) if by != "number" and text in names and not isinstance(label, int) else None
    if number is not None and named is not None and number != named:
        raise ConfigError(
            f'--label={label}: class {number} is "{names[number]}", and "{text}" is the name of class {named}: write '
            f"--label=number:{text} or --label=name:{text}"
        )
    chosen = named if number is None else number
    if chosen is None:
        hint = suggestion(text, names)
        raise ConfigError(
            f"--label={label}: the model has {len(names)} classes, numbered from 0: {in_words(names)}{hint}"
        )
    return chosen
