"""Where a run may live, and whether what is to be written can be: asked before anything is computed."""

import errno
import os
import tempfile
from pathlib import Path

from cmjax.config.fields import ConfigError
from cmjax.runs.record import RECORD, unwritable
from cmjax.system.files import is_bucket, to_path
from cmjax.system.lock import MARK
from cmjax.system.processes import on_first_process

OURS = (MARK, f".{MARK}", ".writable")
"""How the names begin of what a run that was killed at once leaves in its folder."""


def check_workdir(workdir: Path, data_dir: str = "") -> None:
    """Raise ConfigError, naming the folder, where a run may not live in it: what is neither empty nor a run's, and what
    is, holds or lies in the folder of its data, which would then be trained on the run's own samples.

    Args: data_dir: of the run's data, on a disk; "" for none.
    """
    try:
        _check_folder(workdir)
    except OSError as error:
        raise unwritable(workdir, error) from error
    if data_dir and not is_bucket(data_dir) and not is_bucket(workdir):
        data, place = to_path(data_dir).resolve(), workdir.resolve()
        ways = {"is": place == data, "lies in": data in place.parents, "holds": place in data.parents}
        for how in (how for how, true in ways.items() if true):
            raise ConfigError(
                f"--workdir={workdir} {how} the run's data, config.data.data_dir={data_dir}; name another"
            )


def _check_folder(workdir: Path) -> None:
    if not is_bucket(workdir) and workdir.resolve() == Path(workdir.resolve().anchor):
        raise ConfigError(f"--workdir={workdir} is the root of the disk; name a folder")
    if not workdir.exists() or (workdir / RECORD).exists():
        return
    if not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")
    others = sorted(path.name for path in workdir.iterdir() if not path.name.startswith(OURS))
    if others:
        held = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise ConfigError(
            f"--workdir={workdir} is neither empty nor a run's: it holds {held}, and no {RECORD}; name a new folder"
        )


def output(path: Path, option: str = "--out") -> Path:
    """The file that a mode will write, or the folder of its files, once it is known that it can be. Every process must
    call it; the first one asks, for it alone writes.

    Raises: ConfigError naming the option.
    """
    on_first_process(lambda: output_of_one(path, option))
    return path


def output_of_one(path: Path, option: str = "--out") -> None:
    """As `output`, of a mode that runs in one process."""
    if is_bucket(path):
        return
    try:
        if path.suffix and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = path.parent if path.suffix else path
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(path, error, option) from error
