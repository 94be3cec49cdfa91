"""Grids of noise levels, built on the host in float64 with exact ends, and bins of levels."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from cmjax.core.paths import Path, ve
from cmjax.ranges import Count, Positive

LOWEST = 0.002
"""The noise level that replaces a lower one, such as 0, in the spacing of a grid."""
HIGHEST = 80.0
"""The noise level up to which bins reach on a path that ends in noise alone."""


def karras_grid(n: int, *, t_min: float, t_max: float, rho: float) -> Float64[np.ndarray, " n"]:
    """Noise levels t_1=t_min < … < t_n=t_max, evenly spaced in t^(1/rho).   [Karras et al. 2022, eq. 5]

    Args:    n: number of points, >= 2. t_min, t_max: noise std in data units, 0 < t_min < t_max. rho: >= 1; larger
             puts more points near t_min.
    Returns: (n,) float64, ascending, both ends exact.
    Raises:  ValueError naming the argument that is out of range.

    >>> karras_grid(3, t_min=0.002, t_max=80.0, rho=7.0).round(3).tolist()
    [0.002, 2.515, 80.0]
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if not 0 < t_min < t_max:
        raise ValueError(f"t_min and t_max must satisfy 0 < t_min < t_max, got {t_min} and {t_max}")
    if rho < 1:
        raise ValueError(f"rho must be at least 1, got {rho}")
    root = np.linspace(t_min ** (1 / rho), t_max ** (1 / rho), n)
    grid = root**rho
    # The power of a root is rounded, and consistency functions are the identity at t_min itself.
    grid[0], grid[-1] = t_min, t_max
    return grid


def path_grid(n: int, *, path: Path, t_min: float, t_max: float, rho: float) -> Float64[np.ndarray, " n"]:
    """Gives the times of a sampler's steps, from t_min to t_max.

    Where the path is `spaced_by_level` they are the Karras grid of noise levels, otherwise evenly spaced in t.

    Returns: (n,) float64, ascending, both ends exact. Raises: ValueError as in `karras_grid`.
    """
    # in float64 to the end: the general case below asks the path for its levels, in JAX's precision
    if path is ve:
        return karras_grid(n, t_min=t_min, t_max=t_max, rho=rho)
    if not path.spaced_by_level:
        return np.linspace(t_min, t_max, n)
    low, high = (float(path.noise_level(t)) for t in (t_min, t_max))
    levels = karras_grid(n, t_min=max(low, LOWEST), t_max=high, rho=rho)
    grid = np.array(path.time_at(jnp.asarray(levels, float)), np.float64)  # a copy, for a view cannot be written to
    grid[0], grid[-1] = t_min, t_max
    return grid


def logarithmic(*, steps: Count, t_min: float, t_max: float) -> Float64[np.ndarray, " n"]:
    """Times from t_min to t_max, evenly spaced in ln t, (steps + 1,) float64, ascending.

    Raises: ValueError where t_min is 0.
    """
    if not 0 < t_min < t_max:
        raise ValueError(f"t_min and t_max must satisfy 0 < t_min < t_max, got {t_min} and {t_max}")
    return np.geomspace(t_min, t_max, steps + 1)


def shifted(*, steps: Count, t_min: float, t_max: float, shift: Positive = 1.0) -> Float64[np.ndarray, " n"]:
    """Times t = k·u/(1 + (k − 1)·u) with u evenly spaced, from t_min to t_max: a `shift` k above 1 crowds them at 1.

    [Esser et al. 2024, sec. 5.3.2]   Returns: (steps + 1,) float64, ascending, both ends exact.
    """
    # the inverse of the shift, so that the ends come out where they were
    low, high = (t / (shift - (shift - 1) * t) for t in (t_min, t_max))
    even = np.linspace(low, high, steps + 1)
    grid = shift * even / (1 + (shift - 1) * even)
    grid[0], grid[-1] = t_min, t_max
    return grid


