"""Reads the layout of a folder: which files are images, of which split and of which class."""

import json
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from cmjax.data.base import DataError
from cmjax.data.labels import held_out
from cmjax.data.splits import Tops, find_splits, some
from cmjax.system.files import AnyPath, files_below, is_bucket
from cmjax.system.zips import ZipPath

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Endings of the files that are read, in small or capital letters."""

TOOLS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db")
"""Names that tools and operating systems leave in folders, beside what begins with a dot: never a class or image."""

LABELS = "dataset.json"
"""The file in which EDM's and StyleGAN's dataset_tool writes the labels."""

PER_FOLDER = 1000
"""Images that dataset_tool, and FFHQ, put into one numbered folder."""


class File(NamedTuple):
    """parts: of its path from a folder on, in Unicode's composed form (NFC), in which a name has one spelling."""

    path: AnyPath
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Holds the images of a split, sorted. labels (n,) and class_names: None where there are no classes."""

    files: list[AnyPath]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


def read_split(root: AnyPath, split: str, *, captions: bool = False) -> Split:
    """Lists the images of the split "train" or "test" of a folder. What looks wrong is logged once, with "train".

    captions: whether files of captions are read, so that no warning names them.

    Raises: DataError naming what of the layout cannot be read, or can be read in several ways.
    """
    images, others = list_files(root)
    if not images:
        raise DataError(without_images(root, others))
    if captions:
        others = [file for file in others if file.path.suffix not in (".txt", ".jsonl")]
    tops = find_splits(root, [image.parts for image in images], _empty_folders(root, images), say=split == "train")
    top, train = _within(root, images, tops.train)
    if not train:
        raise DataError(without_images(top, _within(root, others, tops.train)[1]))
    if split == "train":
        _say_what_is_left_out(top, train, _within(root, others, tops.train)[1])
    # for the test split, too: classes are those of the training images
    classes = _class_of_each(top, train)
    if split == "test" and tops.test is not None:
        return _test_split(root, images, others, tops, classes)
    chosen = list(range(len(train)))
    if tops.test is None:
        held = held_out(["/".join(image.parts) for image in train], classes)
        # where no folder holds test images, a tenth of the training images are held out
        chosen = [i for i in chosen if held[i] == (split == "test")]
        if not chosen:
            raise DataError(
                f'{root}: none of its {len(train)} images falls into split "{split}" (a tenth is held out by a hash '
                'of the name); add images, or make the subfolders "train" and "test"'
            )
    return _numbered(train, classes, chosen, classes)


def list_files(top: AnyPath) -> tuple[list[File], list[File]]:
    """Lists the image files below a folder, and the other files, sorted. Links are followed.

    Raises: DataError where a folder cannot be listed.
    """
    try:
        paths = list(files_below(top, skip=is_tools_own))
    except PermissionError as error:
        raise DataError(f"{error.filename or top}: cannot be read: permission denied") from error
    # Some systems decompose letters in names: one spelling, so that order and split are the same everywhere.
    names = [[unicodedata.normalize("NFC", part) for part in path.relative_to(top).parts] for path in paths]
    files = sorted(map(File, paths, map(tuple, names)), key=lambda file: file.parts)
    return [file for file in files if is_image(file.path)], [file for file in files if not is_image(file.path)]


def is_image(file: PurePath) -> bool:
    """Checks by its name whether a file is an image."""
    return file.suffix.lower() in SUFFIXES


def is_tools_own(name: str) -> bool:
    """Says whether a file or folder belongs to a tool or an operating system, and not to the data."""
    return name.startswith(".") or name in TOOLS


def _within(root: AnyPath, files: Sequence[File], parts: tuple[str, ...]) -> tuple[AnyPath, list[File]]:
    """Gives a subfolder and the files below it."""
    depth = len(parts)
    return root.joinpath(*parts), [
        File(path, there[depth:]) for path, there in files if there[:depth] == parts and len(there) > depth
    ]


def _test_split(
    root: AnyPath, images: list[File], others: list[File], tops: Tops, known: Sequence[str | int] | None
) -> Split:
    """Reads a folder of held-out images. Leaves out those whose class is not among the `known`, those of the images to
    train on."""
    where = tops.test or ()
    top, test = _within(root, images, where)
    if not test:
        raise DataError(without_images(top, _within(root, others, where)[1]))
    if known is None:
        return Split([image.path for image in test])
    classes = _class_of_each(top, test)
    if classes is None:
        raise DataError(f"{top}: its images are in no classes, and those of {root.joinpath(*tops.train)} are")
    if unknown := sorted(set(map(str, classes)) - set(map(str, known))):
        log.warning("%s: left out, for there is nothing of it to train on: %s", top, some(unknown))
    chosen = [i for i, name in enumerate(classes) if name in set(known)]
    if not chosen:
        raise DataError(f"{top}: has none of the classes of {root.joinpath(*tops.train)}")
    return _numbered(test, classes, chosen, known)


def _numbered(
    files: list[File], classes: Sequence[str | int] | None, chosen: list[int], known: Sequence[str | int] | None
) -> Split:
    """Makes a split of the chosen files. known: the class of each image to train on, which number the classes."""
    paths = [files[i].path for i in chosen]
    if classes is None or known is None:
        return Split(paths)
    # numbered by the classes of training, so that both splits mean the same by a number
    number = {name: i for i, name in enumerate(sorted(set(known)))}
    labels = np.array([number[classes[i]] for i in chosen], np.int32)
    return Split(paths, labels, tuple(map(str, number)))


def _class_of_each(top: AnyPath, images: list[File]) -> Sequence[str | int] | None:
    """Gives the class of each image: what dataset.json says, else its subfolder. None where there are no classes."""
    if (top / LABELS).is_file():
        return _labels_of_tool(top / LABELS, images)
    in_class = [len(image.parts) > 1 for image in images]
    if not any(in_class) or _in_numbered_parts(images):
        return None
    if not all(in_class):
        loose = images[in_class.index(False)].path
        raise DataError(f"{loose}: an image beside class subfolders; move it into one of them, or all out of them")
    return [image.parts[0] for image in images]


def _labels_of_tool(path: AnyPath, images: list[File]) -> list[int] | None:
    try:
        written = json.loads(path.read_text())["labels"]
        labels = None if written is None else dict(written)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f'{path}: is not as EDM\'s dataset_tool writes it, {{"labels": [[file, label], …]}}: repair or remove it'
        ) from error
    if not labels:
        return None
    numbers: list[int] = []
    for image in images:
        if (label := labels.get("/".join(image.parts))) is None:
            raise DataError(f"{path}: has no label of {'/'.join(image.parts)}")
        # True is an int to Python
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise DataError(f"{path}: the label of {'/'.join(image.parts)} is {label!r}, not a whole number from 0 on")
        numbers.append(label)
    return numbers


def _in_numbered_parts(images: list[File]) -> bool:
    """Says whether folders hold a thousand images each by their numbers, 00003/img00003127.png: such are no classes."""
    for _, parts in images:
        number = re.search(r"(\d+)$", parts[-1].rpartition(".")[0])
        if len(parts) != 2 or not re.fullmatch(r"\d{5}", parts[0]) or not number or len(number[1]) < 5:
            return False
        if int(number[1]) // PER_FOLDER != int(parts[0]):
            return False
    return True


def _empty_folders(top: AnyPath, images: list[File]) -> list[str]:
    """Lists the names of the subfolders without images, sorted. Buckets and zips have no empty ones."""
    if is_bucket(top) or isinstance(top, ZipPath):
        return []
    names = {unicodedata.normalize("NFC", sub.name) for sub in top.iterdir() if sub.is_dir()}
    return sorted(name for name in names - {image.parts[0] for image in images} if not is_tools_own(name))


def without_images(top: AnyPath, others: list[File] | None = None) -> str:
    """Writes the error for a folder without an image file."""
    if _locked(top):
        return f"{top}: cannot be read: permission denied"
    others = list_files(top)[1] if others is None else others
    if not others:
        return f"{top}: holds no image files ({', '.join(SUFFIXES)}); put images or class subfolders into it"
    return f"{top}: holds no image files ({', '.join(SUFFIXES)}), but {_such_as(others)}; convert them to PNG"


def _say_what_is_left_out(top: AnyPath, images: list[File], others: list[File]) -> None:
    """Warns of other files, of subfolders without images, and of classes that may be meant otherwise."""
    others = [file for file in others if file.parts != (LABELS,)]
    if others:
        log.warning("%s: %s, not read: neither PNG nor JPEG", top, _such_as(others))
    for name in _empty_folders(top, images):
        why = "cannot be read: permission denied" if _locked(top / name) else "holds no image files"
        log.warning("%s: %s, and is no class", top / name, why)
    if (top / LABELS).is_file():
        return
    if _in_numbered_parts(images):
        log.warning("%s: its folders, such as %s, are parts of a numbered set and no classes", top, images[0].parts[0])
        return
    inner = defaultdict(set)
    for _, parts in images:
        inner[parts[0]].add(parts[1] if len(parts) > 2 else "")
    classes = sorted(inner) if all(len(image.parts) > 1 for image in images) else []
    if len(classes) == 1:
        within = f"; name {top / classes[0]} for its {len(inner[classes[0]])}" if len(inner[classes[0]]) > 1 else ""
        log.warning('%s: has one class subfolder, "%s"; its label says nothing%s', top, classes[0], within)
    elif deep := [name for name in classes if inner[name] != {""}]:
        log.warning('%s: the subfolders of "%s" are one class with it; move them up to make them classes', top, deep[0])
    _say_of_names(top, classes)


def _say_of_names(top: AnyPath, classes: list[str]) -> None:
    """Warns of names that differ too little, and of numbers that are not the classes' own."""
    spelled = defaultdict(list)
    for name in classes:
        spelled[name.casefold().strip()].append(name)
    for alike in (names for names in spelled.values() if len(names) > 1):
        log.warning("%s: %s are classes of their own, by letter case or blanks alone", top, some(alike))
    numbers = [int(name) if name.isdecimal() else None for name in classes]
    if numbers and None not in numbers and numbers != list(range(len(numbers))):
        place = next(i for i, number in enumerate(numbers) if number != i)
        log.warning(
            "%s: classes are numbered from 0 in the order of their names, so that class %d is the folder %s",
            top, place, classes[place],
        )  # fmt: skip


def _such_as(files: list[File]) -> str:
    name = "/".join(files[0].parts)
    return f"1 other file, {name}" if len(files) == 1 else f"{len(files)} other files, such as {name}"


def _locked(folder: AnyPath) -> bool:
    """Says whether a folder on a disk may not be listed."""
    on_disk = not is_bucket(folder) and not isinstance(folder, ZipPath)
    return on_disk and not os.access(folder, os.R_OK | os.X_OK)
