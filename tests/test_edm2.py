"""EDM2: recorded outputs of its networks, published sizes, magnitudes kept, and weights normalised in training."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from cmjax.config.run import read_run
from cmjax.interop.edm import read_edm2
from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.edm2 import EDM2, SIZES
from cmjax.nets.inputs import WeightHead
from cmjax.nets.magnitude import MPConv, MPLinear, mp_concat, mp_silu, mp_sum, normalize, normalize_weights
from cmjax.training.optimizer import averages, make_optimizer
from configs import common, digits_ct

CHECKPOINTS = Path(os.environ.get("CMJAX_SHARED", Path(__file__).parents[2] / "shared")) / "parity" / "ckpt"
TINY = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_channels": 8}
RANDOM = np.random.default_rng(0)
# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def recorded():
    """A state dict of EDM2's and the recorded inputs and outputs."""
    if not CHECKPOINTS.exists():
        pytest.skip(f"needs the recorded networks, {CHECKPOINTS}; CMJAX_SHARED names the folder that holds parity/")
    torch = pytest.importorskip("torch")
    states = torch.load(CHECKPOINTS / "edm2.pt", weights_only=True)
    with np.load(CHECKPOINTS / "edm2_io.npz") as file:
        io = {key: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for key, value in file.items()}
    return {key: value.numpy() for key, value in states.items()}, io


@pytest.fixture(scope="module")
def tiny():
    module = EDM2(**TINY, num_classes=3, dropout=0.5, weight_head=16)
    params = init_params(module, jax.random.key(0), (8, 8, 2))
    return as_net(module), jax.tree.map(lambda p: jnp.asarray(p) if p.ndim else jnp.ones(()), params)


def test_recorded_outputs_of_edm2(recorded):
    states, io = recorded
    foreign = read_edm2(states, {"head_channels": 16})
    assert foreign.shape == (16, 16, 3)
    x, sigma = np.float32(io["x"]), np.float32(io["sigma"])[:, None, None, None]
    scale = np.sqrt(sigma**2 + 0.25)
    net = quick_jit(partial(as_net(foreign.module), return_weight=True))
    out, weight = net(foreign.params, x / scale, np.log(sigma.ravel()) / 4, label=io["class_labels"].argmax(1))
    close = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    close(0.25 / scale**2 * x + 0.5 * sigma / scale * out, io["out"])
    close(weight, io["logvar"].ravel())


def test_state_dicts_must_match_key_by_key(recorded):
    states, _ = recorded
    network = read_edm2(states, {"head_channels": 16}).module
    assert (network.channels, network.channel_mult, network.blocks) == (16, (1, 2), 1)
    assert (network.attention_resolutions, network.num_classes, network.weight_head) == ((8,), 10, 32)
    changed = dict(states)
    del changed["unet.out_gain"]
    changed["unet.enc.16x16_spare.weight"] = np.zeros(3)
    changed["logvar_fourier.freqs"] = np.zeros(3)
    with pytest.raises(ValueError, match="of this network") as caught:
        read_edm2(changed, {"head_channels": 16})
    for said in ("missing out_gain", "left over enc.16x16_spare.weight", "logvar_fourier.freqs is (3,)"):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="head_channels=48"):
        read_edm2(states, {"head_channels": 48})
    with pytest.raises(ValueError, match="not EDM2's"):
        read_edm2({"unet.out_gain": np.zeros(())}, {})


@pytest.mark.parametrize(("size", "millions"), [("XS", 125), ("S", 280), ("XXL", 1523)])
def test_published_sizes(size, millions):
    module = EDM2(channels=SIZES[size], num_classes=1000, weight_head=128)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(module, (64, 64, 3))))
    assert round(count / 1e6) == millions


