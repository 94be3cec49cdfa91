"""cmjax: consistency models in JAX. The public API.

Its names need jax, numpy and jaxtyping alone, but for `make_train_step`, `track_averages` and `averages`, which need
optax, `image_grid`, which needs Pillow, and `load` and `train`, which read checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmjax.cli.train import train
    from cmjax.core import (
        couplings,
        curricula,
        derivatives,
        distances,
        editing,
        ema_rates,
        grids,
        guidance,
        likelihood,
        losses,
        map_pairs,
        ode,
        oracles,
        pairs,
        paths,
        preconditioning,
        sampling,
        solvers,
        times,
        typing,
        weightings,
    )
    from cmjax.core.batch import Batch, Times
    from cmjax.core.grids import karras_grid
    from cmjax.core.model import BoundModel, Model
    from cmjax.core.sampling import sample_chain, sample_denoiser, sample_fn
    from cmjax.generation.shown import image_grid
    from cmjax.interop.autoencoder import load_autoencoder
    from cmjax.runs.pipelines import load_pipeline
    from cmjax.runs.trained import load
    from cmjax.training.optimizer import averages, track_averages
    from cmjax.training.plain_step import make_train_step

__version__ = "0.1.0"

__all__ = [
    "Batch", "BoundModel", "Model", "Times", "averages", "couplings", "curricula", "derivatives", "distances",
    "editing", "ema_rates", "grids", "guidance", "image_grid", "karras_grid", "likelihood", "load", "load_autoencoder",
    "load_pipeline", "losses", "make_train_step", "map_pairs", "ode", "oracles", "pairs", "paths", "preconditioning",
    "sample_chain", "sample_denoiser", "sample_fn", "sampling", "solvers", "times", "track_averages",
    "train", "typing", "weightings",
]  # fmt: skip

_FROM = {
    "cli.train": ("train",),
    "core.batch": ("Batch", "Times"),
    "core.grids": ("karras_grid",),
    "core.model": ("BoundModel", "Model"),
    "core.sampling": ("sample_chain", "sample_denoiser", "sample_fn"),
    "generation.shown": ("image_grid",),
    "interop.autoencoder": ("load_autoencoder",),
    "runs.pipelines": ("load_pipeline",),
    "runs.trained": ("load",),  # brings flax with it, and orbax for the checkpoint of a training
    "training.optimizer": ("averages", "track_averages"),
    "training.plain_step": ("make_train_step",),
}
"""The modules of the names that are not modules of `core` themselves."""
_RENAMED = {"FlowMap": "BoundModel", "targets": "ema_rates"}  # earlier names, which still work


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line answers before jax is imported."""
    name = _RENAMED.get(name, name)
    if name not in __all__:
        raise AttributeError(f"module 'cmjax' has no attribute {name!r}")
    for module, names in _FROM.items():
        if name in names:
            value: Any = getattr(importlib.import_module(f"cmjax.{module}"), name)
            break
    else:
        value = importlib.import_module(f"cmjax.core.{name}")
    globals()[name] = value  # Python asks here only for names that the module lacks: the next use is as fast as any
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
