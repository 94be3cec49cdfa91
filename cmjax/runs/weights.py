"""Folders of parameters that no training made: imported weights, and averages of other widths."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.core.typing import Params
from cmjax.runs.record import write_record
from cmjax.system.files import is_bucket, remove_folder
from cmjax.training.checkpoint import save_average
from cmjax.training.optimizer import EMA


def check_new(folder: Path, option: str) -> None:
    """Raise ConfigError, naming the option, unless `folder` is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{option}={folder} exists and is not empty; name another")


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    shape: Sequence[int],
    num_classes: int | None,
    params: Params,
    *,
    imported: Mapping[str, str] | None,
    option: str,
    classes: Mapping[str, Any] | None = None,
) -> None:
    """Write a run's folder of parameters that no training in it made: the whole folder or nothing.

    Args:   folder: absent or empty. imported, classes: as in `write_record`. option: the one that named the folder.
    Raises: ConfigError where it cannot be written.
    """
    partial = folder if is_bucket(folder) else folder.with_name(f".{folder.name}.partial")
    try:
        remove_folder(partial)
        partial.mkdir(parents=True)
        save_average(partial / "checkpoints", params, EMA)
        # last: a folder without a record is no run's
        write_record(partial, config, tuple(shape), num_classes, imported=imported, classes=classes)
        if is_bucket(folder):
            return
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except OSError as error:
        raise ConfigError(f"{option}={folder} cannot be written: {error.strerror or error}") from error
    finally:
        if not is_bucket(folder):
            remove_folder(partial)
