"""Writes shards of latents, each whole or absent, and the facts of each beside it."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.system.content import DIGITS
from cmjax.system.files import read_json, to_json, write_atomically


def write_shard(path: Path, batches: Iterable[np.ndarray], *, count: int, update: Callable[[int], None]) -> None:
    """Writes `count` records, which come in batches as `record_type` describes them. update: takes how many are done.

    The facts beside the shard are its bytes, a key of its content, and per channel the sums of the mean and of
    mean² + std², from which the statistics of all shards follow.

    Raises: ConfigError where it cannot be written, as on a full disk.
    """
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    digest, sums, squares, done = hashlib.sha256(), 0.0, 0.0, 0
    try:
        with _in_one_line(path):
            # one record in a group: an example is read without its neighbours
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for records in batches:
            with _in_one_line(path):
                for record in records:
                    writer.write(record.tobytes())
            mean, std = records["mean"].astype(np.float64), records["std"].astype(np.float64)
            sums, squares = sums + mean.sum((0, 1, 2)), squares + (mean**2 + std**2).sum((0, 1, 2))
            digest.update(records.tobytes())
            update(done := done + len(records))
        with _in_one_line(path):
            writer.close()
            # counted before the rename: a shard that lacks examples must not get its name
            if (there := ArrayRecordReader(str(temporary)).num_records()) != count:
                raise OSError(f"it holds {there} of {count} examples")
            facts = {"bytes": temporary.stat().st_size, "key": digest.hexdigest()[:DIGITS]}
            facts |= {"sums": np.ravel(sums).tolist(), "squares": np.ravel(squares).tolist()}
            write_atomically(_facts_file(path), to_json(facts))
            os.replace(temporary, path)  # last: what has its name is whole
    finally:
        temporary.unlink(missing_ok=True)


def facts_of(shard: Path) -> dict[str, Any] | None:
    """Reads the facts of a shard; None unless it is whole."""
    facts = read_json(_facts_file(shard))
    # a shard of another size was cut short, or belongs to another encoding
    whole = facts and shard.is_file() and shard.stat().st_size == facts.get("bytes")
    return facts if whole else None


def _facts_file(shard: Path) -> Path:
    return shard.with_suffix(".json")


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Turns an error in writing a shard into a ConfigError of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split(";")[0]
        problem = f"{path.name} cannot be written: {said}; make room, and the same command goes on"
        raise ConfigError(f"--out={path.parent}: {problem}") from error