def test_magnitudes_are_kept():
    a, b, rms = normal(64, 64), normal(64, 32), lambda y: float(jnp.sqrt(jnp.mean(y**2)))
    gained = 2.5 * a
    for y in (mp_silu(a), mp_sum(a, normal(64, 64), 0.3), mp_concat(a, b, 0.3), normalize(gained)):
        assert abs(rms(y) - 1) < 0.05
    # The fraction of each part is its balance, whatever its width.
    parts = mp_concat(a, b, 0.2)
    np.testing.assert_allclose(rms(parts[:, 64:]) * 32**0.5 / (rms(parts[:, :64]) * 64**0.5), 0.25, rtol=0.1)
    for layer, x in ((MPLinear(48), a), (MPConv(48), normal(4, 16, 16, 8))):
        params = layer.init(jax.random.key(0), x)
        assert abs(rms(layer.apply(params, x)) - 1) < 0.08
        louder = jax.tree.map(lambda p: 7 * p, params)
        np.testing.assert_allclose(layer.apply(louder, x), layer.apply(params, x), atol=2e-3)
    np.testing.assert_array_equal(jax.grad(lambda y: normalize(y).sum())(jnp.zeros(4)) > 0, True)


def test_every_input_matters_and_dropout_follows_its_key(tiny):
    net, params = quick_jit(partial(tiny[0], return_weight=True)), tiny[1]
    inputs = {"x": normal(2, 8, 8, 2), "c_noise": jnp.array([-1.0, 0.5]), "label": jnp.array([0, 2])}
    out, weight = net(params, **inputs)
    assert (out.shape, weight.shape, out.dtype, weight.dtype) == ((2, 8, 8, 2), (2,), jnp.float32, jnp.float32)
    dropped, again, different = (net(params, **inputs, key=jax.random.key(seed))[0] for seed in (1, 1, 2))
    later, later_weight = net(params, **inputs | {"c_noise": inputs["c_noise"] + 0.1})
    for other in (later, net(params, **inputs | {"label": inputs["label"] - 1})[0], dropped):
        assert (jnp.abs(other - out).max((1, 2, 3)) > 1e-6).all()
    assert (jnp.abs(later_weight - weight) > 1e-6).all()
    np.testing.assert_array_equal(dropped, again)
    assert jnp.abs(dropped - different).max() > 1e-6
    unlabelled = {**inputs, "label": jnp.array([-1, -1])}
    np.testing.assert_array_equal(net(params, **unlabelled)[0], net(params, inputs["x"], inputs["c_noise"])[0])


def test_forward_mode_agrees_with_reverse_mode(tiny):
    net, params = tiny
    x, c_noise, out_dot = normal(1, 8, 8, 2), jnp.array([0.3]), normal(1, 8, 8, 2)
    tangents = normal(1, 8, 8, 2), jnp.array([0.7])
    forward = quick_jit(lambda *point: jax.jvp(partial(net, params), point, tangents)[1])(x, c_noise)
    gradients = quick_jit(lambda *point: jax.vjp(partial(net, params), *point)[1](out_dot))(x, c_noise)
    reverse = sum(jnp.vdot(a, b) for a, b in zip(gradients, tangents, strict=True))
    np.testing.assert_allclose(jnp.vdot(forward, out_dot), reverse, rtol=1e-3)


@pytest.mark.slow
def test_remat_and_half_precision_change_nothing_but_cost():
    fields = {**TINY, "channel_mult": (1,), "attention_resolutions": (), "weight_head": 4}
    params = init_params(EDM2(**fields), jax.random.key(0), (8, 8, 1))
    params = jax.tree.map(lambda p: p if p.ndim else np.ones((), np.float32), params)
    x, c_noise = normal(2, 8, 8, 1), jnp.zeros(2)

    def gradient(module):
        def loss(p):
            out, weight = as_net(module)(p, x, c_noise, return_weight=True)
            return jnp.sum(out**2) + jnp.sum(weight)

        return quick_jit(jax.grad(loss))(params)

    plain, remat = gradient(EDM2(**fields)), gradient(EDM2(**fields, remat=True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), plain, remat)
    for path, leaf in flatten_dict(plain).items():
        assert np.any(leaf) == (path[-1] not in ("frequencies", "phases")), path
    out, half = (
        quick_jit(as_net(EDM2(**fields, dtype=dtype)))(params, x, c_noise) for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - out).max() < 0.05 * jnp.abs(out).max()