def level_range(path: Path, t_min: float, t_max: float) -> tuple[float, float]:
    """Gives the noise levels at both times: LOWEST for those below it, HIGHEST where there is hardly any signal."""
    # to six digits, which is what float32 has: ends as the recipe writes them
    low, high = (float(f"{path.noise_level(jnp.asarray(t)):.6g}") for t in (t_min, t_max))
    # where a path ends in noise alone, the level is infinite, or by rounding huge or negative: no bins reach that far
    return max(low, LOWEST), high if 0 < high < 1000 else HIGHEST


def level_edges(bins: int, *, path: Path, t_min: float, t_max: float) -> Float64[np.ndarray, " n"]:
    """Spaces bins + 1 noise levels evenly in their logarithm over `level_range`: the edges of the bins."""
    return np.geomspace(*level_range(path, t_min, t_max), bins + 1)


def bin_of(levels: Float[Array, " b"], edges: Float64[np.ndarray, " n"]) -> Int[Array, " b"]:
    """Finds the bin of each noise level, 0 … len(edges) − 2; levels beyond the ends belong to the bins there."""
    return jnp.searchsorted(jnp.asarray(edges[1:-1]), levels, side="right")


def ddim_steps(n: int, *, steps: int = 1000, offset: int = 0, spacing: str = "leading") -> Int[np.ndarray, " n"]:
    """The steps of a discrete diffusion model at which DDIM evaluates it, descending; on `paths.ddpm` times are
    step/steps.

    Args:    n: how many, at most `steps`. offset: added to each of the spacing "leading", as Stable Diffusion has 1.
             spacing: "leading", "trailing" or "linspace": where the last interval, the first, or neither is left out.
    Raises:  ValueError naming the argument that is out of range.

    >>> ddim_steps(4, offset=1).tolist(), ddim_steps(4, spacing="trailing").tolist()
    ([751, 501, 251, 1], [999, 749, 499, 249])
    """
    if not 1 <= n <= steps:
        raise ValueError(f"n must lie in 1 … {steps}, got {n}")
    if spacing == "leading":
        grid = np.arange(n)[::-1] * (steps // n) + offset
    elif spacing == "trailing":
        # `arange` with a step that is no whole number may give one entry too many
        grid = np.round(np.arange(steps, 0, -steps / n))[:n].astype(int) - 1
    elif spacing == "linspace":
        grid = np.round(np.linspace(0, steps - 1, n))[::-1].astype(int)
    else:
        raise ValueError(f"spacing must be leading, trailing or linspace, got {spacing!r}")
    # an offset may lead beyond the table's last step
    return np.minimum(grid, steps - 1)


def lcm_steps(n: int, *, original: int = 50, steps: int = 1000, strength: float = 1.0) -> Int[np.ndarray, " n"]:
    """The steps at which a latent consistency model is evaluated, descending: n of the `original` that it learned.

    Args:    strength: of an edit: the grid has its lowest int(original·strength) steps alone, of which n are taken.
    Raises:  ValueError naming the argument that is out of range.
    [Luo et al. 2023, latent consistency models, the released code]

    >>> lcm_steps(4).tolist(), lcm_steps(4, strength=0.5).tolist()
    ([999, 759, 499, 259], [499, 379, 259, 139])
    """
    if not 1 <= original <= steps or not 0 < strength <= 1:
        raise ValueError(f"original must lie in 1 … {steps} and strength in (0, 1], got {original} and {strength}")
    # counted from 1, less one: the times of training, 19, 39, … for 50 of 1000 steps
    grid = np.arange(int(original * strength), 0, -1) * (steps // original) - 1
    if not len(grid):
        raise ValueError(f"strength={strength:g} leaves none of {original} steps")
    if not 1 <= n <= len(grid):
        raise ValueError(f"n must lie in 1 … {len(grid)}, the steps of {original} at strength={strength:g}, got {n}")
    return grid[np.floor(np.linspace(0, len(grid), n, endpoint=False)).astype(int)]
