"""Which noise goes with which clean sample: exchanges keep the noise Gaussian, classes apart, and small times free."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core import paths
from cmjax.core.couplings import exchanged, minibatch_ot
from configs import digits_ct

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
