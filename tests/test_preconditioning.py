"""Preconditioning: the boundary condition, unit variances, and the peers' recorded coefficients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax.core.preconditioning import consistency, edm, piecewise, precondition

X = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))


def loud(params, x, c_noise, *, key=None):
    """A network that has nothing to do with its input's scale."""
    return params * jnp.cos(7 * x) + 1e6


@pytest.mark.parametrize("form", ["consistency", "piecewise"])
@settings(max_examples=25, deadline=None)
@given(sigma_data=st.floats(0.05, 20), t_min=st.floats(1e-4, 1.0), gain=st.floats(-1e20, 1e20))
def test_boundary_condition_holds_exactly_for_any_network(form, sigma_data, t_min, gain):
    knobs = {"sigma_data": sigma_data, "t_min": t_min} if form == "consistency" else {"t_min": t_min}
    scalings = partial(consistency if form == "consistency" else piecewise, **knobs)
    f = precondition(loud, scalings)
    np.testing.assert_array_equal(f(jnp.float32(gain), X, t_min), X)
    np.testing.assert_array_equal(f(jnp.float32(gain), X, jnp.full(4, t_min)), X)
    above = f(jnp.float32(gain), X, 1.5 * t_min)
    assert jnp.all(above != X)


def test_boundary_condition_holds_exactly_in_a_compiled_program():
    for scalings in (partial(consistency, sigma_data=0.5, t_min=0.002), partial(piecewise, t_min=0.002)):
        f = jax.jit(partial(precondition(loud, scalings), jnp.float32(3)))
        np.testing.assert_array_equal(f(X, jnp.full(4, 0.002)), X)


def test_piecewise_is_the_bare_network_above_the_boundary():
    f = precondition(lambda params, x, c_noise, key: x**2 + c_noise[:, None, None, None], partial(piecewise, t_min=0.1))
    expected = np.asarray(X) ** 2
    expected[1:] += np.log([0.2, 3, 80], dtype=np.float32)[:, None, None, None] / 4
    expected[0] = X[0]
    np.testing.assert_allclose(f({}, X, jnp.array([0.1, 0.2, 3, 80])), expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(t=st.floats(1e-3, 1e3), sigma_data=st.floats(0.01, 100))
def test_edm_network_sees_and_predicts_unit_variance(t, sigma_data):
    with jax.enable_x64(True):
        c_skip, c_out, c_in, c_noise = (float(c) for c in edm(jnp.asarray(t), sigma_data=sigma_data)[:4])
    # F must produce (x0 - c_skip·(x0 + t·noise))/c_out
    residual = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * t**2
    assert c_in**2 * (sigma_data**2 + t**2) == pytest.approx(1, rel=1e-12)
    # 1 − c_skip cancels where t << sigma_data: rounding of c_skip, squared against t²
    assert residual / c_out**2 == pytest.approx(1, rel=1e-9)
    for other in (c_skip * 1.01, c_skip * 0.99):  # c_skip is the one that asks least of F
        assert (1 - other) ** 2 * sigma_data**2 + other**2 * t**2 > residual
    assert c_noise == pytest.approx(np.log(t) / 4, rel=1e-12)


def test_consistency_is_the_papers_formula():
    t = np.array([0.1, 0.5, 2.0])
    c = consistency(jnp.asarray(t), sigma_data=0.5, t_min=0.1)
    np.testing.assert_allclose(c.c_skip, 0.25 / ((t - 0.1) ** 2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(c.c_out, 0.5 * (t - 0.1) / np.sqrt(0.25 + t**2), rtol=1e-6)


def test_consistency_and_edm_meet_far_from_the_boundary():
    t = jnp.array([20.0, 80.0])
    shifted, plain = consistency(t, sigma_data=0.5, t_min=1e-6), edm(t, sigma_data=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), shifted, plain)


def test_key_and_conditions_reach_the_network_and_dtype_is_kept():
    seen = {}

    def net(params, x, c_noise, *, key, label):
        seen.update(params=params, key=key, label=label, c_noise=c_noise)
        return x.astype(jnp.float32)

    f = precondition(net, partial(edm, sigma_data=0.5))
    label, key = jnp.arange(4), jax.random.key(3)
    out = f({"w": 1}, X.astype(jnp.bfloat16), 2.0, key=key, label=label)
    assert out.dtype == jnp.bfloat16
    assert out.shape == X.shape
    assert (seen["params"], seen["key"], seen["label"]) == ({"w": 1}, key, label)
    assert seen["c_noise"].shape == (4,)


@pytest.mark.usefixtures("x64")
def test_coefficients_are_the_peers(openai):
    t = jnp.asarray(openai["scal_sigma"])
    ours = {"edm": edm(t, sigma_data=0.5), "bc": consistency(t, sigma_data=0.5, t_min=0.002)}
    for name, scalings in ours.items():
        for field in ("c_skip", "c_out", "c_in"):
            expected = openai[f"scal_{name}_{field}"]
            np.testing.assert_allclose(getattr(scalings, field), expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(1000 * scalings.c_noise, openai["scal_rescaled_t"], rtol=1e-12)
