"""cmjax: consistency models in JAX. The public API; what it gives needs jax, numpy and jaxtyping alone."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmjax.core import (
        couplings,
        curricula,
        derivatives,
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
    from cmjax.runs.trained import load

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "FlowMap",
    "Model",
    "Times",
    "couplings",
    "curricula",
    "derivatives",
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

_FROM = {
    "Batch": "core.batch",
    "FlowMap": "core.sampling",
    "Model": "core.model",
    "Times": "core.batch",
    "karras_grid": "core.grids",
    "load": "runs.trained",  # reads checkpoints, so it brings flax and orbax with it
    "sample_chain": "core.sampling",
    "sample_denoiser": "core.sampling",
    "sample_fn": "core.sampling",
}
"""The modules of the names that are not modules of `core` themselves."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: the command line answers before jax is there."""
    if name not in __all__:
        raise AttributeError(f"module 'cmjax' has no attribute {name!r}")
    if name in _FROM:
        value: Any = getattr(importlib.import_module(f"cmjax.{_FROM[name]}"), name)
    else:
        value = importlib.import_module(f"cmjax.core.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]


class _Finder:
    """Makes `import cmjax.paths` give what `from cmjax import paths` does: the module cmjax.core.paths."""

    @classmethod
    def find_spec(cls, name: str, *_: Any) -> ModuleSpec | None:
        package, _dot, module = name.rpartition(".")
        known = package == "cmjax" and module in set(__all__) - set(_FROM)
        return ModuleSpec(name, cls) if known else None  # type: ignore

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"cmjax.core.{spec.name.removeprefix('cmjax.')}")
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state  # its own, which importing has just replaced


sys.meta_path.append(_Finder)  # type: ignore
