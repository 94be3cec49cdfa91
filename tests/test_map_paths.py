"""Flow maps on paths that are not straight: the map's two identities, and its losses at the exact one."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate

from cmjax import Model, Times, losses
from cmjax.core import paths
from cmjax.core.derivatives import central_difference
from cmjax.core.distances import l2
from cmjax.core.losses.flow_maps import velocity_at
from cmjax.core.paths import per_sample
from cmjax.core.preconditioning import ctm, linear_flow, path_flow, trig, trig_flow
from cmjax.core.weightings import inverse_tan_gap, uniform

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
TRIG, VP = paths.trig(sigma_data=0.5), paths.vp()
ON = {
    "trig": (TRIG, partial(trig_flow, sigma_data=0.5)),
    "vp": (VP, partial(path_flow, path=VP, sigma_data=0.5)),
    "linear, turned": (paths.linear, partial(path_flow, path=paths.linear, sigma_data=0.5)),
}
"""A path, and scalings of a flow map on it."""


def model_on(on, variance=exact.VARIANCE, bend=0.0):
    """The model of the exact map, whose network answers with what is wrong by `bend`."""
    path, scalings = ON[on]

    def net(params, scaled, c_noise, *, key=None, c_noise_s, return_weight=False):
        t, s = c_noise, c_noise - c_noise_s
        c = scalings(t, s)
        x = scaled / per_sample(c.c_in, scaled)
        apart = per_sample(s < t, x)
        moved = exact.flow(path, x, t, s, variance) - per_sample(c.c_skip, x) * x
        out = moved / jnp.where(apart, per_sample(c.c_out, x), 1)
        slope = jax.jvp(lambda s: scalings(t, s), (t,), (jnp.ones_like(t),))[1]
        v = path.velocity(x, exact.denoise(path, x, t, variance), t)
        still = (v - per_sample(slope.c_skip, x) * x) / per_sample(slope.c_out, x)
        out = jnp.where(apart, out, still) + exact.moves(params, x, t)
        out = out * per_sample(1 + bend * (c_noise + c_noise_s), x)
        return (out, jnp.zeros_like(t)) if return_weight else out

    return Model(net, path, scalings)


def times_of(count):
    """Where the noise is not nearly all: MeanFlow's targets on these paths have the tangent of the angle between t and
    s, and vary with it."""
    t, *parts = jax.random.uniform(jax.random.key(2), (3, count), jnp.float64, 0.2, 0.7)
    s = t * parts[0]
    return Times(t, s + (t - s) * parts[1], s)


def any_net(params, x, c_noise, *, key=None, c_noise_s):
    return jnp.tanh(2 * x + per_sample(jnp.cos(3 * c_noise + c_noise_s), x))


@pytest.mark.parametrize("on", ON)
def test_every_network_is_still_where_both_times_meet(on):
    path, scalings = ON[on]
    x, t = exact.data(jax.random.key(1), 16), times_of(16).t
    np.testing.assert_allclose(Model(any_net, path, scalings)(None, x, t, t), x, rtol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_two_steps_of_the_exact_map_are_one(on):
    model, (t, r, s), x = model_on(on), times_of(16), exact.data(jax.random.key(1), 16)
    once, twice = model(exact.AT_ZERO, x, t, s), model(exact.AT_ZERO, model(exact.AT_ZERO, x, t, r), r, s)
    np.testing.assert_allclose(twice, once, rtol=1e-12)
    np.testing.assert_allclose(once, exact.flow(ON[on][0], x, t, s), rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_where_both_times_meet_the_map_moves_by_the_velocity(on):
    """That of the ODE, which losses are held to by flow matching where s = t."""
    path, model, t, x = ON[on][0], model_on(on), times_of(16).t, exact.data(jax.random.key(1), 16)
    ours = velocity_at(model, exact.AT_ZERO, None, x, t, {})
    np.testing.assert_allclose(ours, path.velocity(x, exact.denoise(path, x, t), t), rtol=1e-12)


def test_a_path_that_is_turned_is_trigflows():
    t, s = jnp.array([0.3, 0.9, 1.2]), jnp.array([0.3, 0.2, 0.0])
    for ours, theirs in zip(path_flow(t, s, path=TRIG, sigma_data=0.5), trig_flow(t, s, sigma_data=0.5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    for ours, theirs in zip(trig_flow(t, 0 * t, sigma_data=0.5)[:4], trig(t, sigma_data=0.5)[:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    t, s = 10 * t, s + 0.1
    ours, theirs = path_flow(t, s, path=paths.ve, sigma_data=0.5), ctm(t, s, sigma_data=0.5)
    for name in ("c_skip", "c_out", "c_in"):
        sign = -1 if name == "c_out" else 1
        np.testing.assert_allclose(sign * getattr(ours, name), getattr(theirs, name), rtol=1e-12)


L2 = {"distance": l2}
EXACTLY = {"lsd": L2, "psd": L2, "esd": L2, "tvm": L2}


@pytest.mark.parametrize("method", EXACTLY)
@pytest.mark.parametrize("on", ON)
def test_no_sample_has_a_gradient_at_the_exact_map(on, method):
    x0, pair = exact.data(jax.random.key(1), 64), times_of(64)

    def each(bend, params):
        return evaluate(getattr(losses, method), model_on(on, bend=bend), params, KEY, x0, pair, **EXACTLY[method])

    assert np.abs(exact.gradients(partial(each, 0.0))).max() < 1e-9
    assert np.abs(exact.gradients(partial(each, 0.1))).max() > 1e-3


IN_THE_MEAN = {
    "meanflow": L2,
    "imf": L2,
    "tim": {"weight": inverse_tan_gap, "derivative": central_difference(step=1e-4), **L2},
    "soflow": L2,
}
GAP = 1e-4


def in_the_mean(on, method, params, variance):
    count = 30_000
    x0, pair = exact.data(jax.random.key(1), count), times_of(count)
    s = jnp.where(jnp.arange(count) % 2 == 0, pair.t, pair.s)
    pair = Times(pair.t, jnp.maximum(pair.t - GAP, s) if method == "soflow" else (pair.t + s) / 2, s)
    return evaluate(getattr(losses, method), model_on(on, variance), params, KEY, x0, pair, **IN_THE_MEAN[method])


@pytest.mark.parametrize("method", IN_THE_MEAN)
@pytest.mark.parametrize("on", ON)
def test_no_gradient_in_the_mean_at_the_exact_map(on, method):
    """In expectation over data and noise; and there is one at that for data of 1.2 times the variance."""
    right, wrong = exact.standard_errors(partial(in_the_mean, on, method))
    assert right < 4
    assert wrong > 8


def test_on_a_straight_line_tim_is_mean_flow():
    x0, pair = exact.data(jax.random.key(1), 16), times_of(16)
    model = Model(any_net, paths.linear, linear_flow)
    for derivative in (jax.jvp, central_difference(step=0.005)):
        ours, theirs = (
            evaluate(loss, model, None, KEY, x0, pair, derivative=derivative, **choices, **L2)
            for loss, choices in ((losses.tim, {"weight": uniform}), (losses.meanflow, {}))
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_tims_differences_are_of_second_order_along_the_curve():
    x0, pair = exact.data(jax.random.key(1), 16), times_of(16)
    model, seen = Model(any_net, *ON["trig"]), []
    for derivative in (jax.jvp, *(central_difference(step=step) for step in (2e-3, 1e-3))):
        evaluate(
            losses.tim, model, None, KEY, x0, pair, weight=uniform, derivative=derivative,
            distance=lambda x, y: (seen.append(y), l2(x, y))[1],
        )  # fmt: skip
    exactly, coarse, fine = seen
    ratio = jnp.linalg.norm(coarse - exactly) / jnp.linalg.norm(fine - exactly)
    assert float(ratio) == pytest.approx(4, rel=0.05)
