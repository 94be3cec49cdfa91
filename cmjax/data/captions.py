"""Captions of image files: `.txt` beside each, or the lines of a `metadata.jsonl`."""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from cmjax.data.base import DataError
from cmjax.data.layout import list_files
from cmjax.system.files import AnyPath

METADATA = "metadata.jsonl"
"""The file in which Hugging Face's folders of images have captions, a line for each image."""
KEYS = ("text", "caption", "txt", "prompt")
"""The usual names of a caption in a JSON object or a table."""


def caption_of(value: Any) -> str:
    """Gives a caption as one line; of a list of captions the first. Raises: DataError where there is none."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError("its caption is no text in UTF-8") from None
    if not isinstance(value, str):
        raise DataError("it has no caption" if value is None else f"its caption is no text, but {value!r:.40}")
    if not (caption := " ".join(value.split())):
        raise DataError("its caption is empty")
    return caption


def caption_in(entries: Mapping[str, Any], key: str) -> Any:
    """Gives the caption among the entries of a JSON object: under `key`, or without one under the first of `KEYS`."""
    return entries.get(key) if key else next((entries[name] for name in KEYS if name in entries), None)


class FolderCaptions:
    """Holds where the captions of a folder's images are. Files of text are read when they are asked for.

    Args:   key: of the caption in a line of metadata.jsonl; "" for the usual ones.
    Raises: DataError where there are none, or a line of metadata.jsonl is damaged, has none or names no image.
    """

    def __init__(self, root: AnyPath, key: str = ""):
        images, others = list_files(root)
        there = {image.parts: str(image.path) for image in images}
        self._known: dict[str, Any] = {}
        for file in (file for file in others if file.parts[-1] == METADATA):
            lines = _lines(file.path, key)
            for number, (name, caption) in lines.items():
                parts = (*file.parts[:-1], *PurePosixPath(unicodedata.normalize("NFC", name)).parts)
                if parts not in there:
                    raise DataError(f"{file.path}: line {number} names {name}, and there is no such PNG or JPEG file")
                self._known[there[parts]] = caption
        if not self._known and not any(file.path.suffix == ".txt" for file in others):
            raise DataError(f"{root}: its images have no captions: neither .txt files beside them nor {METADATA}")

    def __getitem__(self, image: AnyPath) -> str:
        """Gives the caption of an image's file. Raises: DataError where it has none."""
        if str(image) in self._known:
            return caption_of(self._known[str(image)])
        file = image.parent / f"{image.stem}.txt"
        try:
            return caption_of(file.read_bytes())
        except FileNotFoundError:
            raise DataError("it has no caption") from None


def _lines(path: AnyPath, key: str) -> dict[int, tuple[str, Any]]:
    """Reads file name and caption of each line of a metadata.jsonl, by the line's number."""
    lines: dict[int, tuple[str, Any]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entries = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON: {line[:60]!r}") from error
        name = entries.get("file_name") if isinstance(entries, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: line {number} has no file_name: {line[:60]!r}")
        if (caption := caption_in(entries, key)) is None:
            raise DataError(f"{path}: line {number} has no caption, {no_caption_among(entries, key)}")
        lines[number] = name, caption
    return lines


def no_caption_among(names: Iterable[str], key: str) -> str:
    """Says under which names captions are sought, and which there are."""
    wanted = repr(key) if key else f"{', '.join(map(repr, KEYS[:-1]))} or {KEYS[-1]!r}"
    known = "" if key else "; config.data.caption_column names another"
    return f"{wanted}; it has {', '.join(names) or 'none'}{known}"
