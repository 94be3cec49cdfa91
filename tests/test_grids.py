"""The Karras grid: exact ends, even spacing in t^(1/rho), the peers' numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmjax.core.grids import LOWEST, karras_grid, path_grid
from cmjax.core.paths import linear, trig, ve, vp


@given(n=st.integers(2, 400), t_min=st.floats(1e-4, 1), ratio=st.floats(2, 1e5), rho=st.floats(1, 12))
def test_ends_are_exact_and_spacing_is_even_in_the_root(n, t_min, ratio, rho):
    t_max = t_min * ratio
    grid = karras_grid(n, t_min=t_min, t_max=t_max, rho=rho)
    assert (len(grid), grid.dtype, grid[0], grid[-1]) == (n, np.float64, t_min, t_max)
    gaps = np.diff(grid ** (1 / rho))
    assert np.all(np.diff(grid) > 0)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-8)


@pytest.mark.parametrize("n", [18, 40, 201])
def test_grid_is_the_peers(openai, n):
    grid = karras_grid(n, t_min=0.002, t_max=80.0, rho=7.0)
    np.testing.assert_allclose(grid[::-1], openai[f"karras_{n}"][:-1], rtol=1e-12)


def test_grid_is_edms(edm):
    np.testing.assert_allclose(
        karras_grid(18, t_min=0.002, t_max=80.0, rho=7.0)[::-1], edm["t_steps_18"][:-1], rtol=1e-12
    )


GOOD = {"n": 5, "t_min": 0.1, "t_max": 2.0, "rho": 7.0}


@pytest.mark.parametrize(
    "wrong", [{"n": 1}, {"t_min": 0.0}, {"t_min": -1.0}, {"t_max": 0.1}, {"rho": 0.5}, {"t_min": float("nan")}], ids=str
)
def test_errors_name_the_argument(wrong):
    arguments = {**GOOD, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        karras_grid(arguments.pop("n"), **arguments)


def test_a_paths_grid():
    settings = {"t_min": 0.002, "t_max": 80.0, "rho": 7.0}
    np.testing.assert_array_equal(path_grid(18, path=ve, **settings), karras_grid(18, **settings))
    for path in (linear, vp()):
        np.testing.assert_array_equal(path_grid(5, path=path, t_min=0.0, t_max=1.0, rho=7.0), [0, 0.25, 0.5, 0.75, 1])
    path, t_max = trig(sigma_data=0.5), np.arctan(160)
    for t_min in (0.0, np.arctan(LOWEST / 0.5)):
        grid = path_grid(18, path=path, t_min=t_min, t_max=t_max, rho=7.0)
        assert (grid[0], grid[-1]) == (t_min, t_max)
        levels = 0.5 * np.tan(grid)
        np.testing.assert_allclose(levels[1:], karras_grid(18, **settings)[1:], rtol=1e-3)
