"""A run's folder: its files, its checkpoints, the lock on it, and the checks before anything is written."""

import contextlib
import errno
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmjax.config.description import describe
from cmjax.config.fields import ConfigError
from cmjax.config.renamed import RECORDS, summary_with_new_names, with_new_names
from cmjax.system.files import cache_of, is_bucket, read_json, read_json_lines, to_path
from cmjax.system.lock import MARK, AlreadyRunning, FolderLock
from cmjax.system.processes import leave_at_once, on_first_process
from cmjax.training.saved import saved_steps

RECORD = "config.json"
INDEX, PIPELINE = "model_index.json", "pipeline"
"""The index of a pipeline's folder; and the folder that a run of prompts has, with text encoders and autoencoder."""
FORMAT = 2
"""The format of a record. Runs of format 1, which do not say so, did not correct their averages for their start."""
LEFT_BY_A_KILL = (MARK, f".{MARK}", ".writable")
"""Beginnings of the names of files that a killed run may leave in a folder that holds nothing else."""
GRID = re.compile(r"(\d{7,})-.+\.png")
"""The file of a grid of samples: its step and its sampler."""
CHECKPOINT = "checkpoint"
"""The key, in a PNG's text and in JSON, of the step of the parameters that a file was made of."""

log = logging.getLogger(__name__)


