"""The derivative by differences is the exact one to second order, in every loss that takes it."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import Model, losses
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core.derivatives import central_difference
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
    t, share = jax.random.uniform(jax.random.key(2), (2, 6), jnp.float64, 0.2, 0.9)
    times = Times(t, t * (1 - share), s=t * share) if model is FLOW else Times(t)

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
    with pytest.raises(ConfigError, match=r"net\.attention=xla, or config\.objective\.derivative=central_difference"):
        read_run(config.to_dict())
    config.objective.derivative = "central_difference(step=0.01)"
    assert read_run(config.to_dict()).method.loss.keywords["derivative"] is not jax.jvp
    config.objective.derivative = "forward"
    with pytest.raises(ConfigError, match="must be one of jvp, central_difference"):
        read_run(config.to_dict())
    config = digits_scm_ct.get_config()
    config.objective.derivative = "central_difference(step=0.01)"
    read_run(config.to_dict())
    config.model.preconditioning, config.model.t_min = "trig_edm", 0.004
    with pytest.raises(ConfigError, match="must be jvp with preconditioning trig_edm"):
        read_run(config.to_dict())
