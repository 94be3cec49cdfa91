"""Trains LoRA: low-rank changes of a network's kernels, W + alpha/rank·down·up.   [Hu et al. 2021, sec. 4.1]"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.core.typing import Params, PRNGKey
from cmjax.nets.adapter import sample_parameter
from cmjax.nets.layers import FanIn

BASE = "base"
"""The parameters that an adapter changes, among what is frozen."""
ENDS = ("down", "up")
"""An adapter's arrays of a kernel (…, in, out): (…, in, rank) and (rank, out)."""


@dataclass(frozen=True)
class Lora:
    """Says which kernels are changed, and how.

    targets: ends of the names of layers, as diffusers and peft write them: to_q, to_out.0, ff.net.2.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def shapes(self, params: Params) -> Params:
        """Gives the shapes of an adapter of a network with parameters, or shapes of parameters, like these.

        Raises: ValueError where a target is no layer of the network.
        """
        flat: dict[Any, Any] = dict(flatten_dict(params))
        chosen = {target: [path for path in flat if self._is_of(path, target)] for target in self.targets}
        if absent := [target for target, paths in chosen.items() if not paths]:
            raise ValueError(f"the network has no layer {', '.join(absent)}")
        shapes: dict[tuple[str, ...], jax.ShapeDtypeStruct] = {}
        for path in dict.fromkeys(path for paths in chosen.values() for path in paths):
            *before, width, out = flat[path].shape
            for end, shape in zip(ENDS, ((*before, width, self.rank), (self.rank, out)), strict=True):
                shapes[*path[:-1], end] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return unflatten_dict(shapes)

    @staticmethod
    def _is_of(path: Sequence[str], target: str) -> bool:
        end = "_" + re.sub(r"\W", "_", target)
        return path[-1] == "kernel" and ("_" + "_".join(path[:-1])).endswith(end)

    def init(self, key: PRNGKey, params: Params) -> Params:
        """Makes a fresh adapter, host arrays, which changes nothing: up is zero, and down as PyTorch starts a layer."""
        fresh: dict[tuple[str, ...], Any] = {}
        leaf: Any
        for path, leaf in flatten_dict(self.shapes(params)).items():
            up = path[-1] == "up"
            fresh[path] = np.zeros(leaf.shape, leaf.dtype) if up else sample_parameter(FanIn(), key, path, leaf)
        return unflatten_dict(fresh)

    def merged(self, params: Params, adapter: Params) -> Params:
        """Adds the changes of an adapter to the parameters."""
        flat = dict(flatten_dict(params))
        for path, (down, up) in self.layers(adapter):
            flat[path] = flat[path] + self.alpha / self.rank * (down @ up)
        return unflatten_dict(flat)

    def layers(self, adapter: Params) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
        """Yields the path of each changed kernel, and the adapter's arrays for it."""
        flat = flatten_dict(adapter)
        for path in flat:
            if path[-1] == "down":
                yield (*path[:-1], "kernel"), (flat[path], flat[*path[:-1], "up"])
