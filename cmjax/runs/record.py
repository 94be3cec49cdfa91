"""A run's record, its `config.json`: what the run is, and whether it may go on."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.config.recorded import (
    FORMAT,
    completed,
    is_class_conditional,
    is_of_training,
    shapes_state,
    with_free_fields,
)
from cmjax.core.typing import Params
from cmjax.runs.classes import differing_classes
from cmjax.runs.provenance import provenance
from cmjax.system.files import is_bucket, remove_folder, to_json, to_path, write_atomically
from cmjax.training.checkpoint import save_average
from cmjax.training.optimizer import EMA

RECORD = "config.json"

log = logging.getLogger(__name__)


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
    step: int | None = None,
) -> list[str]:
    """Create the workdir and write `config.json`, or check that the folder belongs to the same run.

    Args:    imported: where the parameters came from and under which licence, where no run here made them. recipe: the
             configuration's name. device: what it runs on, in words. classes: what `classes_of` says of the data.
             step: from which a training goes on; without it a record that is there already stays as it is. With it the
             record says what holds from there on, and as `changes` what held before.
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
    changed: list[str] = []
    if (workdir / RECORD).exists():
        old = read_record(workdir)
        changed = _checked(workdir, old, record)
        if step is None:
            return changed
        record |= _changes(old, dict(differences(old["config"], config)), step)
    write_atomically(workdir / RECORD, to_json(record))
    return changed


def _checked(workdir: Path, old: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What the record that is there says otherwise, as "field: old -> new". Raises: ConfigError, as `write_record`."""
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
    _refuse_other_states(workdir, differing)
    changed = [f"{field}: {_told(*pair)}" for field, pair in differing.items()]
    changed += [f"data: {renamed}"] if renamed else []
    keys = old.get("data_key"), record.get("data_key")
    return changed if None in keys or keys[0] == keys[1] else [*changed, "data: other images or labels than before"]


def _refuse_other_states(workdir: Path, differing: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise ConfigError, naming them, where the run's checkpoints depend on fields that differ."""
    fatal = [f"  {field}: {_told(*pair)}" for field, pair in differing.items() if shapes_state(field, *pair)]
    if fatal:
        raise ConfigError(
            f"--workdir={workdir} was made by another configuration, which its checkpoints depend on:\n"
            + "\n".join(fatal)
            + "\nName another --workdir, or use the old values."
        )


def _changes(old: Mapping[str, Any], differing: Mapping[str, tuple[Any, Any]], step: int) -> dict[str, Any]:
    """The record's entry of what was trained otherwise before `step`; of a training from step 0 there is nothing."""
    fields = {field: list(pair) for field, pair in differing.items() if is_of_training(field)}
    changes = [*old.get("changes", []), *([{"step": step, "fields": fields}] if fields else [])]
    return {"changes": changes} if step and changes else {}


def as_trained(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run whose steps are all done: `config` in what its training does not depend on, and the
    run's own in all else. The log says what has no effect any more.

    Raises: ConfigError where the folder is another run's.
    """
    old = read_record(workdir)["config"]
    _refuse_other_states(workdir, dict(differences(old, config)))
    kept = with_free_fields(old, config)
    for field, (trained, asked) in differences(json.loads(to_json(kept)), config):
        log.warning("config.%s: %r has no effect: all steps are done, and were trained with %r", field, asked, trained)
    return kept


def keep_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a run whose steps are all done into its record. What made the run stays there."""
    write_atomically(workdir / RECORD, to_json(read_record(workdir) | {"config": config, "format": FORMAT}))


def unwritable(path: Path, error: OSError, option: str = "--workdir") -> ConfigError:
    """What to say of a file or folder that cannot be written."""
    return ConfigError(f"{option}={path} cannot be written: {error.strerror or error}; name another")


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
        _refuse_newer(workdir, record)
        return record | {"config": completed(record["config"], record.get("format", 1))}
    except FileNotFoundError:
        raise ConfigError(f"{workdir} is not a run's folder: it has no {RECORD}") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{workdir} is not a run's folder: its {RECORD} is of another program") from None


def _refuse_newer(workdir: str | Path, record: Mapping[str, Any]) -> None:
    """Raise ConfigError where a later version wrote the record, whose meaning this one does not know."""
    if record.get("format", 1) > FORMAT:
        version = record.get("versions", {}).get("cmjax")
        raise ConfigError(
            f"{workdir} is of a newer cmjax ({version or 'version unknown'}): its {RECORD} has format "
            f"{record['format']}, and this one reads up to {FORMAT}; update cmjax"
        )


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
