"""Grids of noise levels, built on the host in float64 with exact ends."""

import numpy as np
from jaxtyping import Float64


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
    grid[0], grid[-1] = t_min, t_max
    return grid
