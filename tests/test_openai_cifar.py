"""OpenAI's NCSN++ of CIFAR-10: an independent evaluation in its own layout, by plain convolutions, against ours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from cmjax.interop.keys import ForeignError
from cmjax.interop.openai_cifar import read_openai_cifar
from cmjax.interop.read import read_foreign
from cmjax.nets.adapter import as_net

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
SETTINGS = {"nf": 8, "mults": (1, 2), "blocks": 1, "attended": (8,)}
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


class Theirs:
    """The network as its code calls it. Parameters are drawn when first used, under the names that Flax gives."""

    def __init__(self):
        self.params, self.counts, self.rng = {}, {}, np.random.default_rng(0)

    def __call__(self, x, c_noise, *, nf, mults, blocks, attended):
        angles = 2 * np.pi * c_noise[:, None] * self.param("GaussianFourierProjection_0/W", (nf,))[None]
        embedding = self.dense("Dense_0", jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1), 4 * nf)
        embedding = self.dense("Dense_1", jax.nn.silu(embedding), 4 * nf)
        self.embedding = jax.nn.silu(embedding)
        pyramid, skips = x, [self.conv("Conv_0", x, nf)]
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                h = self.block(skips[-1], nf * mult)
                skips.append(self.attention(h) if h.shape[1] in attended else h)
            if level < len(mults) - 1:
                h = self.block(skips[-1], None, resample=down)
                wide = jnp.pad(pyramid, [(0, 0), (2, 2), (2, 2), (0, 0)])
                name = self.next("Downsample") + "/Conv2d_0"
                kernel = self.param(f"{name}/weight", (3, 3, x.shape[-1] if level == 0 else h.shape[-1], h.shape[-1]))
                small = lax_conv(filtered(wide, TAPS), kernel, stride=2, padding="VALID")
                pyramid = (small + self.param(f"{name}/bias", (h.shape[-1],))[None, None, None] + h) / 2**0.5
                skips.append(pyramid)
        h = self.block(skips[-1], None)
        h = self.block(self.attention(h), None)
        for level in reversed(range(len(mults))):
            for _ in range(blocks + 1):
                h = self.block(jnp.concatenate([h, skips.pop()], -1), nf * mults[level])
            h = self.attention(h) if h.shape[1] in attended else h
            h = self.block(h, None, resample=up) if level else h
        return self.conv("Conv_1", jax.nn.silu(self.norm("GroupNorm_0", h)), x.shape[-1])

    def block(self, x, width, resample=None):
        name, width = self.next("ResnetBlockBigGANpp"), width or x.shape[-1]
        h = jax.nn.silu(self.norm(f"{name}/GroupNorm_0", x))
        if resample:
            h, x = resample(h), resample(x)
        h = self.conv(f"{name}/Conv_0", h, width)
        h += self.dense(f"{name}/Dense_0", self.embedding, width)[:, None, None]
        h = self.conv(f"{name}/Conv_1", jax.nn.silu(self.norm(f"{name}/GroupNorm_1", h)), width)
        if resample or x.shape[-1] != width:
            x = self.conv(f"{name}/Conv_2", x, width, size=1)
        return (x + h) / 2**0.5

    def attention(self, x):
        name, (b, height, w, c) = self.next("AttnBlockpp"), x.shape
        h = self.norm(f"{name}/GroupNorm_0", x).reshape(b, height * w, c)
        q, k, v = (self.nin(f"{name}/NIN_{i}", h) for i in range(3))
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / c**0.5, -1)
        h = self.nin(f"{name}/NIN_3", jnp.einsum("bqk,bkc->bqc", weights, v)).reshape(x.shape)
        return (x + h) / 2**0.5

    def nin(self, name, x):
        return x @ self.param(f"{name}/W", (x.shape[-1],) * 2) + self.param(f"{name}/b", x.shape[-1:])[None, None]

    def dense(self, name, x, width):
        return x @ self.param(f"{name}/kernel", (x.shape[-1], width)) + self.param(f"{name}/bias", (width,))[None]

    def conv(self, name, x, width, size=3):
        kernel = self.param(f"{name}/kernel", (size, size, x.shape[-1], width))
        return lax_conv(x, kernel) + self.param(f"{name}/bias", (width,))[None, None, None]

    def norm(self, name, x):
        b, h, w, c = x.shape
        grouped = x.reshape(b, h * w, min(c // 4, 32), -1)
        mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
        scale, bias = self.param(f"{name}/scale", (c,)), self.param(f"{name}/bias", (c,))
        normed = ((grouped - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape)
        return normed * scale[None, None, None] + bias[None, None, None]

    def next(self, kind):
        self.counts[kind] = self.counts.get(kind, -1) + 1
        return f"{kind}_{self.counts[kind]}"

    def param(self, name, shape):
        fan_in = max(int(np.prod(shape[:-1])), 1)
        self.params[name] = np.float32(self.rng.standard_normal(shape) / fan_in**0.5)
        return self.params[name]


def lax_conv(x, kernel, stride=1, padding="SAME", **options):
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, jnp.asarray(kernel), (stride,) * 2, padding, **options)


def filtered(x, taps):
    c = x.shape[-1]
    kernel = np.repeat(np.float32(taps)[:, :, None, None], c, -1)
    return lax_conv(x, kernel, padding="VALID", feature_group_count=c)


def down(x):
    return filtered(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), TAPS)[:, ::2, ::2]


def up(x):
    b, h, w, c = x.shape
    spread = jnp.zeros((b, 2 * h, 2 * w, c)).at[:, ::2, ::2].set(x)
    return filtered(jnp.pad(spread, [(0, 0), (2, 1), (2, 1), (0, 0)]), 4 * TAPS)


@pytest.fixture(scope="module")
def recorded():
    rng, theirs = np.random.default_rng(1), Theirs()
    x, c_noise = np.float32(rng.standard_normal((2, 16, 16, 3))), np.float32([-1.0, 0.7])
    out = theirs(x, c_noise, **SETTINGS)
    return theirs.params, x, c_noise, out


@pytest.mark.slow
def test_the_same_outputs(recorded):
    params, x, c_noise, out = recorded
    foreign = read_openai_cifar(params, {"image_size": 16, "attention_resolutions": (8,)})
    ours = quick_jit(as_net(foreign.module))(foreign.params, x, c_noise)
    np.testing.assert_allclose(ours, out, rtol=0, atol=2e-5 * np.abs(out).max())


def test_where_the_network_attends_must_fit_the_file(recorded):
    params = recorded[0]
    for overrides in ({}, {"attention_resolutions": (8, 4)}, {"attention_resolutions": (2,)}):
        with pytest.raises(ForeignError, match=r"attention at 1 of its levels.*--arch-attention_resolutions"):
            read_openai_cifar(params, {"image_size": 8} | overrides)
    changed = {key: value for key, value in params.items() if key != "Dense_1/bias"} | {"Dense_9/bias": np.zeros(3)}
    with pytest.raises(ForeignError, match=r"missing Dense_1/bias; left over Dense_9/bias"):
        read_openai_cifar(changed, {"image_size": 16, "attention_resolutions": (8,)})


def test_the_average_is_read_from_a_flax_checkpoint(recorded, tmp_path):
    params, path = recorded[0], tmp_path / "cd-lpips" / "checkpoints" / "checkpoint_80"
    nested = unflatten_dict({tuple(key.split("/")): value for key, value in params.items()})
    state = {"step": 7, "lr": 1e-4, "params": {"Dense_0": {"kernel": np.zeros(2)}}, "params_ema": nested}
    path.parent.mkdir(parents=True)
    path.write_bytes(serialization.msgpack_serialize(state))
    told = {"image_size": 16, "attention_resolutions": (8,)}
    foreign, found = read_foreign(path, "auto", told)
    assert (found, foreign.kind) == ("openai_cifar", "consistency")
    expected = read_openai_cifar(params, told)
    jax.tree.map(np.testing.assert_array_equal, foreign.params, expected.params)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ForeignError, match="neither a PyTorch file"):
        read_foreign(path, "auto", told)
