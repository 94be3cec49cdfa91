"""Preconditioning: the boundary condition, unit variances, and the peers' recorded coefficients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax import Model
from cmjax.core import preconditioning
from cmjax.core.oracles import gaussian_denoiser
from cmjax.core.paths import carry, ddpm, linear, per_sample, trig, ve, vp
from cmjax.core.preconditioning import (
    consistency,
    edm,
    edm_velocity,
    epsilon,
    lcm,
    linear_consistency,
    linear_denoiser,
    linear_flow,
    piecewise,
    v_prediction,
)

X = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))


def loud(params, x, c_noise, *, key=None):
    """A network that has nothing to do with its input's scale."""
    return params * jnp.cos(7 * x) + 1e6


@pytest.mark.parametrize("form", [consistency, piecewise, linear_consistency])
@settings(max_examples=25, deadline=None)
@given(sigma_data=st.floats(0.05, 20), t_min=st.floats(1e-4, 1.0), gain=st.floats(-1e20, 1e20))
def test_boundary_condition_holds_exactly_for_any_network(form, sigma_data, t_min, gain):
    knobs = {"sigma_data": sigma_data, "t_min": t_min} if form is consistency else {"t_min": t_min}
    scalings = partial(form, **knobs)
    f = Model(loud, ve, scalings)
    np.testing.assert_array_equal(f(jnp.float32(gain), X, t_min), X)
    np.testing.assert_array_equal(f(jnp.float32(gain), X, jnp.full(4, t_min)), X)
    above = f(jnp.float32(gain), X, 1.5 * t_min)
    assert jnp.all(above != X)


def test_boundary_condition_holds_exactly_in_a_compiled_program():
    for scalings in (
        partial(consistency, sigma_data=0.5, t_min=0.002),
        partial(piecewise, t_min=0.002),
        partial(linear_consistency, t_min=0.002),
    ):
        f = jax.jit(partial(Model(loud, ve, scalings), jnp.float32(3)))
        np.testing.assert_array_equal(f(X, jnp.full(4, 0.002)), X)


def test_piecewise_is_the_bare_network_above_the_boundary():
    f = Model(lambda params, x, c_noise, key: x**2 + c_noise[:, None, None, None], ve, partial(piecewise, t_min=0.1))
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

    f = Model(net, ve, partial(edm, sigma_data=0.5))
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


