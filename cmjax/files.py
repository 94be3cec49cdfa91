"""Writing files so that a kill or a full disk at any moment leaves the old content or the new, never a part."""

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Make `path` hold `content`, or leave it as it was. Its folder is made where missing.

    Raises: OSError where the folder cannot be made or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own for every writer: several hosts may share the folder
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """Indented JSON; what JSON has no word for is written as its text."""
    return json.dumps(value, indent=2, default=str) + "\n"
