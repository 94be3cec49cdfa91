"""Solvers and noise levels as they are written: what they become, and what is said of a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.methods import read_model
from cmjax.config.samples import SOLVERS, SamplingOptions, parse_times, read_solver, times_text
from cmjax.core.grids import karras_grid
from cmjax.core.paths import ve
from configs import digits_ct

CONSTANTS = {"t_min": 0.002, "t_max": 80.0, "rho": 7.0}
MODEL = read_model(digits_ct.get_config().to_dict(), None)
GRID = karras_grid(40, **CONSTANTS)[::-1]


def solver(text):
    return read_solver(Fields({"solver": text}, prefix="--"), ve, 80.0)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "churn"])
def test_every_solver_has_a_plain_name(name):
    assert solver(name)[0] == name


@pytest.mark.parametrize("name", [name for name, row in SOLVERS.items() if row.evaluations])
def test_a_row_says_how_often_the_network_is_evaluated(name):
    text, times = {"churn": "churn(s_churn=10)"}.get(name, name), []

    def counted(x, t):
        times.append(t)
        return x / (1 + t**2)

    with jax.disable_jit():
        solver(text)[1](counted, jnp.ones((1, 2)), jnp.array([8.0, 2.0, 1.0, 0.5]), lambda i: jnp.ones((1, 2)), path=ve)
    assert SamplingOptions(solver_name=text).evaluations("denoiser", 4) == len(times)


def test_a_solver_has_its_parameters_bound():
    name, churn = solver("churn(s_churn=10, s_max=50.0)")
    assert (name, churn.keywords["s_churn"], churn.keywords["s_max"]) == ("churn(s_churn=10, s_max=50.0)", 10, 50.0)
    assert solver("tsit5(rtol=1e-3)")[1].keywords["rtol"] == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("huen", r"--solver='huen': must be one of ddim, euler, heun, .*did you mean heun"),
        ("churn", r"churn needs s_churn: write churn\(s_churn=…\)"),
        ("churn(s_churn=-1)", "s_churn must be at least 0, not -1"),
        ("churn(s_churn=1, s_min=2, s_max=1)", "s_max must be at least s_min=2, got 1"),
        ("churn(s_churn='much')", "--solver="),
        ("churn(s_churn=1, path=3)", "takes s_churn, s_min, s_max, s_noise, not path"),
        ("heun(rho=3)", "heun takes no parameters, not rho"),
        ("midpoint(rho=0)", "rho must be at least 1, not 0"),
        ("tsit5(rtol=-1.0)", "rtol must be at least 1e-12, not -1"),
    ],
)
def test_a_wrong_solver_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        solver(text)


def test_a_solver_whose_library_is_missing_says_which(monkeypatch):
    monkeypatch.setattr("cmjax.config.samples.is_installed", lambda library: False)
    with pytest.raises(ConfigError, match=r"needs diffrax: pip install 'cmjax\[ode\]'"):
        solver("tsit5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80,0.8", (80.0, 0.8)),
        ("80", (80.0,)),
        ("idx:0,22,39/40", (80.0, GRID[22])),
        ("idx:0,22/40", (80.0, GRID[22])),
        ("idx:0/40", (80.0,)),
        ("idx:0,10,20,30,39/40", (80.0, *GRID[[10, 20, 30]])),
    ],
)
def test_times_are_levels_or_places(text, expected):
    np.testing.assert_array_equal(parse_times(text, MODEL), expected)


@pytest.mark.parametrize(
    ("times", "text"),
    [(80, "80"), (0.8, "0.8"), ((80.0, 0.8), "80.0,0.8"), (np.array([2, 1]), "2,1"), ("auto:2", "auto:2")],
)
def test_times_from_python_are_numbers(times, text):
    assert times_text(times) == text
    assert times_text(None) is None


def test_places_are_the_levels_that_the_releases_name():
    """1.382 and 0.585 for the second step of CD on ImageNet-64 and CIFAR-10."""
    assert parse_times("idx:0,22,39/40", MODEL)[1] == pytest.approx(1.382, abs=1e-3)
    assert parse_times("idx:0,11,17/18", MODEL)[1] == pytest.approx(0.585, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idx:0,22,40/40", "times=idx:0,22,40/40: a grid of 40 points has the places 0 to 39, not 40"),
        ("idx:22,0/40", "places must ascend"),
        ("idx:0,22", "must be places on a grid and its size, as idx:0,22,39/40"),
        ("idx:0/1", "a grid has at least 2 points, not 1"),
        ("80,x", "must be numbers, as 80,0.8, or places"),
        ("0.8,80", "times must descend"),
        ("800", "times must lie in"),
    ],
)
def test_wrong_times_are_named(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_times(text, MODEL)


def test_solvers_of_the_command_line_draw():
    x = jnp.ones((2, 3))
    for text in ("euler", "heun", "midpoint(rho=3)", "dpmpp_2m", "dpmpp_3m", "churn(s_churn=10)", "ancestral"):
        samples = solver(text)[1](lambda x, t: x / (1 + t**2), x, jnp.array([2.0, 1.0, 0.5]), lambda i: x, path=ve)
        assert np.all(np.isfinite(samples))
