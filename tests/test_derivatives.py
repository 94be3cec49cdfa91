"""The derivative by differences is the exact one to second order, in every loss that takes it."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax import Model, losses
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core.derivatives import central_difference, within
from cmjax.core.distances import l2
from cmjax.core.losses.alpha_flow import inverse_alpha
from cmjax.core.pairs import Times
from cmjax.core.paths import linear, per_sample, trig
from cmjax.core.preconditioning import linear_flow
from cmjax.core.preconditioning import trig as trig_scalings
from configs import common, digits_meanflow, digits_scm_ct

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
W = np.array([0.7, 0.9, 0.3])


def test_the_error_is_of_second_order():
    def function(x, t):
        return jnp.sin(x) * t**3, x[:1]

    x, t, d = jnp.array([0.3, 0.9]), jnp.array(0.7), jnp.array([1.2, -0.4])
    out, slope, aux = jax.jvp(function, (x, t), (d, jnp.array(1.0)), has_aux=True)
    errors = []
    for step in (0.02, 0.01):
        found = central_difference(step=step)(function, (x, t), (d, jnp.array(1.0)), has_aux=True)
        np.testing.assert_array_equal(found[0], out)
        np.testing.assert_array_equal(found[2], aux)
        errors.append(np.abs(found[1] - slope).max())
    assert 3.9 < errors[0] / errors[1] < 4.1
    alone = central_difference(step=0.01)(lambda x: function(x, t)[0], (x,), (d,))
    np.testing.assert_allclose(alone[1], jnp.cos(x) * d * t**3, rtol=1e-4)


@given(
    t=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    gap=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    step=st.sampled_from([0.3, 0.005, 0.001]),
)
@settings(max_examples=60, deadline=None)
def test_no_flow_map_is_evaluated_at_times_outside_of_s_and_one(t, gap, step):
    """And the derivative of what is linear in t and x is exact, where s < t or t < 1."""
    with jax.enable_x64(False):
        t = jnp.asarray(t, jnp.float32)
        s, seen = t * jnp.asarray(gap, jnp.float32), []

        def function(x, time):
            seen.append(time)
            return 3 * x + 2 * per_sample(time, x)

        x = jnp.full((4, 2), 0.25)
        derivative = within(central_difference(step=step), s, jnp.ones_like(s))
        out, slope = derivative(function, (x, t), (jnp.ones_like(x), jnp.ones_like(t)))
        assert len(seen) == 3
        assert all(bool(jnp.all((s <= time) & (time <= 1))) for time in seen)
        np.testing.assert_array_equal(out, function(x, t))
        room = np.minimum(t + step, 1) - np.maximum(t - step, s)
        np.testing.assert_allclose(slope[room > 1e-3], 5, rtol=2e-3)
        assert np.all(np.isfinite(slope))
        np.testing.assert_array_equal(slope[room == 0], 0)


def test_differences_within_times_are_of_second_order_inside_and_of_first_at_the_ends():
    t, s = jnp.array([0.5, 0.3, 1.0]), jnp.array([0.1, 0.3, 0.0])
    errors = []
    for step in (0.02, 0.01):
        slope = within(central_difference(step=step), s, jnp.ones(3))(jnp.sin, (t,), (jnp.ones(3),))[1]
        errors.append(np.abs(slope - jnp.cos(t)))
    np.testing.assert_allclose(errors[0] / errors[1], [4, 2, 2], rtol=0.03)


def net(w, x, c_noise, *, key=None, c_noise_s=None):
    gap = 0.0 if c_noise_s is None else per_sample(c_noise_s, x)
    return w[0] * jnp.tanh(w[1] * x + jnp.cos(2 * per_sample(c_noise, x) + gap)) + w[2] * jnp.mean(x, 1, keepdims=True)


FLOW = Model(net, linear, linear_flow)
TRIG = Model(net, trig(sigma_data=0.5), partial(trig_scalings, sigma_data=0.5))
LOSSES = {
    "scm_ct": (TRIG, losses.scm_ct),
    "scm_cd": (TRIG, partial(losses.scm_cd, teacher=lambda x, t: 0.5 * x)),
    "meanflow": (FLOW, partial(losses.meanflow, distance=l2)),
    "imf": (FLOW, partial(losses.imf, distance=l2)),
    "alphaflow": (FLOW, partial(losses.alphaflow, alpha=0.0, weight=inverse_alpha)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_differences_is_the_loss_by_forward_mode(name):
    model, loss = LOSSES[name]
    x0 = exact.data(jax.random.key(1), 6)
    t, fraction = jax.random.uniform(jax.random.key(2), (2, 6), jnp.float64, 0.2, 0.9)
    times = Times(t, t * (1 + fraction) / 2, s=t * fraction) if model is FLOW else Times(t)

    def gradient(**choices):
        return exact.loss_and_gradient(lambda w: exact.evaluate(loss, model, w, KEY, x0, times, **choices), W)

    (value, by_w), (near, near_by_w) = gradient(), gradient(derivative=central_difference(step=1e-3))
    np.testing.assert_allclose(near, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(near_by_w, by_w, rtol=1e-4, atol=1e-6)
    far = gradient(derivative=central_difference(step=0.3))[1]
    assert np.abs(far - by_w).max() > 1e-4, "the derivative matters here"


def test_a_recipe_chooses_it_and_may_then_use_attention_without_forward_mode():
    config = digits_meanflow.get_config()
    config.net = common.ddpmpp(
        channels=32, channel_mult=(1, 1), blocks=1, two_times=True, attention="cudnn", attention_resolutions=(8,)
    )
    with pytest.raises(ConfigError, match=r"net\.attention=xla, or config\.objective\.derivative=.*\(step=0\.03\)"):
        read_run(config.to_dict())
    config.objective.derivative = "central_difference(step=0.01)"
    assert read_run(config.to_dict()).method.choices["derivative"] is not jax.jvp
    config.objective.derivative = "forward"
    with pytest.raises(ConfigError, match="must be one of jvp, central_difference"):
        read_run(config.to_dict())
    config = digits_scm_ct.get_config()
    config.objective.derivative = "central_difference(step=0.01)"
    read_run(config.to_dict())
    config.model.preconditioning, config.model.t_min = "trig_edm", 0.004
    with pytest.raises(ConfigError, match="must be jvp with preconditioning trig_edm"):
        read_run(config.to_dict())
