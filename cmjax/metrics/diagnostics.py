"""What a consistency model does along a teacher's trajectories, and which noise levels a loss comes from.

Noise levels are b/a of a path, on which they mean the same as on every other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from cmjax.core.batch import Times
from cmjax.core.grids import LOWEST, karras_grid
from cmjax.core.ode import ode_velocity
from cmjax.core.pairs import PairSampler
from cmjax.core.paths import Path
from cmjax.core.typing import BoundDenoiser, OdeStep, PRNGKey, Samples, Step

HIGHEST = 80.0
"""The noise level up to which bins and trajectories reach on a path that ends in noise alone."""


class ConsistencyErrors(NamedTuple):
    """Mean squares over samples and pixels, for the n times of a trajectory.

    step: of f(x_t, t) − f(x_r, r), r the time after t. end: of f(x_t, t) − the trajectory's end. teacher_end: of
    D(x_t, t) − the end, what the teacher's own estimate is off by.
    """

    step: Float[Array, " m"]
    end: Float[Array, " n"]
    teacher_end: Float[Array, " n"]


def consistency_errors(
    consistency_fn: Callable[[Samples, Array], Samples],
    denoise: BoundDenoiser,
    x: Samples,
    times: Float[Array, " n"],
    *,
    path: Path,
    ode_step: OdeStep,
    to_clean: bool,
) -> ConsistencyErrors:
    """How far f is from constant along the probability-flow ODE of `denoise` from x (b, ...) at times[0].

    Zero throughout for the exact map to the end, on exact trajectories.   [Song et al. 2023, sec. 3, definition]

    Args: consistency_fn: (x, t) -> f(x, t). denoise: (x, t) -> D(x, t), of the same path.
          times: descending, n >= 2, with b(t) > 0; one `ode_step` between neighbours.
          to_clean: the end is D at the last state, the ODE's Euler step to noise level 0, and not that state itself.
    """
    velocity = ode_velocity(denoise, path)

    def look(x, interval):
        t, r = interval
        return ode_step(velocity, x, t, r), (consistency_fn(x, t), denoise(x, t))

    last, (estimates, denoised) = jax.lax.scan(look, x, (times[:-1], times[1:]))
    at_last = denoise(last, times[-1])
    estimates = jnp.concatenate([estimates, consistency_fn(last, times[-1])[None]])
    end = at_last if to_clean else last
    return ConsistencyErrors(
        step=_mean_square(estimates[:-1] - estimates[1:]),
        end=_mean_square(estimates - end[None]),
        teacher_end=_mean_square(jnp.concatenate([denoised, at_last[None]]) - end[None]),
    )


def _mean_square(differences: Float[Array, "n b *dims"]) -> Float[Array, " n"]:
    return jnp.mean(differences.reshape(len(differences), -1) ** 2, axis=1)


def level_range(path: Path, t_min: float, t_max: float) -> tuple[float, float]:
    """The noise levels at both times: LOWEST for those below it, HIGHEST where there is hardly anything but noise."""
    # to six digits, which is what float32 has: ends as the recipe writes them
    low, high = (float(f"{path.noise_level(jnp.asarray(t)):.6g}") for t in (t_min, t_max))
    return max(low, LOWEST), high if 0 < high < 1000 else HIGHEST


def level_edges(bins: int, *, path: Path, t_min: float, t_max: float) -> Float64[np.ndarray, " n"]:
    """bins + 1 noise levels, evenly spaced in their logarithm over `level_range`: the edges of the bins."""
    return np.geomspace(*level_range(path, t_min, t_max), bins + 1)


def bin_of(levels: Float[Array, " b"], edges: Float64[np.ndarray, " n"]) -> Int[Array, " b"]:
    """The bin of each noise level, 0 … len(edges) − 2; what lies beyond the ends belongs to the bins there."""
    return jnp.searchsorted(jnp.asarray(edges[1:-1]), levels, side="right")


def trajectory_times(n: int, path: Path, levels: tuple[float, float], *, rho: float) -> Float64[np.ndarray, " n"]:
    """Descending times of `path` at a Karras grid of noise levels between the two."""
    low, high = levels
    return np.asarray(path.time_at(jnp.asarray(karras_grid(n, t_min=low, t_max=high, rho=rho)[::-1])), np.float64)


def times_within(
    times: PairSampler,
    key: PRNGKey,
    batch_size: int,
    step: Step,
    *,
    within: Callable[[Float[Array, " b"]], Bool[Array, " b"]],
    draws: int,
) -> tuple[Times, Bool[Array, " b"], Float[Array, ""]]:
    """For each place of the batch a t that lies `within`, the first of `draws` tries, with the r and s drawn beside it.

    Places keep their own distribution, for objectives that treat the batch's first samples otherwise than the rest.

    Returns: the times, where they were found (b,), and the fraction of all draws within. Elsewhere t lies anywhere.
    """
    tries = jax.vmap(lambda key: times(key, batch_size, step))(jax.random.split(key, draws))
    hits = jax.vmap(within)(tries.t)
    first = jnp.argmax(hits, axis=0)
    chosen = jax.tree.map(lambda drawn: drawn[first, jnp.arange(batch_size)], tries)
    return chosen, jnp.any(hits, axis=0), jnp.mean(hits, dtype=jnp.float32)


def loss_and_gradient_norm(
    losses: Callable[[Any], Float[Array, " b"]], params: Any, counted: Bool[Array, " b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean of losses(params) over the samples that are counted, and the l2 norm of its gradient by `params`."""

    def mean_loss(params):
        return jnp.sum(jnp.where(counted, losses(params), 0)) / jnp.maximum(jnp.sum(counted), 1)

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradient)]
    return loss, jnp.sqrt(sum(squares, jnp.zeros(())))
