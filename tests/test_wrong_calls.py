"""Calls of the library that cannot be right end in one line with the argument, its value and what is allowed."""

import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import distances, losses, paths, weightings
from tests import wrong_calls
from tests.test_in_other_code import CALLS, ON, W

WORDS = {
    "noise of one sample": "noise must have the shape of x0, (4, 8, 8, 1), got (1, 8, 8, 1)",
    "noise without channels": "noise must have the shape of x0",
    "pixels of 8 bits in a loss": "x0 must be floats, images in [-1, 1]: x / 127.5 - 1 of 8-bit pixels, got uint8",
    "pixels of 8 bits in a flow map": "x must be floats",
    "pixels of 8 bits in an edit": "images must be floats",
    "t of one sample": "times.t must be of the shape (4,), one for each sample, got (1,)",
    "t a scalar": "times.t must be of the shape (4,)",
    "t with an axis more": "times.t must be of the shape (4,)",
    "r above t": "times.r must be at most times.t, got r=0.9, t=0.8",
    "r at t": "times.r must be below times.t, got r=0.9, t=0.9",
    "s above t": "times.s must be at most times.t, got s=0.6, t=0.5",
    "t after the path's end": "times.t must lie in [0, 1], got 1.5",
    "t below 0": "times.t must be finite numbers of at least 0, got -1",
    "t no number": "times.t must be finite numbers of at least 0, got nan",
    "labels of fractions": "label must be whole numbers from 0, or -1 for no class, got float32",
    "labels below -1": "label must be whole numbers from 0, or -1 for no class, got -3",
    "labels of fewer samples": "label must be a scalar or of the shape (4,), one for each sample, got (3,)",
    "a label beyond the classes": "label must be whole numbers from 0 to 2, or -1 for no class, got 99",
    "a label beyond the classes, in sampling": "got 3",
    "no label, of a model that has always had one": "label must be a class, got -1: the model never learned to go",
    "a label of a fraction": "got float32",
    "labels as one-hot rows": "label must be whole numbers",
    "the key of a loss a number": "key must be a key, as of jax.random.key(0), got 0 of the type int",
    "a network of another shape": "the network's output must have the shape of x, (4, 8, 8, 1), got (4, 8, 8)",
    "a network that would broadcast": "the network's output must have the shape of x",
    "a path that was not called": "such as paths.ve or paths.trig(sigma_data=0.5), got the function trig, which makes",
    "a path's name": "path must be a path, such as paths.ve or paths.trig(sigma_data=0.5), got 've'",
    "a path that was not called, in sampling": "got the function vp, which makes one",
    "times equal": "times must descend, got 80, 80",
    "times no numbers": "times must descend, got nan",
    "a time below 0": "times must lie in [0.002, 80], got -80",
    "a time below t_min": "times must lie in [0.002, 80], got 80, 0.0001",
    "a time above t_max": "times must lie in [0.002, 80], got 200, 1",
    "a solver's last time 0": "times must lie in [0.002, 80], got 80, 0",
    "a solver's time above t_max": "times must lie in [0.002, 80], got 1e+06, 1",
    "times of an edit above t_max": "times must lie in [0.002, 80], got 800, 8",
    "a flow map's t at 0": "t must lie in [0.002, 80], got 0",
    "a flow map's t above t_max": "t must lie in [0.002, 80], got 81",
    "a flow map's t of 3 samples": "t must be a scalar or of the shape (4,), one for each sample, got (3,)",
    "a flow map's x with channels first": "x must be of the shape (b, 8, 8, 1), got (4, 1, 8, 8)",
    "a flow map's x of one image": "x must be of the shape (b, 8, 8, 1), got (8, 8, 1)",
    "fewer noises": "noises must be 3 or more, each of the shape (4, 8, 8, 1), got 1",
    "noises that would broadcast": "each of noises must have the shape of the samples",
    "fewer noises for a solver": "noises must be 2 or more",
    "a start of one sample": "start must have the shape of the samples, (4, 8, 8, 1), got (1, 8, 8, 1)",
    "the key a number": "key must be a key, as of jax.random.key(0), or 4, one for each sample, got 0 of the type int",
    "keys of 3 samples": "key must be a key, as of jax.random.key(0), or 4, one for each sample, got keys of the shape",
    "old keys of 3 samples": "key must be a key",
    "a key of other numbers": "got float32 numbers of the shape (2,)",
    "a shape that is a number": "shape must be that of the samples, such as (16, 32, 32, 3), got 4",
    "a batch size as a fraction's": "fraction=0.5 of the batch needs the batch size as a number",
    **{name: "times must descend, got 0" for name in wrong_calls.CALLS if name.endswith(("ascend", "as an array"))},
}


