"""Large draws: written part by part as they come, and gone on with after a kill."""

import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.system.files import remove_folder, to_json, write_atomically
from cmjax.system.npz import npz_bytes
from cmjax.system.processes import on_first_process

log = logging.getLogger(__name__)

PART = 1024
"""Samples of a part: a number that no device count changes, so that another machine can go on."""

RECORD = "settings.json"
VERSION = 1
"""Of how samples are drawn: parts of a lower one are not gone on with."""


def write_array(path: Path, num: int, draw: Callable[[int, int], np.ndarray], *, settings: Mapping[str, Any]) -> None:
    """Write samples 0 … num − 1 to the .npz `path`, as `images`; draw(start, stop) makes some of them.

    Until all are there, the finished parts lie in a folder beside it, `<path>.parts`: a draw that was stopped goes on
    from them, and no sample is lost or drawn twice.

    Args:   settings: what the samples depend on. Parts of other settings are removed, and the log says so.
    Raises: ConfigError where they cannot be removed.
    """
    folder = path.with_name(f"{path.name}.parts")
    settings = dict(settings) | {"num": num, "part": PART, "version": VERSION}
    if num <= PART:
        on_first_process(lambda: _remove_others(folder, settings))
        images = draw(0, num)
        on_first_process(lambda: _write_npz(path, images))
        return
    on_first_process(lambda: _claim(folder, settings))
    files = {start: folder / f"{start:08d}.npy" for start in range(0, num, PART)}
    for start in on_first_process(lambda: [place for place, file in files.items() if not file.exists()]):
        images = draw(start, min(start + PART, num))
        on_first_process(lambda start=start, images=images: write_atomically(files[start], _npy(images)))
    on_first_process(lambda: _join(path, list(files.values()), folder))


def _join(path: Path, files: list[Path], folder: Path) -> None:
    _write_npz(path, np.concatenate([_read_npy(file) for file in files]))
    remove_folder(folder)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a draw's parts, or go on with it. Parts of another draw are removed."""
    if _settings(folder) == json.loads(to_json(settings)):
        log.info("going on from the parts in %s", folder)
        return
    _remove_others(folder, settings)
    write_atomically(folder / RECORD, to_json(settings))


def _remove_others(folder: Path, settings: dict[str, Any]) -> None:
    """Remove the parts of another draw, and say what differs."""
    if not folder.exists():
        return
    old, new = _settings(folder), json.loads(to_json(settings))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    told = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in differing)
    changes = told if old else "its settings are not known"
    log.warning("%s has parts of another draw (%s), which are removed", folder, changes)
    remove_folder(folder)
    if folder.exists():
        raise ConfigError(f"{folder} has parts of another draw ({changes}) and cannot be removed; name another --out")


def _settings(folder: Path) -> dict[str, Any]:
    """What the parts were drawn with; empty where that is not known, as after a removal that was cut short."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path} is damaged: remove it, and the same command draws this part anew") from error


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _write_npz(path: Path, images: np.ndarray) -> None:
    write_atomically(path, npz_bytes({"images": images}))
