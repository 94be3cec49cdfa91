"""Finds subfolders that are splits by their names, `train` beside `val`, and no classes."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmjax.data.base import DataError
from cmjax.system.files import AnyPath

log = logging.getLogger(__name__)

WORDS = {
    "train": r"train(?:ing)?|trn",
    "test": r"test(?:ing)?|tst|val(?:id(?:ation)?)?|dev|eval(?:uation)?|hold[-_ ]?out|held[-_ ]?out",
}
# the word stands alone, or has a number or a letter a or b behind it, as val2017 and trainA
_WORD = {
    kind: re.compile(rf"(?<![a-z])(?:{words})(?:set|data|images?)?(?=[^a-z]|[ab]?$)") for kind, words in WORDS.items()
}
FILLERS = {"set", "split", "data", "image", "images", "img", "imgs"}
"""Words that go with the name of a split, as in train_images."""


@dataclass(frozen=True)
class Tops:
    """Says where the splits are, as the parts of a path. test: None where a fraction of `train` is to be held out."""

    train: tuple[str, ...] = ()
    test: tuple[str, ...] | None = None


def split_of(name: str) -> tuple[str, str] | None:
    """Finds the split that a folder's name names, and what else is in the name; None where it names none.

    >>> split_of("Training"), split_of("val2017"), split_of("mnist_test"), split_of("trainA"), split_of("trainers")
    (('train', ''), ('test', ''), ('test', 'mnist'), ('train', 'a'), None)
    """
    text = name.casefold()
    for kind, pattern in _WORD.items():
        if match := pattern.search(text):
            rest = re.findall(r"[^\W\d_]+", f"{text[: match.start()]} {text[match.end() :]}")
            return kind, " ".join(word for word in rest if word not in FILLERS)
    return None


def find_splits(root: AnyPath, images: Iterable[tuple[str, ...]], empty: Sequence[str], *, say: bool) -> Tops:
    """Finds the splits in a folder whose image files have these parts.

    Args:   empty: subfolders without images. say: whether to log them.
    Raises: DataError where names of splits stand beside others, or within classes.
    """
    # by the parts of a folder, the names of its subfolders
    below = defaultdict(set)
    for parts in images:
        for depth in range(len(parts) - 1):
            below[parts[:depth]].add(parts[depth])
    loose = any(len(parts) == 1 for parts in images)
    names = sorted(below[()]) + [name for name in empty if split_of(name)]
    tops = _chosen(root, names, empty, deep={name for name in names if below[(name,)]}, loose=loose, say=say)
    within = {parts for parts, there in below.items() if parts and len(_paired(there)) > 0}
    if within:
        # the highest such folder, and the first by name where there are several
        parts = min(within, key=lambda parts: (len(parts), parts))
        inner = some(sorted(name for name in below[parts] if split_of(name)))
        raise DataError(
            f"{root.joinpath(*parts)}: {inner} are splits within a subfolder; give that folder as config.data.data_dir,"
            ' or move the classes into "train" and "test" at the top'
        )
    if tops.train and loose and say:
        log.warning("%s: the images beside its splits are not read", root)
    return tops


def _chosen(root: AnyPath, names: list[str], empty: Sequence[str], *, deep: set[str], loose: bool, say: bool) -> Tops:
    pairs, plain = _paired(names), [name for name in names if split_of(name) in (("train", ""), ("test", ""))]
    others = [name for name in names if name not in plain]
    if len(pairs) > 1:
        raise DataError(f"{root}: holds several pairs of splits, {some(names)}; give a folder with one of them")
    if pairs:
        (pair,) = pairs.values()
        if beside := [name for name in names if name not in pair and name not in empty]:
            raise DataError(
                f"{root}: {some(pair)} are splits by their names, and {some(beside)} beside them not; move what is not "
                "meant elsewhere"
            )
        return _of_pair(root, pair, deep, say=say)
    held = [name for name in plain if name not in empty]
    if not held:
        return Tops()
    if others or loose:
        if deeper := [name for name in held if name in deep]:
            raise DataError(
                f"{root}: {some(deeper)} has the name of a split and subfolders of its own, beside "
                f"{some(others) if others else 'images'}; move what is not meant elsewhere"
            )
        if say:
            log.warning("%s: %s has the name of a split, and is taken as a class", root, some(held))
        return Tops()
    if len(held) > 1 or split_of(held[0]) != ("train", ""):
        several = split_of(held[-1]) == ("train", "")
        problem = "two are named like the training split" if several else "none is to train on"
        raise DataError(f"{root}: of its subfolders, {some(held)}, {problem}; splits are called train and test")
    return Tops((held[0],))


def _of_pair(root: AnyPath, pair: list[str], deep: set[str], *, say: bool) -> Tops:
    """Chooses the training split, and the one held out: "test" where several have classes as the training split has."""
    train = [name for name in pair if (split_of(name) or ("",))[0] == "train"]
    test = [name for name in pair if name not in train]
    if len(train) > 1:
        raise DataError(f"{root}: {some(train)} are both named like the training split; leave one")
    # one that has classes where training has, then "test" before "val", then by name
    chosen = min(test, key=lambda name: ((name in deep) != (train[0] in deep), "test" not in name.casefold(), name))
    if say:
        rest = [name for name in test if name != chosen]
        more = f"; not read: {some(rest)}" if rest else ""
        log.info('%s: "%s" is trained on, and "%s" held out%s', root, *train, chosen, more)
    return Tops((train[0],), (chosen,))


def _paired(names: Iterable[str]) -> dict[str, list[str]]:
    """Finds the names of splits that differ in nothing else, where both are there, by what else is in them."""
    pairs = defaultdict(list)
    for name in sorted(names):
        if (named := split_of(name)) is not None:
            pairs[named[1]].append(name)
    # of both kinds, however many there are of one
    return {rest: there for rest, there in pairs.items() if len({(split_of(name) or "")[0] for name in there}) == 2}


def some(names: Sequence[str]) -> str:
    """Writes names in words, the first eight of many."""
    shown = ", ".join(f'"{name}"' for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
