"""Which noise goes with which clean sample: a permutation within a class, and none at small times."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core import paths
from cmjax.core.couplings import exchanged, minibatch_ot
from cmjax.data.batches import batch_shapes
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.train_step import train_step_of
from cmjax.system.mesh import make_mesh
from cmjax.training.step import state_shapes, trace_train_step
from configs import digits_cd, digits_ct, digits_edm, digits_pd, digits_sct

DATA, NOISE = np.random.default_rng(0).standard_normal((2, 64, 4, 4, 1), np.float32)
LABELS = jnp.arange(64) % 3
LARGE = jnp.full(64, 80.0)


def sum_of_squares(x0, noise):
    return float(np.sum((np.asarray(x0) - np.asarray(noise)) ** 2))


def coupled(t=LARGE, label=None, path=paths.ve, **changes):
    couple = jax.jit(lambda x0, noise: minibatch_ot(x0, noise, t, label, path=path, **changes))
    return np.asarray(couple(DATA, NOISE))


def test_the_sum_comes_near_to_the_least():
    costs = -DATA.reshape(64, -1) @ NOISE.reshape(64, -1).T
    least = costs[linear_sum_assignment(costs)].sum()
    sums = {}
    for sweeps in (1, 2, 5):
        columns = np.asarray(exchanged(jnp.asarray(costs), jnp.zeros(64, int), sweeps))
        assert sorted(columns) == list(range(64))
        sums[sweeps] = costs[np.arange(64), columns].sum()
    assert least <= sums[5] <= sums[2] <= sums[1] < np.trace(costs)
    assert sums[2] < 0.85 * least  # both are negative
    assert sum_of_squares(DATA, coupled()) == pytest.approx(
        sum_of_squares(DATA, NOISE) + 2 * (sums[2] - np.trace(costs)), rel=1e-5
    )


def test_noise_is_exchanged_within_a_class_alone():
    noise = coupled(label=LABELS)
    for label in range(3):
        mine = np.asarray(LABELS) == label
        assert not np.array_equal(noise[mine], NOISE[mine])
        assert np.array_equal(np.sort(noise[mine], axis=0), np.sort(NOISE[mine], axis=0))


@pytest.mark.parametrize(("path", "low", "high"), [(paths.ve, 0.5, 2.0), (paths.linear, 0.3, 0.7)])
def test_small_noise_levels_keep_independent_noise(path, low, high):
    t = jnp.where(jnp.arange(64) % 2 == 0, low, high)
    noise, everywhere = coupled(t=t, path=path, above=1.0), coupled(t=t, path=path)
    assert np.array_equal(noise[::2], NOISE[::2])
    assert np.array_equal(noise[1::2], everywhere[1::2])
    assert not np.array_equal(everywhere[::2], NOISE[::2])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("minibatch_ot(sweeps=0)", "config.objective.coupling=.*sweeps must be at least 1"),
        ("minibatch_ot(above=-1.0)", "config.objective.coupling=.*above must be at least 0"),
        ("minibatch_ot(label=1)", "config.objective.coupling=.*takes sweeps, above, not label"),
        ("hungarian", "config.objective.coupling=.*must be one of independent, minibatch_ot"),
    ],
)
def test_a_wrong_coupling_is_named(written, message):
    config = digits_ct.get_config()
    config.objective.coupling = written
    with pytest.raises(ConfigError, match=message):
        read_run(config.to_dict())


@pytest.mark.parametrize("name", ["denoising", "sct", "cd", "pd"])
def test_what_needs_independent_noise_refuses_another(name):
    recipe = {"denoising": digits_edm, "sct": digits_sct, "cd": digits_cd, "pd": digits_pd}[name].get_config()
    recipe.objective.name = {"pd": "progressive"}.get(name, name)  # which older runs have recorded
    recipe.objective.coupling = "minibatch_ot"
    with pytest.raises(ConfigError, match=f"coupling=.*must be independent: config.objective.name='{name}'"):
        read_run(recipe.to_dict())


@pytest.mark.parametrize("parts", [1, 2])
def test_devices_exchange_nothing_in_the_rounds(parts):
    config = digits_ct.get_config()
    config.net.width, config.net.depth, config.grad_accumulation, config.batch_size = 16, 1, parts, 24
    run = read_run(config.to_dict())
    mesh, model = make_mesh(), run.make_model(None)
    state = state_shapes(parameter_shapes(model.module, (8, 8, 1)), run.optimizer)
    batch = batch_shapes((8, 8, 1), np.float32, None, run.batch_size)
    text = (
        trace_train_step(train_step_of(run, model, None, mesh), state, {}, batch, mesh).lower().compile().as_text()
        or ""
    )
    loops = re.findall(r"body=%?([\w.-]+)", text)
    bodies = [text.partition(f"%{loop} (")[2].partition("\n}")[0] for loop in loops]
    assert any("gather" in body for body in bodies)
    assert not any(kind in body for body in bodies for kind in ("all-gather", "all-reduce", "collective-permute"))