@cache
def raised():
    """All calls in one process, without the checks of signatures that tests run under."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.wrong_calls"], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", wrong_calls.CALLS)
def test_a_wrong_call_names_the_argument_the_value_and_what_is_allowed(name):
    kind, message = raised()[name]
    assert kind in ("ValueError", "TypeError")
    assert WORDS[name] in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["ict", "ct", "ect", "sct", "multistep_ct", "cd", "tcm", "pd", "imf", "alphaflow"])
def test_times_are_not_rounded_to_the_dtype_of_the_data(name):
    """Neighbouring times, weakly typed as `jnp.full` makes them, are told apart."""
    on, choices, conditions = CALLS[name]
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 6))
    times = cmjax.Times(jnp.full(4, 0.9), jnp.full(4, 0.899), jnp.full(4, 0.5))
    if name == "tcm":
        choices = {**choices, "boundary": 0.5}
    loss = partial(getattr(losses, name), ON[on], W, None, **choices)
    rounded = [x.astype(jnp.bfloat16) for x in (x0, noise)]
    half = loss(cmjax.Batch(*rounded, times, conditions))
    single = loss(cmjax.Batch(*(x.astype(jnp.float32) for x in rounded), times, conditions))
    np.testing.assert_allclose(half, single, rtol=1e-5)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_outputs_have_the_dtype_of_the_data(dtype):
    x = jnp.ones((4, 6), dtype)
    for model in (ON["ve"], losses.consistency.with_boundary(ON["ve"]), paths.carry(ON["ve"], paths.ve, paths.linear)):
        assert model(W, x, 0.9).dtype == dtype
    moved = losses.consistency.moved_to(ON["ve"], paths.ve, 0.5)
    assert moved(W, x, 0.9).dtype == dtype
    images, operator = jnp.ones((2, 4, 4, 3), dtype), cmjax.editing.colorization()
    edited = cmjax.editing.edit(lambda x, t: x / 2, jax.random.key(0), images, operator, times=(80.0, 0.8), t_min=0.002)
    assert edited.dtype == dtype
    velocity = cmjax.ode.ode_velocity(partial(ON["ve"], W), paths.ve)
    assert cmjax.ode.solve(velocity, x, jnp.array([0.9, 0.899]), ode_step=cmjax.ode.heun_step).dtype == dtype


def test_float64_stays_float64(x64):
    x = jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
    assert ON["ve"](W.astype(jnp.float64), x, 0.9).dtype == jnp.float64
    times = cmjax.Times(jnp.full(4, 0.9, jnp.float64), jnp.full(4, 0.899, jnp.float64))
    choices = {"distance": distances.l2, "weight": weightings.uniform}
    loss = losses.ct(ON["ve"], W.astype(jnp.float64), None, cmjax.Batch(x, x, times), **choices)
    assert loss.dtype == jnp.float64


def test_a_model_and_the_library_are_shown_in_a_few_words():
    assert set(dir(cmjax)) == {"__version__", *cmjax.__all__}
    flow_map = cmjax.BoundModel({"w": W}, ON["trig"], (8, 8, 3), 0.0, 1.5, "consistency", ON["trig"].path)
    assert repr(flow_map) == (
        "BoundModel(kind='consistency', shape=(8, 8, 3), times=[0, 1.5], path=paths.trig(sigma_data=0.5), parameters=3)"
    )
    assert repr(paths.ddpm()) == "paths.ddpm(schedule='linear', beta_start=0.0001, beta_end=0.02, steps=1000)"
    assert repr([paths.ve, paths.linear, paths.vp()]) == "[paths.ve, paths.linear, paths.vp(beta_min=0.1, beta_max=20)]"