def test_wrong_settings_and_inputs_are_named():
    x, c_noise = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    for fields, inputs, message in (
        ({"attention": "flash"}, {}, "attention must be one of xla, cudnn, got 'flash'"),
        ({"channel_mult": (1,) * 5}, {}, "multiples of 16"),
        ({"head_channels": 5}, {}, "head_channels=5"),
        ({"label_balance": 1.5}, {}, r"label_balance=1.5 must lie in \[0, 1\]"),
        ({}, {"label": jnp.zeros(1, int)}, "num_classes=0"),
        ({}, {"return_weight": True}, "weight_head=0"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(EDM2(**{**TINY, **fields}).init, **inputs), jax.random.key(0), x, c_noise)


@pytest.mark.parametrize("module", [EDM2(**TINY, num_classes=3, weight_head=4), EDM2(**TINY, remat=True)])
def test_first_parameters_need_no_compilation_and_follow_from_the_key(module, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    params, other = (init_params(module, jax.random.key(seed), (8, 8, 2)) for seed in (0, 1))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, parameter_shapes(module, (8, 8, 2)))
    assert not np.array_equal(params["encoder_0_conv"]["kernel"], other["encoder_0_conv"]["kernel"])
    np.testing.assert_allclose(params["encoder_1_block_0"]["conv_0"]["kernel"].std(), 1, rtol=0.05)
    assert params["out_gain"] == 0


def test_weight_heads():
    c_noise = jnp.linspace(-1.5, 1.0, 50)
    weight, _ = WeightHead(8).init_with_output(jax.random.key(0), c_noise)
    np.testing.assert_array_equal(weight, np.zeros(50))
    weight, _ = WeightHead(128, normalized=True).init_with_output(jax.random.key(0), c_noise)
    assert 0.3 < jnp.sqrt(jnp.mean(weight**2)) < 3


def weights_are_normal(params):
    return {
        "/".join(path): bool(np.allclose(np.sqrt(np.mean(leaf**2, tuple(range(leaf.ndim - 1)))), 1, atol=2e-3))
        for path, leaf in flatten_dict(params).items()
        if path[-1] == "kernel"
    }


def test_training_keeps_weights_normalised_and_averages_see_it():
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), parameter_shapes(EDM2(**TINY), (8, 8, 1)))
    optimizer = make_optimizer(
        optax.identity(), learning_rate=lambda step: 0.5, clip_norm=0.0, weight_decay=0.0,
        average_rates={"now": lambda step: 0.0}, projection=normalize_weights,
    )  # fmt: skip
    gradients = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), params)

    @quick_jit
    def step(params, gradients):
        updates, state = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    updated, state = jax.device_get(step(params, gradients))
    normal_after = weights_are_normal(updated)
    assert not any(weights_are_normal(jax.tree.map(lambda p: np.asarray(p) - 1.0, params)).values())
    assert len(normal_after) > 10
    assert all(normal_after.values())
    # Gains and constants take the update as it is.
    np.testing.assert_allclose(updated["out_gain"], params["out_gain"] - 1, atol=1e-6)
    np.testing.assert_allclose(updated["fourier"]["phases"], params["fourier"]["phases"] - 1, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), averages(state)["now"], updated)


@pytest.mark.parametrize("name", ["edm2", "unet"])
def test_exactly_edm2_is_trained_with_normalised_weights(name):
    config = digits_ct.get_config()
    config.net = common.edm2(**TINY) if name == "edm2" else common.ddpmpp()
    run = read_run(config.to_dict())
    params = {"layer": {"kernel": 3 * normal(4, 4)}}
    updates, _ = run.optimizer.update(params, run.optimizer.init(params), params)
    assert all(weights_are_normal(optax.apply_updates(params, updates)).values()) == (name == "edm2")
    if name == "edm2":
        assert isinstance(run.make_model(None).module, EDM2)
