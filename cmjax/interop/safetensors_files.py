"""Reads files of safetensors, as data."""

from pathlib import Path

import numpy as np

from cmjax.interop.keys import ForeignError
from cmjax.system.libraries import require


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays and the metadata of a safetensors file. Raises: ForeignError."""
    require("safetensors", f"reading {path}")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise ForeignError(f"{path} is no whole safetensors file: {error}") from error
