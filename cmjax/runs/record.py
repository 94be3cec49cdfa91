"""A run's record, `config.json`: writing it, reading it, and whether a run may go on with another configuration."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from cmjax.config.fields import ConfigError
from cmjax.config.recorded import completed, is_class_conditional, is_of_training, shapes_state, with_free_fields
from cmjax.runs.classes import differing_classes, other_encoders
from cmjax.runs.history import provenance
from cmjax.runs.workdir import FORMAT, RECORD, Workdir, unwritable
from cmjax.system.files import to_json, to_path, write_atomically

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
    """Make the folder and write `config.json`, or check that the folder is of the same run.

    Args:    imported: the origin and the licence of parameters that no run here made. recipe: its name. device: in
             words. classes: entries of `classes_of`. step: that a training goes on from. Without it an existing record
             stays as it is; with it the record holds the new values, and the old ones under "changes".
    Returns: the differing fields that a run may change, as "field: old -> new".
    Raises:  ConfigError where the folder cannot be written or is another run's, naming the fields that differ.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # `mkdir` also succeeds where the folder exists and is only read
        probe = workdir / ".writable"
        probe.touch()
        # another process of the run may have been here
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from error
    record = {"config": config, "shape": list(shape), "num_classes": num_classes, "format": FORMAT, **provenance()}
    optional = {"imported": imported, "recipe": recipe, "device": device}
    record |= {name: value for name, value in optional.items() if value} | dict(classes or {})
    changed: list[str] = []
    if (workdir / RECORD).exists():
        old = read_record(workdir)
        changed = _checked(workdir, old, record)
        if step is None:
            return changed
        differing = dict(differences(old["config"], config))
        fields = {field: list(pair) for field, pair in differing.items() if is_of_training(field)}
        # changes of what shapes the state were refused above; these are what training may change on its way
        changes = [*old.get("changes", []), *([{"step": step, "fields": fields}] if fields else [])]
        record |= {"changes": changes} if step and changes else {}  # a training from step 0 has no earlier values
    write_atomically(workdir / RECORD, to_json(record))
    return changed


def _checked(workdir: Path, old: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """List what differs from the old record, as "field: old -> new". Raises: ConfigError, as `write_record`."""
    if "imported" in old:
        raise ConfigError(
            f"--workdir={workdir} holds weights that no run here made; train elsewhere, from them, with "
            f"--config.init_from={workdir}"
        )
    if old["shape"] != record["shape"] or old["num_classes"] != record["num_classes"]:
        was, now = (f"{one['shape']} in {one['num_classes'] or 'no'} classes" for one in (old, record))
        raise ConfigError(f"--workdir={workdir} was made with data of shape {was}, and these are {now}; name another")
    if problem := other_encoders(old, record):
        raise ConfigError(f"--workdir={workdir} was trained on {problem}; name another")
    # of a model without classes a label means nothing
    renamed = differing_classes(old.get("class_names"), record.get("class_names"))
    if renamed and is_class_conditional(record["config"]):
        raise ConfigError(
            f"--workdir={workdir} was trained with classes of other names: {renamed}; give the classes their names "
            "again, for their labels would change, or name another"
        )
    differing = dict(differences(old["config"], record["config"]))
    _refuse_other_states(workdir, differing)
    changed = [f"{field}: {_change(*pair)}" for field, pair in differing.items()]
    changed += [f"data: {renamed}"] if renamed else []
    # of data that are too large to read whole there is no key
    keys = old.get("data_key"), record.get("data_key")
    return changed if None in keys or keys[0] == keys[1] else [*changed, "data: other images or labels than before"]


def _refuse_other_states(workdir: Path, differing: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise ConfigError where the run's checkpoints depend on fields that differ."""
    fatal = [f"  {field}: {_change(*pair)}" for field, pair in differing.items() if shapes_state(field, *pair)]
    if fatal:
        raise ConfigError(
            f"--workdir={workdir} was made by another configuration, which its checkpoints depend on:\n"
            + "\n".join(fatal)
            + "\nName another --workdir, or use the old values."
        )


def as_trained(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the configuration of a run whose steps are all done: `config` for fields that training does not depend on,
    the recorded one for all others. Warns of values that have no effect any more.

    Raises: ConfigError where the folder is another run's.
    """
    old = read_record(workdir)["config"]
    _refuse_other_states(workdir, dict(differences(old, config)))
    kept = with_free_fields(old, config)
    for field, (trained, asked) in differences(json.loads(to_json(kept)), config):
        log.warning("config.%s: %r has no effect: all steps are done, and were trained with %r", field, asked, trained)
    return kept


def keep_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a run whose steps are all done into its record, and keep the other entries."""
    write_atomically(workdir / RECORD, to_json(read_record(workdir) | {"config": config, "format": FORMAT}))


def read_record(workdir: str | Path) -> dict[str, Any]:
    """Read `config.json`, with the fields that earlier versions did not write as they were then.

    Returns: "config", "shape" (h, w, c), "num_classes", versions and the git commit.
    Raises:  ConfigError where there is none, or it cannot be read.
    """
    record = Workdir(to_path(workdir)).read_record()
    return record | {"config": completed(record["config"], record.get("format", 1))}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the fields that differ, with their old and new values; None for a missing field."""
    # through JSON, as the recorded ones went: tuples are lists there
    before, after = flatten_dict(old, sep="."), flatten_dict(json.loads(to_json(new)), sep=".")
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            yield field, (before.get(field), after.get(field))


def _change(old: Any, new: Any) -> str:
    return f"{old!r} -> {new!r}"
