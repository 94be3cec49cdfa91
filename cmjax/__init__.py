"""cmjax: consistency models in JAX. The public API; `import cmjax` needs jax, numpy and jaxtyping alone."""

from typing import TYPE_CHECKING, Any

from cmjax.core import (
    curricula,
    distances,
    editing,
    flow_losses,
    grids,
    guidance,
    likelihood,
    losses,
    objectives,
    oracles,
    pairs,
    paths,
    preconditioning,
    samplers,
    sampling,
    solvers,
    tangent_losses,
    tangents,
    times,
    typing,
    weightings,
)
from cmjax.core.grids import karras_grid
from cmjax.core.losses import consistency_distillation_loss, consistency_training_loss, denoising_loss
from cmjax.core.preconditioning import precondition, precondition_flow
from cmjax.core.sampling import FlowMap, sample_chain, sample_denoiser, sample_fn, sample_ode
from cmjax.core.typing import Pair

if TYPE_CHECKING:
    from cmjax.workdir import load

__version__ = "0.1.0"

__all__ = [
    "FlowMap",
    "Pair",
    "consistency_distillation_loss",
    "consistency_training_loss",
    "curricula",
    "denoising_loss",
    "distances",
    "editing",
    "flow_losses",
    "grids",
    "guidance",
    "karras_grid",
    "likelihood",
    "load",
    "losses",
    "objectives",
    "oracles",
    "pairs",
    "paths",
    "precondition",
    "precondition_flow",
    "preconditioning",
    "sample_chain",
    "sample_denoiser",
    "sample_fn",
    "sample_ode",
    "samplers",
    "sampling",
    "solvers",
    "tangent_losses",
    "tangents",
    "times",
    "typing",
    "weightings",
]


def __getattr__(name: str) -> Any:
    if name == "load":  # reads checkpoints, so it brings flax and orbax with it
        from cmjax.workdir import load

        return load
    raise AttributeError(f"module 'cmjax' has no attribute {name!r}")
