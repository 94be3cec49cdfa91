"""DiT: published sizes, blocks that start as the identity, and what training asks of a network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.dit import SIZES, DiT
from cmjax.nets.dit_blocks import Block, modulated, normed, positions, rotated
from cmjax.nets.layers import from_patches, to_patches

TINY = {"patch": 2, "width": 16, "depth": 2, "heads": 2, "time_scale": 4.0}
RANDOM = np.random.default_rng(0)
# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def loud(module, shape):
    """Parameters without the zeros that would hide everything behind them."""
    return jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), parameter_shapes(module, shape))


@pytest.fixture(scope="module")
def tiny():
    module = DiT(**TINY, two_times=True, num_classes=3, dropout=0.5, weight_head=8)
    return as_net(module), loud(module, (8, 4, 3))


@pytest.mark.parametrize(("size", "count"), [("B", 130_315_808), ("XL", 674_834_720)])
def test_published_sizes(size, count):
    # Published: 130 and 675 million, of which positions are 196,608 and 294,912; the network predicts variances, too.
    module = DiT(patch=2, **SIZES[size], num_classes=1000, out_channels=8)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(module, (32, 32, 4)))) == count


def test_it_starts_at_zero_and_its_blocks_as_identities(monkeypatch):
    module = DiT(**TINY, num_classes=3)
    with monkeypatch.context() as without_compiling:
        without_compiling.setattr(jax, "jit", None)
        params = init_params(module, jax.random.key(0), (8, 8, 2))
    x, c_noise = normal(2, 8, 8, 2), jnp.array([-1.0, 0.5])
    net = quick_jit(as_net(module))
    np.testing.assert_array_equal(net(params, x, c_noise, label=jnp.array([0, -1])), jnp.zeros_like(x))
    block, h, embedding = Block(2, 4.0, 0.0, "xla", jnp.float32), normal(2, 5, 16), normal(2, 16)
    out = block.apply({"params": params["block_1"]}, h, embedding, True)
    np.testing.assert_array_equal(out, h)
    # The zeros are not the end of learning: the last layer has a gradient.
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(as_net(module)(p, x, c_noise) * x)))(params)
    assert np.any(gradient["out"]["kernel"])


def test_every_input_matters_and_dropout_follows_its_key(tiny):
    net, params = quick_jit(partial(tiny[0], return_weight=True)), tiny[1]
    inputs = {"x": normal(2, 8, 4, 3), "c_noise": jnp.array([-1.0, 0.5]), "c_noise_s": jnp.array([-1.2, 0.4])}
    inputs |= {"label": jnp.array([0, 2])}
    out, weight = net(params, **inputs)
    assert (out.shape, weight.shape, out.dtype, weight.dtype) == ((2, 8, 4, 3), (2,), jnp.float32, jnp.float32)
    dropped, again, different = (net(params, **inputs, key=jax.random.key(seed))[0] for seed in (1, 1, 2))
    for other in (
        net(params, **inputs | {"c_noise": inputs["c_noise"] + 0.1})[0],
        net(params, **inputs | {"c_noise_s": inputs["c_noise_s"] + 0.1})[0],
        net(params, **inputs | {"c_noise": inputs["c_noise_s"], "c_noise_s": inputs["c_noise"]})[0],
        net(params, **inputs | {"label": inputs["label"] - 1})[0],
        dropped,
    ):
        assert (jnp.abs(other - out).max((1, 2, 3)) > 1e-4).all()
    # Places are told apart: a shifted image is not merely shifted.
    rolled = net(params, **inputs | {"x": jnp.roll(inputs["x"], 2, axis=1)})[0]
    assert jnp.abs(rolled - jnp.roll(out, 2, axis=1)).max() > 1e-3
    np.testing.assert_array_equal(dropped, again)
    assert jnp.abs(dropped - different).max() > 1e-6
    unlabelled = inputs | {"label": jnp.array([-1, -1])}
    without = {name: value for name, value in inputs.items() if name != "label"}
    np.testing.assert_array_equal(net(params, **unlabelled)[0], net(params, **without)[0])
    # A sample knows nothing of the others in its batch.
    np.testing.assert_allclose(net(params, **inputs | {"x": inputs["x"].at[0].add(1.0)})[0][1], out[1], atol=1e-4)


def test_forward_mode_agrees_with_reverse_mode(tiny):
    net, params = tiny
    point = normal(1, 4, 4, 3), jnp.array([0.3]), jnp.array([0.1])
    tangents, out_dot = (normal(1, 4, 4, 3), jnp.array([0.7]), jnp.array([-0.4])), normal(1, 4, 4, 3)

    def at(x, c_noise, c_noise_s):
        return net(params, x, c_noise, c_noise_s=c_noise_s)

    forward = quick_jit(lambda *point: jax.jvp(at, point, tangents)[1])(*point)
    gradients = quick_jit(lambda *point: jax.vjp(at, *point)[1](out_dot))(*point)
    reverse = sum(jnp.vdot(a, b) for a, b in zip(gradients, tangents, strict=True))
    np.testing.assert_allclose(jnp.vdot(forward, out_dot), reverse, rtol=1e-3)


def test_remat_and_half_precision_change_nothing_but_cost():
    fields = TINY | {"depth": 1}
    params = loud(DiT(**fields), (4, 4, 1))
    x, c_noise = normal(2, 4, 4, 1), jnp.zeros(2)

    def gradient(module):
        return quick_jit(jax.grad(lambda p: jnp.sum(as_net(module)(p, x, c_noise, key=jax.random.key(0)) ** 2)))(params)

    plain, remat = gradient(DiT(**fields)), gradient(DiT(**fields, remat=True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), plain, remat)
    for path, leaf in flatten_dict(plain).items():
        assert np.any(leaf), path
    out, half = (quick_jit(as_net(DiT(**fields, dtype=dtype)))(params, x, c_noise) for dtype in ("float32", "bfloat16"))
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - out).max() < 0.05 * jnp.abs(out).max()


def test_wrong_settings_and_inputs_are_named():
    x, c_noise = jnp.zeros((1, 8, 6, 1)), jnp.zeros(1)
    for fields, inputs, message in (
        ({"patch": 4}, {}, "patch=4 does not divide height and width, 8x6"),
        ({"patch": 0}, {}, "patch=0 must be at least 1"),
        ({"heads": 3}, {}, "heads=3 does not divide width=16"),
        ({"width": 18}, {}, "width=18 must be a multiple of 4"),
        ({"rope": True, "width": 20}, {}, "rope=True: width=20 must be a multiple of 4·heads=8"),
        ({"second_time_from": 1}, {}, "second_time_from=1 is of a network with two_times=True"),
        ({"second_time_from": 3, "two_times": True}, {}, "second_time_from=3 must be at most depth=2"),
        ({"norm": "batch"}, {}, "norm must be one of layer, rms, got 'batch'"),
        ({"attention": "flash"}, {}, "attention must be one of xla, cudnn, got 'flash'"),
        ({}, {"label": jnp.zeros(1, int)}, "num_classes=0"),
        ({}, {"c_noise_s": jnp.zeros(1)}, "two_times=False"),
        ({}, {"return_weight": True}, "weight_head=0"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(DiT(**{**TINY, **fields}).init, **inputs), jax.random.key(0), x, c_noise)
    with pytest.raises(ValueError, match="c_noise_s must be given"):
        jax.eval_shape(DiT(**TINY, two_times=True).apply, {"params": {}}, x, c_noise)


@pytest.mark.parametrize("first_of_second", [1, 2])
def test_blocks_see_the_first_time_and_later_ones_the_second(first_of_second):
    """At one time it is the network of one time, with its parameters; the states before a block see the first alone."""
    fields = TINY | {"num_classes": 3}
    module = DiT(**fields, two_times=True, second_time_from=first_of_second)
    one_time, shape = DiT(**fields), (4, 4, 1)
    params = loud(module, shape)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameter_shapes(one_time, shape))
    x, t, s, label = normal(2, *shape), jnp.array([0.1, 0.7]), jnp.array([0.0, 0.2]), jnp.array([0, -1])
    np.testing.assert_array_equal(
        quick_jit(as_net(module))(params, x, t, c_noise_s=t, label=label),
        quick_jit(as_net(one_time))(params, x, t, label=label),
    )

    def states(t, s):
        """The output of each block, and F."""
        out, seen = module.apply({"params": params}, x, t, c_noise_s=s, capture_intermediates=True, mutable=True)
        return [seen["intermediates"][f"block_{i}"]["__call__"][0] for i in range(2)] + [out]

    states = quick_jit(states)
    at, first_moved, second_moved = states(t, s), states(t + 0.1, s), states(t, s + 0.1)
    for i, state in enumerate(at):
        assert jnp.abs(first_moved[i] - state).max() > 1e-3
        assert bool(jnp.any(second_moved[i] != state)) == (i >= first_of_second)


def test_rotations_make_attention_see_differences_of_places_alone():
    q, k = (jnp.broadcast_to(normal(8), (1, 12, 1, 8)) for _ in range(2))
    logits = jnp.einsum("bnhc,bmhc->nm", rotated(q, 3, 4), rotated(k, 3, 4)).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(logits[0, 0, 1, 2], logits[1, 1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(logits[2, 3, 2, 3], jnp.vdot(q[0, 0], k[0, 0]), atol=1e-5)
    assert len(np.unique(logits[0, 0].round(5))) == 12
    assert jnp.abs(logits[0, 0, 0, 1] - logits[0, 1, 0, 0]) > 1e-3  # the way matters, too


def test_every_option_has_parameters_that_matter():
    options = {"norm": "rms", "qk_norm": True, "rope": True, "mlp": "swiglu", "learned_positions": True}
    module = DiT(**TINY | {"depth": 1}, **options)
    params = loud(module, (4, 4, 1))
    x, c_noise = normal(2, 4, 4, 1), jnp.array([0.1, 0.7])
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(as_net(module)(p, x, c_noise) ** 2)))(params)
    for path, leaf in flatten_dict(gradient).items():
        assert np.any(leaf), path
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}
    expected = {"positions": (4, 16), "out_norm/scale": (16,), "block_0/norm_1/scale": (16,)}
    expected |= {"block_0/q_norm/scale": (8,), "block_0/mlp_0/kernel": (16, 86), "block_0/mlp_1/kernel": (43, 16)}
    assert expected.items() <= shapes.items()


def test_patches_positions_and_norm_by_definition():
    x = normal(2, 4, 6, 3)
    patches = to_patches(x, 2)
    np.testing.assert_array_equal(patches[:, 1, 1], x[:, 2:4, 2:4].reshape(2, -1))  # the second of each axis
    np.testing.assert_array_equal(from_patches(patches, 2), x)
    place = positions(2, 3, 8)[4]
    np.testing.assert_allclose(place, np.tile([np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], 2))
    assert len(np.unique(positions(16, 16, 384).round(6), axis=0)) == 256
    h, shift, scale = 3 * normal(2, 4, 8) + 5, normal(2, 1, 8), normal(2, 1, 8)
    mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    np.testing.assert_allclose(
        modulated(normed(h, "layer", ""), shift, scale),
        (h - mean) / np.sqrt(var + 1e-6) * (1 + scale) + shift,
        atol=1e-5,
    )
