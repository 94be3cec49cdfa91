"""The U-Nets: published sizes, and what training asks of them. Their parity with the peers is in test_interop.py."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.adm import ADM, OPENAI
from cmjax.nets.blocks import MODULATIONS, ResidualBlock, SelfAttention, attend
from cmjax.nets.edm2 import EDM2
from cmjax.nets.layers import (
    Dropout,
    GroupNorm,
    Xavier,
    convolve,
    downsample,
    from_patches,
    group_norm,
    to_patches,
    upsample,
)
from cmjax.nets.unet import DDPMPP, NCSNPP, UNet

TINY = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
RANDOM = np.random.default_rng(0)
# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def tiny():
    module = UNet(**TINY, **NCSNPP, num_classes=3, augment_dim=2, dropout=0.5)
    params = init_params(module, jax.random.key(0), (8, 8, 2))
    # The zero-like output layers would hide everything behind them.
    loud = {path: leaf if np.abs(leaf).max() > 1e-3 else leaf + 1e-2 for path, leaf in flatten_dict(params).items()}
    return as_net(module), jax.tree.map(jnp.asarray, unflatten_dict(loud))


def shapes_of(module, shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "size", "count"),
    [
        (UNet(**DDPMPP), 32, 55_732_739),
        (UNet(**NCSNPP), 32, 56_395_651),
        (ADM(num_classes=1000), 64, 295_899_267),
        (ADM(**OPENAI, channels=256, channel_mult=(1, 1, 2, 2, 4, 4), blocks=2, modulation="shift"), 256, 526_304_771),
    ],
    ids=["DDPM++", "NCSN++", "ADM ImageNet-64", "ADM LSUN-256"],
)
def test_published_sizes(module, size, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module, (size, size, 3)))) == count


def test_every_input_matters_and_dropout_follows_its_key(tiny):
    net, params = quick_jit(tiny[0]), tiny[1]
    # Every call has the same arguments, or a key besides: two programs.
    inputs = {"x": normal(2, 8, 8, 2), "c_noise": jnp.array([-1.0, 0.5])}
    inputs |= {"label": jnp.array([0, 2]), "augment": jnp.zeros((2, 2))}
    x = inputs["x"]
    out = net(params, **inputs)
    assert out.shape == x.shape
    dropped, again, different = (net(params, **inputs, key=jax.random.key(seed)) for seed in (1, 1, 2))
    for other in (
        net(params, **inputs | {"c_noise": inputs["c_noise"] + 0.1}),
        net(params, **inputs | {"label": inputs["label"] - 1}),
        net(params, **inputs | {"augment": jnp.ones((2, 2))}),
        dropped,
    ):
        assert (jnp.abs(other - out).max((1, 2, 3)) > 1e-6).all()
    np.testing.assert_array_equal(dropped, again)
    assert jnp.abs(dropped - different).max() > 1e-6
    # A sample knows nothing of the others in its batch.
    np.testing.assert_allclose(net(params, **inputs | {"x": x.at[0].add(1.0)})[1], out[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
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
    fields = {**TINY, **NCSNPP, "channel_mult": (1,), "attention_resolutions": ()}
    params = init_params(UNet(**fields), jax.random.key(0), (8, 8, 1))
    x, c_noise = normal(2, 8, 8, 1), jnp.zeros(2)

    def gradient(module):
        return quick_jit(jax.grad(lambda p: jnp.sum(as_net(module)(p, x, c_noise, key=jax.random.key(0)) ** 2)))(params)

    plain, remat = gradient(UNet(**fields)), gradient(UNet(**fields, remat=True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-9), plain, remat)
    assert not np.any(plain["embedding"]["frequencies"])
    out, half = (
        quick_jit(as_net(UNet(**fields, dtype=dtype)))(params, x, c_noise) for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - out).max() < 0.05 * jnp.abs(out).max()


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_encoders_and_decoders_at_odd_depths(encoder, decoder):
    module = UNet(
        channels=8, channel_mult=(1, 1, 2), blocks=1, encoder=encoder, decoder=decoder, resample_filter=(1, 3, 3, 1)
    )
    shape = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 28, 28, 1)), jnp.zeros(2))[0]
    assert shape.shape == (2, 28, 28, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fields"),
    [(UNet, TINY | NCSNPP), (ADM, TINY | {"head_channels": 8, "norm_groups": 8}), (EDM2, TINY | {"head_channels": 8})],
    ids=["unet", "adm", "edm2"],
)
def test_a_network_of_patches_is_the_network_of_their_grid(kind, fields):
    of_patches, of_points = kind(**fields, patch=2), kind(**fields)
    x, c_noise = normal(2, 16, 8, 2), jnp.array([-1.0, 0.5])
    params = init_params(of_patches, jax.random.key(0), x.shape[1:])
    params = jax.tree.map(lambda leaf: leaf + 1e-2, params)  # the layers that start at zero would hide the others
    out = quick_jit(as_net(of_patches))(params, x, c_noise)
    expected = from_patches(quick_jit(as_net(of_points))(params, to_patches(x, 2), c_noise), 2)
    assert out.shape == x.shape
    assert jnp.abs(out).max() > 1e-3
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_wrong_settings_and_inputs_are_named():
    x, c_noise = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    for fields, inputs, message in (
        ({"encoder": "pyramid"}, {}, "encoder must be one of"),
        ({"channel_mult": (1,) * 5}, {}, "multiples of 16"),
        ({}, {"label": jnp.zeros(1, int)}, "num_classes=0"),
        ({}, {"augment": jnp.zeros((1, 2))}, "augment_dim=0"),
        ({"channels": 9, "channel_mult": (1, 1)}, {}, "channels=9"),
        ({"modulation": "scale"}, {}, "modulation must be one of shift, scale_shift, double_norm"),
        ({"attention": "flash"}, {}, "attention must be one of xla, cudnn"),
        ({}, {"return_weight": True}, "weight_head=0"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(UNet(**{**TINY, **fields}).init, **inputs), jax.random.key(0), x, c_noise)
    for fields, message in (({"head_channels": 12}, "head_channels=12"), ({"heads": 3}, "heads=3")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(ADM(**{**TINY, **fields}).init, jax.random.key(0), x, c_noise)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_modulations_by_definition(modulation):
    block = ResidualBlock(8, modulation=modulation, skip_scale=1.0)
    x, embedding = normal(2, 4, 4, 8), normal(2, 5)
    shapes = block.init(jax.random.key(0), x, embedding, True)["params"]
    p = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)
    out = block.apply({"params": p}, x, embedding, True)

    def norm(name, h):
        return GroupNorm().apply({"params": p[name]}, h)

    def conv(name, h):
        return convolve(h, p[name]["kernel"], 1) + p[name]["bias"][None, None, None]

    e = (embedding @ p["affine"]["kernel"] + p["affine"]["bias"][None])[:, None, None]
    h = conv("conv_0", jax.nn.silu(norm("norm_0", x)))
    if modulation == "shift":
        h = norm("norm_1", h + e)
    else:
        s, b = e[..., :8], e[..., 8:]
        if modulation == "double_norm":
            s, b = (a / jnp.sqrt((a**2).mean(-1, keepdims=True) + 1e-8) for a in (s, b))
        h = norm("norm_1", h) * (s if modulation == "double_norm" else 1 + s) + b
    np.testing.assert_allclose(out, x + conv("conv_1", jax.nn.silu(h)), rtol=1e-4, atol=1e-4)


def test_attention_by_heads_is_that_of_jax():
    q, k, v = (normal(2, 6, 3, 4) for _ in range(3))
    np.testing.assert_allclose(attend(q, k, v), jax.nn.dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_adm_starts_at_zero_and_uses_all_its_inputs():
    fields = TINY | {"head_channels": 4, "num_classes": 3, "augment_dim": 2, "dropout": 0.5}
    params = init_params(ADM(**fields), jax.random.key(0), (8, 8, 2))
    net = quick_jit(as_net(ADM(**fields)))
    inputs = {"x": normal(2, 8, 8, 2), "c_noise": jnp.array([-1.0, 0.5]), "label": jnp.array([0, 2])}
    inputs |= {"augment": jnp.zeros((2, 2))}
    np.testing.assert_array_equal(net(params, **inputs), 0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), params)
    out = net(params, **inputs)
    for change in (
        {"x": inputs["x"] + 1},
        {"c_noise": inputs["c_noise"] + 0.1},
        {"label": inputs["label"] - 1},
        {"augment": jnp.ones((2, 2))},
        {"key": jax.random.key(0)},
    ):
        assert (jnp.abs(net(params, **inputs | change) - out).max((1, 2, 3)) > 1e-6).all(), list(change)


def test_first_parameters_follow_from_the_key_and_have_their_initialisers_scale():
    module = UNet(**TINY, **NCSNPP)
    params, again, other = (init_params(module, jax.random.key(seed), (8, 8, 3)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes_of(module, (8, 8, 3)))
    block = params["encoder_1_block_0"]
    assert not np.array_equal(block["conv_0"]["kernel"], other["encoder_1_block_0"]["conv_0"]["kernel"])
    for layer, gain in (("conv_0", 1.0), ("conv_1", 1e-5)):
        kernel = block[layer]["kernel"]
        np.testing.assert_allclose(kernel.std(), Xavier(gain).bound(kernel.shape) / 3**0.5, rtol=0.1)
    assert (block["norm_0"]["scale"] == 1).all()
    remat = init_params(module.clone(remat=True), jax.random.key(0), (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, params, remat)


class Offset(nn.Module):
    """A parameter of which no attribute tells."""

    @nn.compact
    def __call__(self, x, c_noise):
        return x + self.param("offset", nn.initializers.constant(3.0), ())


def test_first_parameters_of_any_module():
    assert init_params(Offset(), jax.random.key(0), (2,))["offset"] == 3


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)])
def test_resampling_is_the_convolution_with_the_taps(taps):
    x = normal(2, 6, 8, 3)
    kernel = np.outer(taps, taps)[:, :, None, None] / sum(taps) ** 2 * np.ones((1, 1, 1, 3))
    reach = len(taps) // 2 - 1
    depthwise = partial(
        jax.lax.conv_general_dilated, x, feature_group_count=3, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    down = depthwise(jnp.float32(kernel), (2, 2), [(reach, reach)] * 2)
    np.testing.assert_allclose(downsample(x, taps), down, atol=1e-6)
    pads = [(len(taps) - 1 - reach,) * 2] * 2
    up = depthwise(jnp.float32(4 * kernel), (1, 1), pads, lhs_dilation=(2, 2))
    np.testing.assert_allclose(upsample(x, taps), up, atol=1e-6)


@pytest.mark.parametrize("ratio", [10.0, 100.0, 300.0])
def test_group_norm_far_from_zero_keeps_its_bound(ratio):
    """E[x²] − mean² in float32: the error, of values and of gradients, is below 6e-7·(mean/std)²."""
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 16)) + ratio
    weights = np.random.default_rng(1).standard_normal(x.shape)

    def norm(x):
        return group_norm(x, jnp.ones(16, x.dtype), jnp.zeros(16, x.dtype), groups=4, eps=1e-6)

    def both(x, weights):
        return norm(x), jax.grad(lambda x: jnp.sum(weights * norm(x)))(x)

    grouped = x.reshape(2, 64, 4, 4)
    mean, std = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.std))
    y = (grouped - mean) / np.sqrt(std**2 + 1e-6)
    g = weights.reshape(grouped.shape)
    slope = (g - g.mean((1, 3), keepdims=True) - y * (g * y).mean((1, 3), keepdims=True)) / np.sqrt(std**2 + 1e-6)
    for ours, exact in zip(both(jnp.float32(x), jnp.float32(weights)), (y, slope), strict=True):
        assert np.abs(np.asarray(ours) - exact.reshape(x.shape)).max() < 6e-7 * ratio**2 + 1e-5


def test_group_norm_and_attention_by_definition():
    x = 3 * normal(2, 4, 4, 8) + 5
    norm = GroupNorm()
    grouped = np.asarray(x).reshape(2, 16, 2, 4)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    params = norm.init(jax.random.key(0), x)
    np.testing.assert_allclose(
        norm.apply(params, x), ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape), atol=1e-5
    )
    attention = SelfAttention(heads=2)
    params = {"params": jax.tree.map(lambda p: normal(*p.shape), attention.init(jax.random.key(0), x)["params"])}
    p = params["params"]
    h = norm.apply({"params": p["norm"]}, x) @ p["qkv"]["kernel"] + p["qkv"]["bias"][None, None, None]
    q, k, v = (part.reshape(2, 16, 2, 4) for part in jnp.split(h.reshape(2, 16, 24), 3, axis=2))
    usual = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    expected = x + usual @ p["proj"]["kernel"] + p["proj"]["bias"][None, None, None]
    np.testing.assert_allclose(attention.apply(params, x), expected, rtol=1e-4, atol=1e-4)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((64, 64, 5))
    y = np.asarray(Dropout(0.3).apply({}, x, False, rngs={"dropout": jax.random.key(0)}))
    assert abs((y == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-4)
    # Neighbouring halves of the channels fraction draws of 32 bits, and must not fraction fates.
    assert abs(np.mean((y[..., 0] == 0) & (y[..., 3] == 0)) - 0.09) < 0.02
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, True), x)
