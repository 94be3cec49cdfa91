"""A run's record, its `config.json`: what the run is, and whether it may go on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.config.recorded import FORMAT, completed, is_class_conditional, shapes_state
from cmjax.core.typing import Params
from cmjax.machine.files import is_bucket, remove_folder, to_json, to_path, write_atomically
from cmjax.runs.classes import differing_classes
from cmjax.runs.provenance import provenance
from cmjax.training.checkpoint import save_average
from cmjax.training.optimizer import EMA

RECORD = "config.json"


def write_record(
    workdir: Path,
    config: Mapping[str, Any],
    shape: tuple[int, ...],
    num_classes: int | None,
    *,
    imported: Mapping[str, str] | None = None,
    recipe: str | None = None,
    device: str | None = None,
    classes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create the workdir, or check that it belongs to the same run, and write `config.json`.

    Args:    imported: where the parameters came from and under which licence, where no run here made them. recipe: the
             configuration's name. device: what it runs on, in words. classes: what `classes_of` says of the data.
    Returns: the differing fields that a run may change on the way, as "field: old -> new".
    Raises:  ConfigError where the folder cannot be written or is another run's, naming the fields that differ.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the run may have been here
    except OSError as error:
        raise unwritable(workdir, error) from error
    record = {"config": config, "shape": list(shape), "num_classes": num_classes, "format": FORMAT}
    record |= provenance()
    record |= {"imported": imported} if imported else {}
    record |= {"recipe": recipe} if recipe else {}
    record |= {"device": device} if device else {}
    record |= classes or {}
    changed = _changes(workdir, record) if (workdir / RECORD).exists() else []
    write_atomically(workdir / RECORD, to_json(record))
    return changed


def _changes(workdir: Path, record: Mapping[str, Any]) -> list[str]:
    """What the record that is there says otherwise, as "field: old -> new". Raises: ConfigError, as `write_record`."""
    old = read_record(workdir)
    if "imported" in old:
        raise ConfigError(
            f"--workdir={workdir} holds weights that no run here made; train elsewhere, from them, with "
            f"--config.init_from={workdir}"
        )
    if old["shape"] != record["shape"] or old["num_classes"] != record["num_classes"]:
        was, now = (f"{one['shape']} in {one['num_classes'] or 'no'} classes" for one in (old, record))
        raise ConfigError(f"--workdir={workdir} was made with data of shape {was}, and these are {now}; name another")
    renamed = differing_classes(old.get("class_names"), record.get("class_names"))
    if renamed and is_class_conditional(record["config"]):
        raise ConfigError(
            f"--workdir={workdir} was trained with classes of other names: {renamed}; give the classes their names "
            "again, for their labels would change, or name another"
        )
    differing = dict(differences(old["config"], record["config"]))
    fatal = [f"  {field}: {_told(*pair)}" for field, pair in differing.items() if shapes_state(field, *pair)]
    if fatal:
        raise ConfigError(
            f"--workdir={workdir} was made by another configuration, which its checkpoints depend on:\n"
            + "\n".join(fatal)
            + "\nName another --workdir, or use the old values."
        )
    changed = [f"{field}: {_told(*pair)}" for field, pair in differing.items()]
    return [*changed, f"data: {renamed}"] if renamed else changed


def unwritable(workdir: Path, error: OSError) -> ConfigError:
    """What to say of a run's folder that cannot be written."""
    return ConfigError(f"--workdir={workdir} cannot be written: {error.strerror or error}; name another")


def check_new(folder: Path, option: str) -> None:
    """Raise ConfigError, naming the option, where `folder` is anything but a name to be made or an empty folder."""
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
    """A run's folder of parameters that no training in it made. It appears whole, under its name, or not at all.

    Args:   folder: new, as `check_new` has it. imported, classes: as in `write_record`. option: that named the folder.
    Raises: ConfigError where it cannot be written.
    """
    partial = folder if is_bucket(folder) else folder.with_name(f".{folder.name}.partial")
    try:
        remove_folder(partial)
        partial.mkdir(parents=True)
        save_average(partial / "checkpoints", params, EMA)
        # without it, no run's folder
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


def read_record(workdir: str | Path) -> dict[str, Any]:
    """The content of `config.json`: "config", "shape" (h, w, c), "num_classes", versions and the git commit.

    Raises: ConfigError where there is none, or it cannot be read.
    """
    path = to_path(workdir) / RECORD
    try:
        record = json.loads(path.read_text())
        return record | {"config": completed(record["config"], record.get("format", 1))}
    except FileNotFoundError:
        raise ConfigError(f"{workdir} is not a run's folder: it has no {RECORD}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{workdir} is not a run's folder: its {RECORD} is of another program") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The fields that differ, with their old and new values; None for a field that is missing."""
    before, after = dict(_leaves(old)), dict(_leaves(json.loads(to_json(new))))
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            yield field, (before.get(field), after.get(field))


def _told(old: Any, new: Any) -> str:
    return f"{old!r} -> {new!r}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
