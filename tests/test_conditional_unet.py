"""The U-Net of Stable Diffusion: its recorded outputs and gradients, its names and shapes, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from cmjax.interop.conditional_unet import (
    CLASS,
    load_unet,
    unet_config,
    unet_key,
    unet_module,
    unet_shapes,
    unet_to_torch,
    write_unet,
)
from cmjax.interop.keys import ForeignError
from cmjax.nets.conditional_blocks import guidance_waves, time_waves
from tests.recorded_parts import assert_near, quick_jit


def nhwc(array):
    return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


class Net:
    """A U-Net with what was recorded of it, and one compiled function."""

    def __init__(self, sd, folder, file, prefix=""):
        self.module, self.params = load_unet(sd / folder)
        self.recorded, self.prefix = np.load(sd / f"{file}.npz"), prefix
        self.apply = quick_jit(lambda params, x, t, **inputs: self.module.apply({"params": params}, x, t, **inputs))

    def case(self, case, name):
        return self.recorded[f"{self.prefix}{case}/{name}"]

    def check(self, case):
        x, t, context, out = (self.case(case, name) for name in ("latents", "t", "context", "out"))
        inputs = {"context": context}
        if f"{self.prefix}{case}/timestep_cond" in self.recorded.files:
            inputs["guidance_embedding"] = self.case(case, "timestep_cond")
        assert_near(self.apply(self.params, nhwc(x), np.float32(t), **inputs), nhwc(out))


@pytest.fixture(scope="module")
def sd15(sd):
    return Net(sd, "pipeline/unet", "unet")


@pytest.fixture(scope="module")
def lcm(sd):
    return Net(sd, "lcm/unet", "unet_lcm")


@pytest.fixture(scope="module")
def sd2(sd):
    return Net(sd, "sd2/unet", "sd2", "unet/")


@pytest.mark.parametrize("case", ["batch3", "odd"])
def test_recorded_outputs(sd15, case):
    sd15.check(case)


def test_recorded_outputs_of_an_lcm(lcm):
    lcm.check("batch3")
    lcm.check("no_cond")


def test_recorded_outputs_with_matrices_and_heads_of_each_level(sd2):
    sd2.check("batch3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["one_t", "tall", "wide", "indivisible", "odd", "context5", "context154", "fractional_t"]
)
def test_recorded_outputs_of_every_other_case(sd15, lcm, sd2, case):
    for net in (sd15, lcm, sd2):
        if f"{net.prefix}{case}/out" in net.recorded.files:
            net.check(case)


@pytest.mark.slow
def test_bfloat16_is_near(sd, lcm):
    module, params = load_unet(sd / "lcm" / "unet", dtype=jnp.bfloat16)
    x, t, context, guidance = (
        jnp.asarray(lcm.case("batch3", name), jnp.float32) for name in ("latents", "t", "context", "timestep_cond")
    )
    out = quick_jit(module.apply)(
        {"params": params}, jnp.moveaxis(x, 1, -1), t, context=context, guidance_embedding=guidance
    )
    assert out.dtype == jnp.float32
    assert_near(out, nhwc(lcm.case("batch3", "out")), 0.05)


@pytest.mark.parametrize(("net", "case"), [("sd15", "scaled_down"), ("sd2", "scaled_down")])
def test_eps_of_norms(request, net, case):
    net = request.getfixturevalue(net)
    weak = [
        "conv_in",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
        "samplers",
        "proj_in",
        "proj_out",
        "to_out",
        "ff.net.2",
    ]
    params = unflatten_dict(
        {
            path: leaf / 32 if any(name in unet_key(path) for name in weak) else leaf
            for path, leaf in flatten_dict(net.params).items()
        }
    )
    x, t, context = (net.case("batch3", name) for name in ("latents", "t", "context"))
    out = net.apply(params, nhwc(x), t.astype(np.float32), context=context)
    assert_near(out, nhwc(net.case(case, "out")))


@pytest.mark.slow
def test_recorded_gradients_with_recomputed_blocks(sd, sd15):
    module, params = load_unet(sd / "pipeline" / "unet", remat=True)
    x, t, context, probe = (
        sd15.recorded[name] for name in ("batch3/latents", "batch3/t", "batch3/context", "grad/probe")
    )

    @quick_jit
    def gradients(params, x, context):
        def loss(params, x, context):
            out = module.apply({"params": params}, x, jnp.asarray(t, jnp.float32), context=context)
            return jnp.sum(out * nhwc(probe))

        return jax.grad(loss, (0, 1, 2))(params, x, context)

    of_params, of_x, of_context = gradients(params, nhwc(x), context)
    assert_near(of_x, nhwc(sd15.recorded["grad/latents"]), 1e-4)
    assert_near(of_context, sd15.recorded["grad/context"], 1e-4)
    named = {unet_key(path): np.asarray(value) for path, value in flatten_dict(of_params).items()}
    keys = [name.removeprefix("grad/") for name in sd15.recorded.files if name.startswith("grad/")]
    compared = [key for key in keys if key in named]
    assert len(compared) == 5
    for key in compared:
        ours = unet_to_torch(key.rpartition(".")[0], named[key], linear=True)
        assert_near(ours, sd15.recorded[f"grad/{key}"], 1e-4)


def test_recorded_waves(sd, sd15):
    recorded = np.load(sd / "lcm.npz")
    w = jnp.asarray(recorded["w"], jnp.float32)
    for size, tolerance in ((20, 1e-6), (33, 1e-6), (256, 2e-3)):  # of 256 two frequencies are rounded otherwise
        assert_near(guidance_waves(w, size), recorded[f"w_embedding_{size}"], tolerance)
    assert_near(guidance_waves(w, 256), recorded["w_embedding_256_exact_f64"], 1e-3)
    waves = sd15.recorded["batch3/act/time_proj"]
    assert_near(time_waves(jnp.asarray(sd15.recorded["batch3/t"], jnp.float32), waves.shape[1]), waves, 1e-6)
    sines_first = time_waves(jnp.array([3.0]), 4, cosines_first=False, shift=1)
    assert_near(sines_first[0], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], 1e-6)


@pytest.mark.parametrize("folder", ["fp16/unet", "sharded/unet"])
def test_variants_of_the_files_are_the_same_weights(sd, sd15, folder):
    module, params = load_unet(sd / "variants" / folder)
    assert module == sd15.module
    jax.tree.map(np.testing.assert_array_equal, params, sd15.params)


def test_a_config_of_2022_is_the_same_network(sd, sd15):
    config = json.loads((sd / "variants" / "legacy" / "unet" / "config.json").read_text())
    assert unet_module(config, "legacy") == sd15.module


SDXL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("unet-sd15", {"cross_attention_dim": 768}),
        ("unet-lcm-dreamshaper", {"cross_attention_dim": 768, "time_cond_proj_dim": 256}),
        pytest.param("unet-sdxl", SDXL, marks=pytest.mark.slow),
    ],
)
def test_full_size_names_and_shapes(shared, name, config):
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    module = unet_module({"_class_name": CLASS, **config}, name)
    ours = {}
    for path, leaf in unet_shapes(module).items():
        key = unet_key(path)
        weight = np.broadcast_to(np.float32(0), leaf.shape)
        linear = config.get("use_linear_projection", False)
        ours[key] = unet_to_torch(key.rpartition(".")[0], weight, linear=linear).shape
    assert ours == {key: tuple(shape) for key, shape in keys.items()}


TINY = {
    "_class_name": CLASS,
    "block_out_channels": [8, 12],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": [1, 2],
    "transformer_layers_per_block": [1, 2],
    "num_attention_heads": 3,
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 29,
}


@pytest.mark.slow
def test_pooled_prompts_and_sizes_are_seen():
    module = unet_module(TINY, "tiny")
    assert (module.pooled_width, module.sizes, module.heads, module.blocks) == (5, 6, (3, 3), (1, 2))
    x, t = jnp.ones((2, 4, 4, 4)), jnp.array([1.0, 500.0])
    inputs = {"context": jnp.ones((2, 3, 6)), "pooled": jnp.ones((2, 5)), "sizes": jnp.full((2, 6), 64.0)}
    params = jax.jit(module.init)(jax.random.key(0), x, t, **inputs)
    run = jax.jit(module.apply)
    out = run(params, x, t, **inputs)
    for name, changed in (("pooled", jnp.zeros((2, 5))), ("sizes", inputs["sizes"].at[1, 5].set(32.0))):
        other = run(params, x, t, **inputs | {name: changed})
        assert np.abs(out - other).max() > 1e-4
    np.testing.assert_array_equal(out[0], other[0])
    with pytest.raises(ValueError, match="pooled must be given to a network that takes it, of 5 features"):
        module.apply(params, x, t, **inputs | {"pooled": None})
    with pytest.raises(ValueError, match=r"context must have 6 features, got \(2, 3, 7\)"):
        module.apply(params, x, t, **inputs | {"context": jnp.ones((2, 3, 7))})
    with pytest.raises(ValueError, match="guidance_embedding was given to a network that does not take it"):
        module.apply(params, x, t, **inputs, guidance_embedding=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="x must have 4 channels"):
        module.apply(params, x[..., :3], t, **inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "is of the class FluxTransformer2DModel; UNet2DConditionModel is"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not read, None is"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types=.* must be of DownBlock2D and CrossAttn"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types has 3 levels, block_out_channels 2"),
        ({"num_attention_heads": [2] * 3}, "num_attention_heads has 3 levels, block_out_channels 2"),
        ({"norm_num_groups": 8}, "norm_num_groups=8 does not divide block_out_channels of 12"),
        (
            {"projection_class_embeddings_input_dim": 24},
            "input_dim=24 must be more than 6 times addition_time",
        ),
        ({"act_fn": "tanh"}, "act_fn='tanh' must be one of silu"),
    ],
)
def test_what_is_no_such_network_is_refused(changes, message):
    with pytest.raises(ForeignError, match=message):
        unet_module(TINY | changes, "config.json")


@pytest.mark.parametrize("folder", ["pipeline/unet", "lcm/unet", "sd2/unet"])
def test_what_is_written_is_what_was_read(sd, tmp_path, folder):
    """Every field of the config has the value that diffusers wrote, and every weight."""
    module, params = load_unet(sd / folder)
    write_unet(tmp_path, module, params, sample_size=8)
    theirs, ours = (json.loads((path / "config.json").read_text()) for path in (sd / folder, tmp_path))
    assert {name: theirs.get(name) for name in ours} == ours
    arrays, recorded = (load_file(path / "diffusion_pytorch_model.safetensors") for path in (tmp_path, sd / folder))
    assert arrays.keys() == recorded.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, recorded[key])


@pytest.mark.parametrize("config", [TINY, {"_class_name": CLASS, **SDXL}], ids=["tiny", "sdxl"])
def test_a_config_with_pooled_prompts_and_sizes_is_written_as_it_was_read(config):
    module = unet_module(config, "config.json")
    assert unet_module(unet_config(module, 8), "config.json") == module


def test_weights_of_another_network_are_refused_by_key(sd, tmp_path):
    config = json.loads((sd / "lcm" / "unet" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"time_cond_proj_dim": None}))
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).symlink_to(sd / "lcm" / "unet" / weights)
    with pytest.raises(ForeignError, match=r"left over time_embedding\.cond_proj\.weight"):
        load_unet(tmp_path)
