"""iMF's transformer: conditions as tokens, a second head that samples do not pay for, and pMF's images from a gap."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate_method

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.core import preconditioning
from cmjax.nets import defaults
from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.imf_dit import IMFDiT
from tests.recorded_parts import quick_jit

# Programs that run once: compiling them is what these tests cost.
SHAPE, RANDOM = (4, 4, 2), np.random.default_rng(0)
NET = IMFDiT(
    width=16, depth=3, heads=2, head_depth=1, num_classes=3, guided=True, guided_interval=True, velocity_head=True
)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def loud(params):
    """Parameters without the zeros that would hide everything behind them."""
    return jax.tree.map(lambda leaf: leaf + 0.4 * normal(*leaf.shape), params)


POINT = {
    "c_noise": jnp.array([0.9, 0.3]),
    "label": jnp.array([2, -1]),
    "guidance": jnp.array([1.5, 7.0]),
    "interval": jnp.array([[0.0, 1.0], [0.1, 0.6]]),
}


@pytest.fixture(scope="module")
def params():
    return loud(init_params(NET, jax.random.key(0), SHAPE))


@pytest.fixture(scope="module")
def net():
    return quick_jit(as_net(NET), static_argnames="return_velocity")


def test_it_starts_at_zero_with_the_tokens_of_its_size(net):
    fresh = init_params(NET, jax.random.key(0), SHAPE)
    assert not np.any(net(fresh, normal(2, *SHAPE), **POINT))
    counts = {name: fresh[f"{name}_tokens"]["tokens"].shape[0] for name in ("label", "guidance", "first", "time")}
    assert counts == {"label": 8, "guidance": 4, "first": 2, "time": 4}
    assert {"label", "guidance_tokens", "first_tokens"}.isdisjoint(parameter_shapes(IMFDiT(width=16, heads=2), SHAPE))


def test_every_condition_matters_to_its_own_sample_in_both_outputs(net, params):
    x = normal(2, *SHAPE)
    both = net(params, x, **POINT, return_velocity=True)
    np.testing.assert_array_equal(net(params, x, **POINT), both[0])
    assert jnp.abs(both[0] - both[1]).max() > 1e-2
    for change in (
        {"c_noise": POINT["c_noise"].at[0].add(0.1)},
        {"label": POINT["label"].at[0].set(1)},
        {"guidance": POINT["guidance"].at[0].set(2.0)},
        {"interval": POINT["interval"].at[0, 0].set(0.3)},
        {"interval": POINT["interval"].at[0, 1].set(0.7)},
    ):
        for changed, out in zip(net(params, x, **POINT | change, return_velocity=True), both, strict=True):
            assert jnp.abs(changed[0] - out[0]).max() > 1e-3, change.keys()
            np.testing.assert_allclose(changed[1], out[1], atol=1e-5)


def test_scales_are_seen_as_one_minus_their_inverse_and_never_as_infinite(net, params):
    np.testing.assert_allclose(NET.guidance_seen(jnp.array([1.0, 4.0, 0.0])), [0, 0.75, -99], rtol=1e-6)
    assert jnp.isfinite(net(params, normal(2, *SHAPE), **POINT | {"guidance": jnp.zeros(2)})).all()


def test_samples_do_not_pay_for_the_velocity_head(params):
    def operations(module, params):
        compiled = jax.jit(as_net(module)).lower(params, jnp.ones((2, *SHAPE)), **POINT).compile()
        return compiled.cost_analysis()["flops"]

    without = {name: value for name, value in params.items() if not name.startswith("velocity")}
    alone = operations(NET.clone(velocity_head=False), without)
    assert operations(NET, params) < 1.01 * alone


def test_places_are_those_of_all_tokens_or_of_patches_alone(params):
    """With rotations by row and column the order of tokens of one condition does not matter."""

    def swapped(params):
        tokens = params["time_tokens"]["tokens"]
        return {**params, "time_tokens": {"tokens": tokens[::-1]}}

    for rope, moves in (("tokens", True), ("patches", False)):
        net, x = quick_jit(as_net(NET.clone(rope=rope))), normal(2, *SHAPE)
        moved = jnp.abs(net(swapped(params), x, **POINT) - net(params, x, **POINT)).max()
        assert moved > 1e-2 if moves else moved < 1e-5
        assert jnp.abs(net(params, x[:, ::-1], **POINT)[:, ::-1] - net(params, x, **POINT)).max() > 1e-3


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_gradient(params):
    x = normal(2, *SHAPE)

    def gradient(module):
        return quick_jit(jax.grad(lambda params: jnp.sum(as_net(module)(params, x, **POINT) ** 2)))(params)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *map(gradient, (NET, NET.clone(remat=True)))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "patch=3 does not divide height and width, 4x4"),
        ({"heads": 16}, "width=16 must be a multiple of 2·heads=32"),
        ({"heads": 8, "rope": "patches"}, "width=16 must be a multiple of 4·heads=32"),
        ({"head_depth": 4}, "head_depth=4 must be from 0 to depth=3"),
        ({"two_times": True}, "two_times=True: the network takes one time"),
        ({"rope": "rows"}, "rope must be one of tokens, patches, got 'rows'"),
    ],
)
def test_fields_that_are_wrong_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        parameter_shapes(NET.clone(**change), SHAPE)


def recipe(**changes):
    """digits_imf with the released code's inputs, on a tiny network."""
    config = importlib.import_module("configs.digits_imf").get_config().to_dict()
    fields = {"width": 16, "depth": 2, "heads": 2, "head_depth": 1, "class_conditional": True}
    inputs = dict.fromkeys(("guided", "guided_interval", "velocity_head"), True)
    config["net"] = {"name": "imf_dit", **defaults("imf_dit"), **fields, **inputs}
    config["objective"] |= {"guidance": (1.0, 8.0), "guidance_interval": "drawn"}
    config["model"] |= {"preconditioning": "linear_gap", **changes}
    config["data"]["label_dropout"] = 0.1
    return config


