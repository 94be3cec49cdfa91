"""One average of the parameters in a checkpoint: of a training's, by Orbax; of weights that no training made, a
safetensors file, which is read without Orbax and without tracing the network for its shapes."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, SingleDeviceSharding
from jaxtyping import Array

from cmjax.core.typing import Params
from cmjax.system.files import absolute, is_bucket, to_path, write_atomically
from cmjax.system.mesh import parameter_shardings
from cmjax.training.saved import COMMITTED, CheckpointError, newest_readable, saved_steps, write_checksums

FILE = "averages.safetensors"
"""The file in the folder of a step: arrays by their average and path, "ema0/encoder/kernel"."""


def save_average(folder: str | Path, params: Params, name: str) -> None:
    """Write a checkpoint of step 0 that holds one average alone, for `restore_average`. `folder` must be empty."""
    from safetensors.numpy import save

    step_folder = absolute(to_path(folder)) / "0"
    arrays = {"/".join((name, *path)): np.asarray(leaf, order="C") for path, leaf in flatten_dict(params).items()}
    write_atomically(step_folder / FILE, save(arrays))
    # what makes it whole to a reader
    if is_bucket(step_folder):
        write_atomically(step_folder / COMMITTED, "")
    else:
        write_checksums(step_folder)


def restore_average(
    folder: str | Path, shapes: Callable[[], Params], name: str, *, step: int | None = None, mesh: Mesh | None = None
) -> Params:
    """Read one average of the parameters, and nothing else, from the newest whole checkpoint in `folder` or from that
    of `step`.

    Args:   shapes: gives its shapes; called for a training's checkpoint. mesh: of all processes, over which the arrays
            are laid as the train step has them, and every process must call; without, they come to this process's
            first device.
    Raises: CheckpointError where there is none.
    """
    folder = absolute(to_path(folder))

    def steps() -> list[int]:
        return [saved for saved in saved_steps(folder) if step in (None, saved)]

    def read(step: int) -> Params:
        if (folder / str(step) / FILE).exists():
            return _read_file(folder / str(step) / FILE, name, mesh)
        from cmjax.training.checkpoint import read_average  # Orbax takes as long to import as Flax

        return read_average(folder / str(step), shapes(), name, mesh)

    restored = newest_readable(folder, steps, read, alone=mesh is None)
    if restored is None:
        others = ", ".join(map(str, sorted(saved_steps(folder)))) or "none"
        asked = "" if step is None else f" of step {step}; there are those of steps {others}"
        raise CheckpointError(f"no checkpoint in {folder}{asked}")
    return restored


def _read_file(file: Path, name: str, mesh: Mesh | None) -> Params:
    """Read an average of a safetensors file, an array at a time: each is laid out before the next one is read."""
    from safetensors import safe_open
    from safetensors.numpy import load

    def laid_out(array: np.ndarray) -> Array:
        alone = SingleDeviceSharding(jax.local_devices()[0])
        sharding = alone if mesh is None else parameter_shardings(array, mesh)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    if is_bucket(file):
        params = {key: laid_out(array) for key, array in load(file.read_bytes()).items()}
    else:
        with safe_open(file, framework="numpy") as opened:
            params = {key: laid_out(opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118
    return unflatten_dict({tuple(key.split("/")): array for key, array in params.items()})[name]
