"""cmjax: consistency models in JAX. The public API; `import cmjax` needs jax, numpy and jaxtyping alone."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cmjax.core import (
    curricula,
    distances,
    editing,
    grids,
    guidance,
    likelihood,
    losses,
    ode,
    oracles,
    pairs,
    paths,
    preconditioning,
    sampling,
    solvers,
    targets,
    times,
    typing,
    weightings,
)
from cmjax.core.batch import Batch, Times
from cmjax.core.grids import karras_grid
from cmjax.core.model import Model
from cmjax.core.sampling import FlowMap, sample_chain, sample_denoiser, sample_fn

if TYPE_CHECKING:
    from cmjax.runs.trained import load

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "FlowMap",
    "Model",
    "Times",
    "curricula",
    "distances",
    "editing",
    "grids",
    "guidance",
    "karras_grid",
    "likelihood",
    "load",
    "losses",
    "ode",
    "oracles",
    "pairs",
    "paths",
    "preconditioning",
    "sample_chain",
    "sample_denoiser",
    "sample_fn",
    "sampling",
    "solvers",
    "targets",
    "times",
    "typing",
    "weightings",
]

for _name, _module in list(globals().items()):  # so that `import cmjax.paths` works as `from cmjax import paths` does
    if isinstance(_module, ModuleType) and _module.__name__ == f"cmjax.core.{_name}":
        sys.modules[f"cmjax.{_name}"] = _module


def __getattr__(name: str) -> Any:
    if name == "load":  # reads checkpoints, so it brings flax and orbax with it
        from cmjax.runs.trained import load

        return load
    raise AttributeError(f"module 'cmjax' has no attribute {name!r}")
