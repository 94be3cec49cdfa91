"""Flow maps between any two times at the exact one: their identities hold in each sample, or in the mean."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate

from cmjax import Model, Times, losses
from cmjax.core.distances import l2
from cmjax.core.losses.tangents import unit_norm
from cmjax.core.paths import linear
from cmjax.core.preconditioning import linear_flow
from cmjax.core.weightings import uniform

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
L2 = {"distance": l2}


def teacher(x, t, **conditions):
    return exact.denoise(linear, x, t)


EXACTLY = {
    "lsd": L2,
    "psd": L2,
    "esd": L2,
    "tvm": L2,
    "ayf": {"teacher": teacher, "normalize": unit_norm},
    "facm": {"teacher": teacher},
}
"""Methods whose targets are those of the exact map in each sample where s < t, or where there is a teacher."""


def times_of(count):
    t, *parts = jax.random.uniform(jax.random.key(2), (3, count), jnp.float64, 0.2, 0.95)
    s = t * parts[0]
    return Times(t, s + (t - s) * parts[1], s)


def bent(bend):
    """The exact mean velocity, and what is wrong by `bend` in t − s and t."""
    exactly = exact.velocity_network()

    def net(params, x, c_noise, *, key=None, c_noise_s, return_weight=False):
        return exactly(params, x, c_noise, c_noise_s=c_noise_s) * (1 + bend * (c_noise_s + c_noise)[:, None])

    return Model(net, linear, linear_flow)


@pytest.mark.parametrize("method", EXACTLY)
def test_no_sample_has_a_gradient_at_the_exact_map(method):
    """And each method sees a map that is wrong."""
    x0, pair = exact.data(jax.random.key(1), 64), times_of(64)

    def each(bend, params):
        return evaluate(getattr(losses, method), bent(bend), params, KEY, x0, pair, **EXACTLY[method])

    assert np.abs(exact.gradients(partial(each, 0.0))).max() < 1e-11
    assert np.abs(exact.gradients(partial(each, 0.1))).max() > 1e-3


IN_THE_MEAN = {
    "soflow": L2,
    "rcgm": {"distance": l2, "weight": uniform, "step": 1e-4, "clip": 1e6},
    "lsd": L2,
    "psd": L2,
    "esd": L2,
    "tvm": L2,
}
GAP = 1e-4


def in_the_mean(method, params, variance):
    count = 120_000
    x0, pair = exact.data(jax.random.key(1), count), times_of(count)
    matched = jnp.arange(count) % 2 == 0
    s = jnp.where(matched, pair.t, pair.s)
    pair = Times(pair.t, jnp.maximum(pair.t - GAP, s) if method == "soflow" else (pair.t + s) / 2, s)
    model = Model(exact.velocity_network(variance), linear, linear_flow)
    return evaluate(getattr(losses, method), model, params, KEY, x0, pair, **IN_THE_MEAN[method])


@pytest.mark.parametrize("method", IN_THE_MEAN)
def test_no_gradient_in_the_mean_at_the_exact_map(method):
    """In expectation over data and noise; and there is one at that for data of 1.2 times the variance."""
    right, wrong = exact.standard_errors(partial(in_the_mean, method))
    assert right < 4
    assert wrong > 20


def slope_of_error(method, choices):
    """How much larger the error of the exact map is at twice the step; 2 for an identity of first order."""

    def largest(step):
        count = 64
        x0, pair = exact.data(jax.random.key(1), count), times_of(count)
        seen = []

        def distance(x, y):
            seen.append(jnp.max(jnp.abs(x - y)))
            return l2(x, y)

        t, _, s = pair
        # the exact velocity takes the place of the sample's: the noise and the data are those that give it
        x = linear.add_noise(x0, jax.random.normal(jax.random.key(3), x0.shape, jnp.float64), t)
        v = exact.mean_velocity(x, t, t)
        start, noise = x - t[:, None] * v, x + (1 - t)[:, None] * v
        pair = Times(t, t - step, s)
        evaluate(
            getattr(losses, method), bent(0.0), exact.AT_ZERO, KEY, start, pair, noise=noise, distance=distance,
            **choices(step),
        )  # fmt: skip
        return float(seen[0] if method == "rcgm" else seen[-1])

    return largest(2e-3) / largest(1e-3)


def test_steps_are_of_first_order():
    """SoFlow's targets miss the exact map by an error that is proportional to their step."""
    assert slope_of_error("soflow", lambda step: {}) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_recursive_steps_are_of_first_order(order):
    ratio = slope_of_error("rcgm", lambda step: {"weight": uniform, "step": step, "order": order})
    assert ratio == pytest.approx(2, rel=0.05)
