"""Assembles parameters from a peer's arrays by key, every key accounted for."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.modules import non_finite
from cmjax.nets.adapter import parameter_shapes
from cmjax.system.files import to_json, write_atomically
from cmjax.system.libraries import require

Arrays = Mapping[str, np.ndarray]
Path = tuple[str, ...]
WEIGHTS = "diffusion_pytorch_model.safetensors"


class ForeignError(ValueError):
    """Raised where a peer's file cannot be used; the message says what is wrong or must be stated."""


class UndeterminedError(ForeignError):
    """Raised where the file leaves facts about its network open.

    options: a phrase with the option for each. problems: what is wrong beside them.
    """

    def __init__(self, *options: str, problems: Iterable[str] = ()):
        self.options, self.problems = options, tuple(problems)
        leaves_open = f"the file leaves open what its network is: give {'; '.join(options)}"
        super().__init__("; ".join((*self.problems, leaves_open)))


def refuse(problems: Iterable[str], options: Iterable[str] = ()) -> None:
    """Raises one ForeignError with all problems, which is an UndeterminedError where there are options to give."""
    problems, options = list(problems), list(options)
    if options:
        raise UndeterminedError(*options, problems=problems)
    if problems:
        raise ForeignError("; ".join(problems))


@contextlib.contextmanager
def noting(problems: list[str], options: list[str]) -> Iterator[None]:
    """Adds a ForeignError of the block to these lists, which `refuse` then raises as one error."""
    try:
        yield
    except UndeterminedError as error:
        problems += error.problems
        options += error.options
    except ForeignError as error:
        problems.append(str(error))


class FromKeys(NamedTuple):
    """Says where one of our parameters comes from: the peer's keys, and the function of their arrays that gives it."""

    keys: tuple[str, ...]
    read: Callable[..., np.ndarray]


class BlockName(NamedTuple):
    """Holds the parts of a residual block's name: encoder_0_block_1, encoder_1_down, decoder_2_in_0, decoder_0_up."""

    half: str
    level: int
    kind: str
    index: int

    @classmethod
    def named(cls, name: str) -> "BlockName":
        half, level, kind, index = (*name.split("_"), "0")[:4]
        return cls(half, int(level), kind, int(index))


@dataclass(frozen=True)
class Foreign:
    """Holds a peer's network with its parameters.

    shape: (h, w, c) of a sample. kind: that of `BoundModel`, None where the file leaves it open.
    licence: the terms that the peer publishes its weights under.
    constants: those of sigma_data, t_min, t_max and rho that the file has.
    model: its path and preconditioning, by default those of EDM or of a consistency model on the path ve.
    """

    module: nn.Module
    params: Any
    shape: tuple[int, int, int]
    kind: str | None
    licence: str
    constants: Mapping[str, float] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)


def assemble(arrays: Arrays, module: nn.Module, shape: Iterable[int], source: Callable[[Path], FromKeys]) -> Any:
    """Assembles the parameters of `module` for samples of `shape` (h, w, c), float32, each read from its `source`.

    Raises: ForeignError listing the keys that are missing, left over, of another shape than the network's, or hold
            numbers that are not finite.
    """
    try:
        shapes: dict[Path, Any] = dict(flatten_dict(parameter_shapes(module, tuple(shape))))
    except ValueError as error:
        raise ForeignError(f"the network that its keys describe cannot be: {error}") from error
    return filled(arrays, shapes, source)


def filled(arrays: Arrays, shapes: Mapping[Path, Any], source: Callable[[Path], FromKeys]) -> Any:
    """Reads the parameters of these shapes by path, float32, each from its `source`. Raises: as `assemble`."""
    sources = {path: source(path) for path in shapes}
    wanted = [key for path in sources for key in sources[path].keys]
    problems = [f"missing {key}" for key in wanted if key not in arrays]
    problems += [f"left over {key}" for key in sorted(arrays.keys() - set(wanted))]
    params = {}
    for path, (keys, read) in sources.items():
        if any(key not in arrays for key in keys):
            continue
        values = [np.asarray(arrays[key], np.float32) for key in keys]
        problems += [f"not finite {key}" for key in non_finite(dict(zip(keys, values, strict=True)))]
        try:
            params[path] = np.asarray(read(*values), np.float32, order="C")
        except (ValueError, IndexError):
            problems.append(f"{', '.join(keys)} of shape {', '.join(str(array.shape) for array in values)}")
            continue
        if params[path].shape != shapes[path].shape:
            problems.append(f"{', '.join(keys)} is {params[path].shape} in our order of axes, not {shapes[path].shape}")
    if problems:
        shown = "; ".join(problems[:40]) + (f"; and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise ForeignError(f"the file is not of this network: {shown}")
    return unflatten_dict(params)


def write_part(folder: FilePath, config: Mapping[str, Any], arrays: Arrays, *, file: str = WEIGHTS) -> None:
    """Writes a network's folder as diffusers and transformers read it: config.json, and the arrays as .safetensors."""
    require("safetensors", f"writing {folder}")
    from safetensors.numpy import save

    write_atomically(folder / file, save(dict(arrays), {"format": "pt"}))
    write_atomically(folder / "config.json", to_json(config))


def from_torch(array: np.ndarray) -> np.ndarray:
    """Gives a weight in our order of axes: convolutions OIHW -> HWIO, 1×1 ones and matrices (out, in) -> (in, out)."""
    if array.ndim == 4 and array.shape[2:] != (1, 1):
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if array.ndim > 1 else array


def width(arrays: Arrays, key: str, axis: int = 0) -> int:
    """Gives the size of an array that the architecture is read from."""
    if key not in arrays:
        raise ForeignError(f"the file has no {key}, which shows the architecture")
    if np.ndim(arrays[key]) <= axis:
        raise ForeignError(f"{key} is of shape {np.shape(arrays[key])}, which shows no architecture")
    return np.shape(arrays[key])[axis]


def check_shapes_shown(arrays: Arrays, ranks: Mapping[str, int]) -> None:
    """Raise ForeignError listing the keys, of those with their numbers of axes, that are missing or have other axes."""
    problems = [f"missing {key}" for key in ranks if key not in arrays]
    problems += [
        f"{key} of shape {np.shape(arrays[key])}, not of {rank} axes"
        for key, rank in ranks.items()
        if key in arrays and np.ndim(arrays[key]) != rank
    ]
    if problems:
        raise ForeignError(f"the file does not show the architecture: {'; '.join(problems)}")


def head_width(overrides: Mapping[str, Any], widths: Iterable[int]) -> int:
    """Finds the width of an attention head: `head_channels` of the overrides, else 64 as in every released network.

    Args:   widths: channels of the levels that attend.
    Raises: UndeterminedError where 64 is not possible.
    """
    if "head_channels" in overrides:
        return overrides["head_channels"]
    if odd := [w for w in widths if w % 64]:
        raise UndeterminedError(f"--arch-head_channels=N, the width of an attention head, a divisor of {min(odd)}")
    return 64


def multiples(widths: Iterable[int], channels: int) -> tuple[int, ...]:
    """Divides the widths of the levels by that of the first."""
    widths = list(widths)
    if not channels or any(w % channels for w in widths):
        raise ForeignError(f"levels of {widths} channels are no multiples of {channels}")
    return tuple(w // channels for w in widths)
