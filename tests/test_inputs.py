"""The scalar inputs that every network may have: absent at the start, told apart, smooth, and asked for by name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.interop.diffusers import write_diffusers
from cmjax.interop.keys import ForeignError
from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.adm import ADM, OPENAI
from cmjax.nets.dit import DiT
from cmjax.nets.edm2 import EDM2
from cmjax.nets.inputs import ADDED, added_scalars
from cmjax.nets.magnitude import normalize_weights
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import NCSNPP, UNet

SMALL = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}
NETS = {
    "adm": ADM(**SMALL, head_channels=8, num_classes=3, modulation="double_norm"),
    "dit": DiT(patch=2, width=16, depth=1, heads=2, time_scale=4.0, num_classes=3),
    "edm2": EDM2(**SMALL, head_channels=8, num_classes=3),
    "mlp": MLP(width=16, depth=1, frequencies=6, embedding_width=8, num_classes=3),
    "ddpmpp": UNet(**SMALL, num_classes=3),
    "ncsnpp": UNet(**SMALL, **NCSNPP, fourier_scale=0.5),
}
SHAPE = (4, 4, 2)
RANDOM = np.random.default_rng(0)
# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def loud(params):
    """Parameters without the zeros that would hide everything behind them; frequencies and phases as they are."""

    def changed(path, leaf):
        if path[-1] in ("frequencies", "phases"):
            return jnp.asarray(leaf)
        return leaf + 0.1 * normal(*leaf.shape) if leaf.ndim else jnp.ones(())

    return unflatten_dict({path: changed(path, leaf) for path, leaf in flatten_dict(params).items()})


POINT = {
    "x": normal(2, *SHAPE),
    "c_noise": jnp.array([-1.0, 0.5]),
    "c_noise_s": jnp.array([-1.2, 0.4]),
    "guidance": jnp.array([1.5, 7.0]),
}


@pytest.fixture(scope="module", params=NETS)
def pair(request):
    """A network without the inputs, the same with them, compiled, and fresh parameters of that one."""
    plain = NETS[request.param]
    added = plain.clone(two_times=True, guided=True)
    return plain, added, quick_jit(as_net(added)), init_params(added, jax.random.key(0), SHAPE)


def test_a_network_starts_as_the_function_of_the_one_without(pair):
    plain, added, net, fresh = pair
    extra = flatten_dict(fresh).keys() - flatten_dict(parameter_shapes(plain, SHAPE)).keys()
    assert {part for path in extra for part in ADDED & set(path)} == {"time_s", "guidance"}
    teacher = loud(init_params(plain, jax.random.key(1), SHAPE))
    started = unflatten_dict(flatten_dict(fresh) | flatten_dict(teacher))
    inputs = {"x": POINT["x"], "c_noise": POINT["c_noise"]}
    expected = quick_jit(as_net(plain))(teacher, **inputs)
    np.testing.assert_allclose(net(started, **POINT), expected, rtol=0, atol=1e-6 * jnp.abs(expected).max())
    # What starts at zero can be learned.
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(as_net(added)(p, **POINT) * POINT["x"])))(started)
    for name in ("time_s", "guidance"):
        moved = [path for path in extra if name in path and np.any(flatten_dict(gradient)[path])]
        assert moved, name


def test_both_inputs_matter_to_their_own_sample_alone(pair):
    _, _, net, fresh = pair
    params = loud(fresh)
    out = net(params, **POINT)
    for change in (
        {"c_noise_s": POINT["c_noise_s"] + 0.1},
        {"guidance": POINT["guidance"] * 1.1},
        {"c_noise": POINT["c_noise_s"], "c_noise_s": POINT["c_noise"]},
    ):
        assert (jnp.abs(net(params, **POINT | change) - out).max((1, 2, 3)) > 1e-4).all(), list(change)
    first = {"c_noise_s": POINT["c_noise_s"].at[0].add(1.0), "guidance": POINT["guidance"].at[0].add(1.0)}
    np.testing.assert_allclose(net(params, **POINT | first)[1], out[1], atol=1e-5)


@pytest.mark.slow
def test_derivatives_by_the_times_and_the_scale_are_those_of_differences(pair):
    _, added, net, fresh = pair
    params, names = loud(fresh), tuple(POINT)

    def at(*point):
        return as_net(added)(params, **dict(zip(names, point, strict=True)))

    derivative = quick_jit(lambda tangents: jax.jvp(at, tuple(POINT.values()), tangents)[1])
    together = {name: normal(*value.shape) for name, value in POINT.items()}
    h = 0.005
    rounding = 5 * np.finfo(np.float32).eps * np.linalg.norm(net(params, **POINT)) / h
    for moved in (names, ("c_noise_s",), ("guidance",)):
        tangents = {name: together[name] * (name in moved) for name in names}

        def shifted(h, tangents=tangents):
            return net(params, **{name: POINT[name] + h * tangents[name] for name in names})

        expected = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h)
        found = derivative(tuple(tangents.values()))
        tolerance = 3e-4 * np.linalg.norm(expected) + rounding
        assert np.linalg.norm(expected) > 30 * tolerance, moved
        assert np.linalg.norm(found - expected) < tolerance, moved


def test_inputs_are_asked_for_by_name(pair):
    plain, added, _, _ = pair
    x, c_noise = POINT["x"], POINT["c_noise"]
    for module, inputs, message in (
        (plain, {"c_noise_s": c_noise}, "c_noise_s was given to a network with two_times=False"),
        (plain, {"guidance": c_noise}, "guidance was given to a network with guided=False"),
        (added, {"guidance": c_noise}, "c_noise_s must be given to a network with two_times=True"),
        (added, {"c_noise_s": c_noise}, "guidance must be given to a network with guided=True"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(module.apply, **inputs), {"params": {}}, x, c_noise)


@pytest.mark.parametrize("field", ["two_times", "guided", "guided_interval", "velocity_head"])
def test_other_formats_have_no_such_inputs(field, tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(ForeignError, match=f"net.{field}=True: diffusers' UNet2DModel needs False"):
        write_diffusers(tmp_path, ADM(**OPENAI, **{field: True}), {}, SHAPE, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_an_interval_and_a_second_head_are_asked_for_too(name):
    """The interval is all times unless given, and matters; sampling sees the first half of the output alone."""
    module = NETS[name].clone(guided_interval=True, velocity_head=True)
    params = loud(init_params(module, jax.random.key(0), SHAPE))
    net, inputs = quick_jit(as_net(module), static_argnames="return_velocity"), {"c_noise": POINT["c_noise"]}
    inputs["interval"] = jnp.array([[0.0, 1.0], [0.1, 0.6]])
    out, velocity = net(params, POINT["x"], **inputs, return_velocity=True)
    assert out.shape == velocity.shape == POINT["x"].shape
    assert jnp.abs(out - velocity).max() > 1e-3
    np.testing.assert_array_equal(net(params, POINT["x"], **inputs), out)
    whole = net(params, POINT["x"], POINT["c_noise"])
    np.testing.assert_allclose(whole[0], out[0], atol=1e-5)
    assert jnp.abs(whole[1] - out[1]).max() > 1e-4
    for more, message in (
        ({"interval": inputs["interval"]}, "interval was given to a network with guided_interval=False"),
        ({"return_velocity": True}, "return_velocity=True was asked of a network with velocity_head=False"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(NETS[name].apply, **more), {"params": {}}, POINT["x"], POINT["c_noise"])


def test_scales_are_embedded_where_times_lie():
    scales = jnp.array([0.0, 1.0, 15.0])
    seen = added_scalars(MLP(guided=True), scales, None, scales)
    np.testing.assert_allclose(seen["guidance"], [0, np.log(1 + 2**0.5) / 2, np.log(15 + 226**0.5) / 2], rtol=1e-6)
    assert seen.keys() == {"guidance"}
    slope = jax.vmap(jax.grad(lambda w: added_scalars(MLP(guided=True), w[None], None, w[None])["guidance"][0]))
    assert jnp.isfinite(slope(scales)).all()


class LoneEmbedding(EDM2):
    """What conditions the blocks of EDM2."""

    def body(self, x, embedding, deterministic):
        return embedding


def test_edm2_keeps_its_magnitude_whatever_the_gains():
    module = LoneEmbedding(**SMALL | {"channels": 1024}, head_channels=64, two_times=True, guided=True)
    params = init_params(module, jax.random.key(0), SHAPE)
    params["time_s"]["gain"], params["guidance"]["gain"] = 3.0, -2.0
    params = jax.tree.map(jnp.asarray, params)
    c_noise = jnp.linspace(-1.5, 1.0, 32)
    seen = module.apply(
        {"params": params}, jnp.zeros((32, *SHAPE)), c_noise, c_noise_s=c_noise - 0.3, guidance=c_noise + 2
    )
    assert abs(jnp.sqrt(jnp.mean(seen**2)) - 1) < 0.1
    normalised = normalize_weights(params)
    assert normalised["time_s"]["gain"] == 3.0
    np.testing.assert_allclose(jnp.mean(normalised["time_s"]["linear"]["kernel"] ** 2, axis=0), 1, rtol=1e-3)
