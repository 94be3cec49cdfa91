"""Compares the data of runs: their classes by name, and the encoders of latents and captions; finds a label's class."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from cmjax.config.fields import ConfigError, suggestion

LISTED = 20
"""The number of classes that a message lists."""


def recorded_classes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the entries of a record that `classes_of` made."""
    return {name: record[name] for name in ("class_names", "class_counts") if name in record}


def in_words(names: Sequence[str]) -> str:
    """List classes with their numbers: `0 cat, 1 dog`; the names alone where they are the numbers."""
    numbered = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(names)]
    return ", ".join(numbered[:LISTED]) + (f", … {numbered[-1]}" if len(numbered) > LISTED else "")


def differing_classes(old: Sequence[str] | None, new: Sequence[str] | None) -> str:
    """Describe the first difference between classes; "" where they are the same, or one side has only numbers."""
    if old is None or new is None or list(old) == list(new) or not (are_names(old) and are_names(new)):
        return ""
    # not strict: where one side has more classes, the first of these is the difference
    pairs = enumerate(zip(old, new, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), min(len(old), len(new)))
    one, other = (f'"{names[place]}"' if place < len(names) else "none" for names in (old, new))
    return f"class {place} is {one} there, and {other} in these data"


def are_names(classes: Sequence[str]) -> bool:
    """Says whether the classes have names, and not only their numbers."""
    return list(classes) != list(map(str, range(len(classes))))


def class_of(label: str | int, names: Sequence[str]) -> int:
    """Find the number of the class that `--label` names, by its number or its name.

    Raises: ConfigError where there is no such class, or the name of one is the number of another.
    """
    # one spelling of letters: a terminal may compose them otherwise than a file system did
    text = unicodedata.normalize("NFC", str(label))
    kind, colon, rest = text.partition(":")
    # "name:3" and "number:3" say which is meant, unless a class is called so
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


ENCODERS = {
    "autoencoder": "latents of an autoencoder whose weights have the key",
    "text_encoder": "captions of text encoders and tokenizers that have the key",
}
"""Entry of a record that is a key of an encoder -> the encoder's name in messages."""


def other_encoders(record: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Says what encoded a run's data where these data, of which `about_latents` gives the entries, are another's; ""
    where they are not, or both are not known."""
    for name, what in ENCODERS.items():
        there, here = record.get(name), data.get(name)
        if None not in (there, here) and there != here:
            return f"{what} {there}, and these data are of {here}"
    return ""