class Workdir:
    """Names the files of one run's folder, on a disk or in a bucket. Reading it needs no jax and no device.

    record: the file of the configuration, and of what the run was made with. metrics: a line of losses and speeds every
    `config.log.every` steps. history: a line for each start. summary: the results of a run that ended or was stopped.
    mark: the process at work in the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.record, self.mark, self.summary = path / RECORD, path / MARK, path / "summary.json"
        self.metrics, self.history = path / "metrics.jsonl", path / "history.jsonl"
        self.checkpoints = path / "checkpoints"

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(saved_steps(self.checkpoints))

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return max(self.steps, default=None)

    def read_record(self) -> dict[str, Any]:
        """Read `config.json` as it was written, but for fields that have a new name.

        Raises: ConfigError where there is none, it cannot be read, or a newer version wrote it.
        """
        try:
            record = json.loads(self.record.read_text())
            if record.get("format", 1) > FORMAT:
                version = record.get("versions", {}).get("cmjax") or "version unknown"
                raise ConfigError(
                    f"{self.path} is of a newer cmjax ({version}): its {RECORD} has format {record['format']}, and "
                    f"this one reads up to {FORMAT}; update cmjax"
                )
            config = with_new_names(record["config"])
            # it raises for what another program wrote
            describe(config)
            return record | {"config": config}
        except ConfigError:  # a ValueError too
            raise
        except FileNotFoundError:
            raise ConfigError(f"{self.path} is not a run's folder: it has no {RECORD}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.record} cannot be read: {error}") from error
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(f"{self.path} is not a run's folder: its {RECORD} is of another program") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of `metrics.jsonl`; [] where there is no such file."""
        lines = (line for line in read_json_lines(self.metrics) if isinstance(line.get("step"), int))
        return [{RECORDS.get(name, name): value for name, value in line.items()} for line in lines]

    def read_history(self) -> list[dict[str, Any]]:
        """Read the lines of `history.jsonl`; [] where there is no such file."""
        lines = read_json_lines(self.history)
        # a line that somebody edited may lack them
        return [line for line in lines if all(isinstance(line.get(name), int) for name in ("from", "to"))]

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`; {} where no training has ended."""
        summary = summary_with_new_names(read_json(self.summary))
        return summary if "steps" in summary else {}

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other runs out of the folder in the block. Every process must call it; the first one holds the lock.

        Raises: ConfigError where another run is at work, or the folder cannot be written.
        """

        def on_lost() -> None:
            log.error("error: another run took %s, for this one was silent; what was not saved is lost", self.path)
            leave_at_once(1)

        lock = FolderLock(self.path, on_lost=on_lost)
        try:
            on_first_process(lock.take)
        except AlreadyRunning as error:
            raise ConfigError(f"--workdir={error}") from error
        except OSError as error:
            raise unwritable(self.path, error) from error
        with lock:
            yield

    def check(self, data_dir: str = "") -> None:
        """Raise ConfigError, naming the folder, where a run may not live in it.

        It must be new, empty or a run's, and apart from the folder of the run's data (on a disk; "" for none): a run
        would be trained on its own samples.
        """
        problem = ""
        with writing(self.path, "--workdir"):
            # links resolved: a folder has one place
            place = None if is_bucket(self.path) else self.path.resolve()
            if place is not None and place == Path(place.anchor):
                problem = "is the root of the disk; name a folder"
            elif self.path.exists() and not self.path.is_dir():
                problem = "is a file; name a folder"
            elif self.path.exists() and not self.record.exists():
                others = sorted(path.name for path in self.path.iterdir() if not path.name.startswith(LEFT_BY_A_KILL))
                listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
                if others:
                    problem = f"is neither empty nor a run's: it holds {listed}, and no {RECORD}; name a new folder"
        if place is not None and data_dir and not is_bucket(data_dir) and not problem:
            data = to_path(data_dir).resolve()
            relations = {"is": place == data, "lies in": data in place.parents, "holds": place in data.parents}
            for relation in (name for name, true in relations.items() if true):
                problem = f"{relation} the run's data, config.data.data_dir={data_dir}; name another"
        if problem:
            raise ConfigError(f"--workdir={self.path} {problem}")


def remove_later(workdir: Path, step: int) -> None:
    """Remove the files made of later parameters than those of `step`: grids of samples, diagnostics, gallery and
    summary. A training that goes on from `step` makes new ones, and the old ones must not be mistaken for them."""
    # a list: what is removed must not change what is still to be listed
    later = [path for path, made_of in _made(workdir) if made_of > step]
    for path in later:
        path.unlink(missing_ok=True)
    if later:
        names = ", ".join(str(path.relative_to(workdir)) for path in later[:3])
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        log.warning("made of parameters of steps after %d, and removed: %s%s", step, names, more)


def _made(workdir: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted((workdir / "samples").glob("*.png")):
        if match := GRID.fullmatch(path.name):
            yield path, int(match[1])
    for path in sorted((workdir / "diagnostics").glob("*.json")):
        if isinstance(made_of := read_json(path).get(CHECKPOINT), int):
            yield path, made_of
            yield path.with_suffix(".png"), made_of
    run = Workdir(workdir)
    if isinstance(made_of := run.read_summary().get("steps"), int):
        yield run.summary, made_of
    # here, not above: who only reads a status needs no Pillow
    from PIL import Image

    gallery, step = workdir / "gallery.png", ""
    with contextlib.suppress(OSError), gallery.open("rb") as opened, Image.open(opened) as image:
        step = str(image.info.get(CHECKPOINT, ""))
    # a gallery whose PNG does not say its step is left alone
    if step.isdigit():
        yield gallery, int(step)


def cache_compilations(workdir: Path) -> None:
    """Keep compiled programs in the cache beside the run, unless JAX's own variable names a folder.

    Small programs are kept too: a start compiles a dozen of them, which takes about a second. For a run in a bucket
    only programs that took a second or more are kept, since reading each one is a request.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_of(workdir) / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ and not is_bucket(workdir):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def unwritable(path: Path, error: OSError, option: str = "--workdir") -> ConfigError:
    """Makes the error of a file or folder that cannot be written."""
    return ConfigError(f"{option}={path} cannot be written: {error.strerror or error}; name another")


@contextlib.contextmanager
def writing(path: Path, option: str = "--out") -> Iterator[None]:
    """Turns an error of writing in the block into a ConfigError of `option`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error, option) from error


def output(path: Path, option: str = "--out") -> Path:
    """Check that a mode can write its output file, or the folder of its files. Returns: the path. Every process must
    call it; the first one checks, since it alone writes.

    Raises: ConfigError naming the option.
    """
    on_first_process(lambda: output_of_one(path, option))
    return path


def output_of_one(path: Path, option: str = "--out") -> None:
    """Does the same as `output` for a mode that runs in one process."""
    if is_bucket(path):
        return
    with writing(path, option):
        if path.suffix and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = path.parent if path.suffix else path
        # the nearest folder that is there: the others are made when there is something to write
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass


def sees_prompts(folder: Path) -> bool:
    """Checks whether images of prompts can be made from a folder: a pipeline's, or a run's that keeps one."""
    if (folder / INDEX).is_file():
        return True
    try:
        net = json.loads((folder / RECORD).read_text()).get("config", {}).get("net", {})
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(net, dict) and net.get("name") == "conditional_unet"
