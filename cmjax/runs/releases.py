"""Finds and fetches the files of cmjax's own trained models, cmjax://digits_ct, by their names, sizes and checksums.

`benchmarks/release.py` makes the files anew, and writes their rows of weights/checksums.tsv.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cmjax.config.fields import ConfigError, suggestion
from cmjax.system.files import user_cache, write_atomically

FOLDER = Path(__file__).parents[1] / "weights"
"""The folder of the files that come with cmjax, and of the table."""
SOURCES = Path(__file__).parents[2] / "weights"
"""The folder of the other models' files in a clone of the sources; an installed package has none."""
ADDRESS = "https://github.com/cmjax/cmjax/raw/main/weights"
"""The address of that folder, which has all files as <name>/<file>."""
MIRROR = "CMJAX_WEIGHTS"
"""The variable of the environment that names another address, or a folder."""
SECONDS = 20


class ReleaseFile(NamedTuple):
    """A row of the table. name: below the model's folder."""

    name: str
    size: int
    sha256: str


def table() -> dict[str, list[ReleaseFile]]:
    """Reads the table: the files of each model that was made."""
    files: dict[str, list[ReleaseFile]] = {}
    for line in (FOLDER / "checksums.tsv").read_text().splitlines():
        path, size, sha256 = line.split("\t")
        model, _, name = path.partition("/")
        files.setdefault(model, []).append(ReleaseFile(name, int(size), sha256))
    return files


def release_files(address: str) -> tuple[Path, str]:
    """Gives the folder of a model's files, fetched where they did not come with cmjax, and the key of their content.

    Raises: ConfigError in one line where there is no such model, or a file cannot be read or is not what it must be.
    """
    name, known = address.removeprefix("cmjax://"), table()
    if name not in known:
        raise ConfigError(f"{address}: there is no such model{suggestion(name, known)}; there are {', '.join(known)}")
    files = known[name]
    key = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    for folder in (FOLDER / name, SOURCES / name, user_cache() / "releases" / f"{name}-{key[:12]}"):
        if not _missing(folder, files):
            return folder, key
    base = os.environ.get(MIRROR) or ADDRESS
    for file in _missing(folder, files):
        content = _content(address, base, f"{name}/{file.name}")
        if problem := _problem(content, file):
            raise ConfigError(f"{address}: {file.name} of {base} {problem}; nothing of it is used")
        try:
            write_atomically(folder / file.name, content)
        except OSError as error:
            raise ConfigError(f"{address}: {folder} cannot be written: {error.strerror or error}") from error
    return folder, key


def _missing(folder: Path, files: list[ReleaseFile]) -> list[ReleaseFile]:
    """Lists the files that are not there, or not whole."""
    return [
        file
        for file in files
        if not (folder / file.name).is_file() or _problem((folder / file.name).read_bytes(), file)
    ]


def _problem(content: bytes, file: ReleaseFile) -> str:
    """Says what is wrong with a file; "" where nothing is."""
    if len(content) != file.size:
        return f"has {len(content):,} bytes, and not {file.size:,}"
    return "" if hashlib.sha256(content).hexdigest() == file.sha256 else "has another SHA-256 than the released one"


def _content(address: str, base: str, name: str) -> bytes:
    """Reads a file below an address or a folder."""
    try:
        if "://" not in base:
            return (Path(base).expanduser() / name).read_bytes()
        import urllib.request  # here, not above: most files are there

        with urllib.request.urlopen(f"{base.rstrip('/')}/{name}", timeout=SECONDS) as answer:
            return answer.read()
    except (OSError, ValueError) as error:  # URLError is one, and so are those of files and timeouts
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{address}: {name} cannot be read from {base}: {why}; {MIRROR} names another folder or address"
        ) from error


def write_rows(models: Mapping[str, Path]) -> None:
    """Writes the rows of these models' folders into the table, in place of their old ones."""
    rows = {name: files for name, files in table().items() if name not in models}
    for name, folder in models.items():
        paths = sorted(
            path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")
        )
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        rows[name] = [
            ReleaseFile(file, len(content), hashlib.sha256(content).hexdigest()) for file, content in contents.items()
        ]
    lines = [f"{name}/{file.name}\t{file.size}\t{file.sha256}\n" for name in sorted(rows) for file in rows[name]]
    write_atomically(FOLDER / "checksums.tsv", "".join(lines))