def curved(w, x, c_noise, *, key=None, c_noise_s=None):
    """A network whose answer depends on all of its inputs."""
    out = w * jnp.tanh(x + per_sample(c_noise, x)) + jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return out if c_noise_s is None else out + per_sample(jnp.sin(3 * c_noise_s), x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_consistency_function_is_the_identity_at_its_end(dtype):
    """trig, linear, linear_denoiser and lcm of either prediction at 0, the flow map at s = t: to the bit."""
    with jax.enable_x64(True):
        x, zero = X.astype(dtype), jnp.zeros(4, dtype)
        loudly = jnp.asarray(3, dtype)
        for scalings in (
            partial(preconditioning.trig, sigma_data=0.5),
            preconditioning.linear,
            linear_denoiser,
            *(partial(lcm, path=ddpm(), prediction=prediction) for prediction in ("epsilon", "v")),
        ):
            np.testing.assert_array_equal(Model(loud, ve, scalings)(loudly, x, zero), x)
            assert np.all(Model(loud, ve, scalings)(loudly, x, zero + 0.5) != x)
        flow = Model(lambda *inputs, c_noise_s, key=None: loud(*inputs, key=key), linear, linear_flow)
        t = jnp.array([0.0, 0.3, 0.7, 1.0], dtype)
        np.testing.assert_array_equal(flow(loudly, x, t, t), x)
        np.testing.assert_array_equal(flow(loudly, x, 0.3, 0.3), x)
        assert np.all(flow(loudly, x, t, t - 0.1) != x)


@pytest.mark.usefixtures("x64")
def test_a_flow_map_goes_by_the_mean_velocity():
    """x − (t − s)·F(x, t, t − s), or F(x, t, s) of a network that takes both times."""
    x, t, s = X.astype(jnp.float64), jnp.array([0.9, 0.5, 0.4, 1.0]), jnp.array([0.1, 0.5, 0.0, 0.2])
    expected = x - per_sample(t - s, x) * curved(0.7, x, t, c_noise_s=t - s)
    np.testing.assert_allclose(Model(curved, linear, linear_flow)(0.7, x, t, s), expected, rtol=1e-13)
    by_ends = x - per_sample(t - s, x) * curved(0.7, x, t, c_noise_s=s)
    np.testing.assert_allclose(Model(curved, linear, preconditioning.linear_ends)(0.7, x, t, s), by_ends, rtol=1e-13)
    to_zero = Model(lambda *inputs, c_noise_s, key=None: curved(*inputs), linear, linear_flow)(0.7, x, t, 0.0)
    np.testing.assert_allclose(to_zero, Model(curved, ve, preconditioning.linear)(0.7, x, t), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_the_velocity_of_an_edm_network_is_that_of_its_denoiser():
    """(x − D(x/(1 − t), t/(1 − t)))/t, and finite at both ends: the network is told the last levels of training."""
    x = X.astype(jnp.float64)
    for sigma_data in (0.5, 2.0):
        denoiser = carry(Model(curved, ve, partial(edm, sigma_data=sigma_data)), ve, linear)
        velocity = edm_velocity(curved, sigma_data=sigma_data)
        for t in (0.002, 0.3, 0.98):
            times = jnp.full(4, t)
            expected = (x - denoiser(0.7, x, times)) / t
            np.testing.assert_allclose(velocity(0.7, x, times), expected, rtol=1e-9)
        for t in (0.0, 1.0):
            assert np.isfinite(velocity(0.7, x, jnp.full(4, t))).all()


@pytest.mark.usefixtures("x64")
def test_the_exact_velocity_of_a_gaussian_is_its_exact_denoiser():
    """On the path `ve`, from the velocity of the linear path; and any velocity network, carried as a denoiser is."""
    x, t, data = X.astype(jnp.float64), jnp.array([1e-3, 0.5, 3.0, 80.0]), {"mean": 0.3, "variance": 0.25}

    def exact_velocity(params, x, t, *, key=None):  # E[noise − x0 | x], by the formula for two Gaussians
        t = per_sample(t, x)
        slope = (t - 0.25 * (1 - t)) / (0.25 * (1 - t) ** 2 + t**2)
        return -0.3 + slope * (x - 0.3 * (1 - t))

    denoiser = Model(exact_velocity, ve, linear_denoiser)
    np.testing.assert_allclose(denoiser({}, x, t), gaussian_denoiser(x, t, **data), rtol=1e-11, atol=1e-12)
    carried = carry(Model(curved, linear, preconditioning.linear), linear, ve)
    np.testing.assert_allclose(Model(curved, ve, linear_denoiser)(0.7, x, t), carried(0.7, x, t), rtol=1e-11)
    far, shifted = linear_denoiser(t[2:]), linear_consistency(t[2:], t_min=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), far, shifted)


@pytest.mark.usefixtures("x64")
def test_trig_edm_is_edm_carried():
    """The same function of the same parameters, at every time and of every σ_d."""
    x = X.astype(jnp.float64)
    for sigma_data in (0.5, 0.3, 2.0):
        path, knobs = trig(sigma_data=sigma_data), {"sigma_data": sigma_data}
        carried = carry(Model(curved, ve, partial(edm, **knobs)), ve, path)
        ours = Model(curved, ve, partial(preconditioning.trig_edm, **knobs))
        for t in (1e-3, 0.3, 1.0, 1.56454):
            np.testing.assert_allclose(ours(0.7, x, t), carried(0.7, x, t), rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_trig_predicts_the_velocity_in_units_of_sigma_data():
    """σ_d·F is the velocity, cos t·σ_d·noise − sin t·x0; the network sees x/σ_d."""
    x0, noise = jax.random.normal(jax.random.key(1), (2, 4, 3, 3, 2), jnp.float64)
    path, t = trig(sigma_data=0.3), jnp.array([0.1, 0.5, 1.0, 1.5])
    x = path.add_noise(0.3 * x0, noise, t)
    velocity = path.conditional_velocity(0.3 * x0, noise, t)
    f = Model(lambda params, x, c_noise, key: velocity / 0.3, ve, partial(preconditioning.trig, sigma_data=0.3))
    np.testing.assert_allclose(f({}, x, t), 0.3 * x0, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(preconditioning.trig(t, sigma_data=0.3).c_noise, t)
    np.testing.assert_allclose(preconditioning.trig(t, sigma_data=0.3).c_in, 1 / 0.3, rtol=1e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", [vp(), ddpm(), linear], ids=["vp", "ddpm", "linear"])
def test_exact_noise_exact_v_and_exact_velocity_give_the_data(path):
    x0, noise = jax.random.normal(jax.random.key(1), (2, 4, 3, 3, 2), jnp.float64)
    t = jnp.array([0.02, 0.3, 0.6, 0.9])
    x = path.add_noise(x0, noise, t)

    def answer(of, scalings):
        return Model(lambda params, x, c_noise, key: of, ve, scalings)({}, x, t)

    np.testing.assert_allclose(answer(noise, partial(epsilon, path=path)), x0, rtol=1e-9, atol=1e-10)
    if path is linear:
        np.testing.assert_allclose(answer(noise - x0, preconditioning.linear), x0, rtol=1e-11, atol=1e-12)
    else:
        v = per_sample(path.a(t), x) * noise - per_sample(path.b(t), x) * x0
        np.testing.assert_allclose(answer(v, partial(v_prediction, path=path)), x0, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_v_prediction_is_trig_of_unit_sigma():
    """Where a² + b² = 1, but for the time that the network is told."""
    path, t = vp(), jnp.array([0.02, 0.3, 0.6, 0.9])
    ours = v_prediction(t, path=path)
    angle = jnp.arctan2(path.b(t), path.a(t))
    theirs = preconditioning.trig(angle, sigma_data=1.0)
    for name in ("c_skip", "c_out", "c_in"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12)
    np.testing.assert_array_equal(ours.c_noise, t)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_lcm_is_the_teachers_denoiser_far_from_the_end(prediction):
    """c_skip·x + c_out·D with τ = 10 for each step: at step 999 the two differ by σ_d²/τ² of x, 2.5e-9."""
    x, path, t = X.astype(jnp.float64), ddpm(), jnp.array([0.0, 0.001, 0.01, 0.999])
    denoised = Model(curved, ve, partial(preconditioning.PREDICTIONS[prediction], path=path))(0.7, x, t)
    ours = Model(curved, ve, partial(lcm, path=path, prediction=prediction))(0.7, x, t)
    step = per_sample(1000 * t, x)
    skip, out = 0.25 / ((step / 0.1) ** 2 + 0.25), (step / 0.1) / np.sqrt((step / 0.1) ** 2 + 0.25)
    np.testing.assert_allclose(ours, skip * x + out * denoised, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ours[3], denoised[3], rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(ours[0], x[0])


@pytest.mark.usefixtures("x64")
def test_a_teacher_of_noise_is_carried_to_ve():
    """From the exact noise of Gaussian data on ddpm's path to the exact denoiser of `ve`."""
    path, data = ddpm(), {"mean": 0.3, "variance": 0.25}

    def exact_noise(params, x, t, *, key=None):
        a, b = per_sample(path.a(t), x), per_sample(path.b(t), x)
        return b / (a**2 * 0.25 + b**2) * (x - a * 0.3)

    teacher = carry(Model(exact_noise, ve, partial(epsilon, path=path)), path, ve)
    x, t = X.astype(jnp.float64), jnp.array([0.02, 0.5, 3.0, 60.0])
    np.testing.assert_allclose(teacher({}, x, t), gaussian_denoiser(x, t, **data), rtol=1e-9)
