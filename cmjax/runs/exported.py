"""Reads what `--mode=export` wrote, a file of weights or a folder for model hubs, and makes a run's folder of it."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.core.typing import Params
from cmjax.interop.keys import ForeignError
from cmjax.interop.weights import read_weights
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.classes import recorded_classes
from cmjax.runs.weights import write_model
from cmjax.runs.workdir import RECORD
from cmjax.system.files import remove_folder

MODEL, AUTOENCODER = "model.safetensors", "autoencoder"
"""The file of the weights in a folder for model hubs, and the folder of the decoder of latents."""
OF_RUNS = ("config", "shape", "num_classes")
"""Entries that every record has, and the config.json of other libraries lacks."""


@dataclass(frozen=True)
class Exported:
    """Holds an exported model. autoencoder: the folder of the decoder of its latents; None where there is none."""

    record: Mapping[str, Any]
    params: Params
    autoencoder: Path | None = None


def is_bundle(folder: Path) -> bool:
    """Says whether a folder is one for model hubs, of any library."""
    return folder.is_dir() and (folder / MODEL).is_file() and (folder / RECORD).is_file()


def is_of_cmjax(config: Path) -> bool:
    """Says whether a folder's config.json is the record of a run."""
    try:
        record = json.loads(config.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and all(name in record for name in OF_RUNS)


def read_exported(path: Path) -> Exported:
    """Reads a file of weights, or a folder for model hubs.

    Raises: ForeignError where it is none, is damaged, or its arrays are not those of its network.
    """
    folder = path if path.is_dir() else None
    if folder is not None and not is_of_cmjax(folder / RECORD):
        raise ForeignError(f"{path} is no cmjax model: it has no {RECORD} with the record of a run")
    file = path if folder is None else path / MODEL
    try:
        record, params = read_weights(file)
        module = read_model(record["config"], record["num_classes"]).module
        expected = parameter_shapes(module, tuple(record["shape"]))
    except ConfigError as error:
        raise ForeignError(f"{file}: {error}") from error
    except (KeyError, TypeError) as error:
        raise ForeignError(f"{file}: its record is not that of a run: {error!r}") from error
    if jax.tree.map(lambda leaf: leaf.shape, expected) != jax.tree.map(np.shape, params):
        raise ForeignError(f"{file}: its arrays are not those of the network that its record describes")
    beside = folder and folder / AUTOENCODER
    return Exported(record, params, beside if beside and beside.is_dir() else None)


def write_exported(exported: Exported, folder: Path, *, place: Path, imported: Mapping[str, str], option: str) -> None:
    """Makes a run's folder of an exported model, the whole folder or nothing.

    Args:   folder: absent or empty. place: the folder that it will be, where it is moved afterwards. imported: as in
            `write_record`. option: the one that named it.
    Raises: ConfigError where it cannot be written.
    """
    record, more = exported.record, recorded_classes(exported.record)
    if exported.autoencoder is not None:
        encoding = {**record.get("encoding", {}), "autoencoder": str(place / AUTOENCODER)}
        known = {"autoencoder": record["autoencoder"]} if "autoencoder" in record else {}
        more |= {"encoding": encoding, **known}
    model = record["config"], record["shape"], record["num_classes"], exported.params
    write_model(folder, *model, imported=imported, option=option, classes=more, beside=exported.autoencoder)


def keep_exported(folder: Path, place: Path, *, address: str, version: str) -> None:
    """Makes the run's folder `place` of an exported model that was fetched.

    Several programs may do this at the same time: each writes a folder of its own, and the first one keeps it.

    Raises: ConfigError in one line where the model cannot be read, or not be kept.
    """
    try:
        exported = read_exported(folder)
    except ForeignError as error:
        raise ConfigError(f"{address}: {error}") from error
    imported = {
        "from": address if "@" in address else f"{address}@{version}",
        "format": "cmjax",
        "licence": str(exported.record.get("licence") or "of the model's owner"),
    }
    partial = place.with_name(f".{uuid.uuid4().hex}")
    try:
        write_exported(exported, partial / place.name, place=place, imported=imported, option=address)
        os.replace(partial / place.name, place)
    except (OSError, ConfigError) as error:
        if not (place / RECORD).is_file():
            why = getattr(error.__cause__ or error, "strerror", None) or error
            raise ConfigError(
                f"{address}: cannot be kept in {place.parent}: {why}; XDG_CACHE_HOME names another"
            ) from error
    finally:
        remove_folder(partial)