@pytest.mark.parametrize("model", [{}, {"preconditioning": "clean_gap", "path": "linear(noise_scale=2.0)"}])
def test_an_imf_recipe_trains_every_parameter(model):
    run = read_run(recipe(**model), data_there=False)
    network = run.make_model(10)
    params = loud(init_params(network.module, jax.random.key(0), (8, 8, 1)))

    def mean_loss(params):
        conditions, x0 = {"label": jnp.arange(8) % 10}, 0.5 * normal(8, 8, 8, 1)
        step = jnp.zeros((), jnp.int32)
        inputs = (run.method, network.function, params, params, {}, jax.random.key(1), x0, step, conditions)
        return jnp.mean(evaluate_method(*inputs))

    loss, gradient = quick_jit(jax.value_and_grad(mean_loss))(params)
    assert jnp.isfinite(loss)
    still = [path for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(leaf)]
    assert not still


def test_its_preconditioning_is_of_the_gap():
    with pytest.raises(ConfigError, match=r"config\.net\.two_times=False: .*linear_flow gives it two times"):
        read_run(recipe(preconditioning="linear_flow"), data_there=False)
    with pytest.raises(ConfigError, match=r"edm_flow needs .*=linear, of noise_scale 1"):
        read_run(recipe(preconditioning="edm_flow", path="linear(noise_scale=2.0)"), data_there=False)
    with pytest.raises(ConfigError, match=r"config\.model\.path.*noise_scale"):
        read_run(recipe(path="linear(noise_scale=0.0)"), data_there=False)


def test_clean_images_give_the_flow_map_of_their_velocity():
    """Where F is E[x0 | x_t] at s = t the velocity is the path's; one evaluation from t to 0 gives F itself."""
    path = cmjax.paths.linear_to(noise_scale=2.0)
    net = preconditioning.clean_velocity(lambda params, x, gap, key=None: 0.3 * x + per_sample(gap))
    model = cmjax.Model(net, path, preconditioning.linear_flow)

    def per_sample(value):
        return value[:, None, None, None]

    x, t, s = normal(3, *SHAPE), jnp.array([1.0, 0.5, 0.02]), jnp.array([0.0, 0.2, 0.01])
    clean = 0.3 * x + per_sample(t - s)
    expected = x - per_sample((t - s) / jnp.maximum(t, 0.05)) * (x - clean)
    np.testing.assert_allclose(model(None, x, t, s), expected, atol=1e-6)
    np.testing.assert_allclose(model(None, x, t, 0 * t)[:2], (0.3 * x + per_sample(t))[:2], atol=1e-6)
    at_once = model.output(None, x, t, t)
    np.testing.assert_allclose(at_once[:2], path.velocity(x, 0.3 * x, t)[:2], atol=1e-5)


def test_scaled_noise_on_the_linear_path():
    path = cmjax.paths.linear_to(noise_scale=2.0)
    x0, noise, t = normal(3, *SHAPE), normal(3, *SHAPE), jnp.array([0.2, 0.5, 1.0])
    x_t, v = path.add_noise(x0, noise, t), path.conditional_velocity(x0, noise, t)
    np.testing.assert_allclose(x_t - t[:, None, None, None] * v, x0, atol=1e-6)
    np.testing.assert_allclose(path.time_at(path.noise_level(t[:2])), t[:2], rtol=1e-6)
    assert path is cmjax.paths.linear_to(noise_scale=2.0)
    assert repr(path) == "paths.linear_to(noise_scale=2)"
