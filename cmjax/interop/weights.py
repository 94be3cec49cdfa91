"""Writes and reads a run's weights as one file: averaged parameters by path, with the run's record as metadata."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.keys import ForeignError
from cmjax.interop.modules import non_finite
from cmjax.interop.safetensors_files import read_safetensors
from cmjax.system.files import to_json, write_atomically
from cmjax.system.libraries import require
from cmjax.system.npz import load_npz, npz_bytes

RECORD = "cmjax"
"""The name of the record among the arrays of an .npz, and in the metadata of a .safetensors."""


def write_weights(path: Path, params: Any, record: dict[str, Any], *, dtype: Any = np.float32) -> None:
    """Writes .safetensors or .npz: arrays of `dtype` by their paths, "encoder_0_conv/kernel", and the record as
    JSON."""
    arrays = {"/".join(keys): np.ascontiguousarray(value, dtype) for keys, value in flatten_dict(params).items()}
    if path.suffix == ".npz":
        write_atomically(path, npz_bytes({**arrays, RECORD: np.array(to_json(record))}))
        return
    require("safetensors", f"writing {path}")
    from safetensors.numpy import save

    write_atomically(path, save(arrays, {RECORD: to_json(record), "format": "np"}))


def is_weights_file(path: Path) -> bool:
    """Checks whether the file is an .npz, or a .safetensors with the record of a run. Raises: ForeignError."""
    if path.suffix != ".safetensors":
        return path.suffix == ".npz"
    return not path.is_file() or RECORD in read_safetensors(path)[1]


def read_weights(path: Path) -> tuple[dict[str, Any], Any]:
    """Reads the record and the parameters, float32, that `write_weights` wrote. Raises: ForeignError."""
    if path.suffix == ".npz":
        try:
            arrays = load_npz(path)
        except ValueError as error:
            raise ForeignError(str(error)) from error
        except OSError as error:
            raise ForeignError(f"{path} cannot be read: {error.strerror or error}") from error
        text = str(arrays.pop(RECORD, ""))
    else:
        arrays, metadata = read_safetensors(path)
        text = metadata.get(RECORD, "")
    try:
        record = json.loads(text)
    except ValueError:
        raise ForeignError(f"{path} has no record of a cmjax run; was it written by --mode=export?") from None
    if broken := non_finite(arrays):
        raise ForeignError(f"{path} holds numbers that are not finite in {', '.join(broken)}")
    halves = {key: array.astype(np.float32) for key, array in arrays.items() if array.dtype == np.float16}
    return record, unflatten_dict({tuple(key.split("/")): array for key, array in (arrays | halves).items()})
