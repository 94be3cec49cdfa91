"""LoRA: the three formats of files, recorded outputs of merged networks, what is written, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.interop.conditional_unet import layer_of, unet_key, unet_module, unet_shapes, unet_to_torch
from cmjax.interop.keys import ForeignError
from cmjax.interop.lora import KOHYA, LoraLayer, read_lora, with_lora, write_lora
from cmjax.interop.prompt_sampling import pipeline_latents
from cmjax.interop.safetensors_files import read_safetensors
from tests.recorded_parts import assert_near, nhwc, quick_jit
from tests.test_conditional_unet import SDXL


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def recorded(sd):
    return np.load(sd / "lora.npz")


@pytest.fixture(scope="module")
def pipeline(sd):
    return cmjax.load_pipeline(sd / "pipeline")


@pytest.fixture(scope="module")
def layers(sd, pipeline):
    return {name: read_lora(sd / "lora" / f"{name}.safetensors", pipeline) for name in FORMATS}


FORMATS = ("peft", "kohya", "diffusers_old")


def test_recorded_outputs_of_merged_networks(pipeline, layers, recorded):
    x, t, context = (jnp.asarray(recorded[name], jnp.float32) for name in ("latents", "t", "context"))
    apply = quick_jit(
        lambda params: pipeline.module.apply({"params": params}, jnp.moveaxis(x, 1, -1), t, context=context)
    )
    assert_near(apply(pipeline.params), nhwc(recorded["out_base"]))
    for name in FORMATS:
        assert {len(part) for part in layers[name].values()} == {198}
        for scale in (1.0, 0.5):
            merged = with_lora(pipeline, layers[name], scale=scale)
            assert_near(apply(merged.params), nhwc(recorded[f"out/{name}/{scale}"]))


def test_recorded_weights(pipeline, layers, recorded):
    names = [name.split("/", 2)[1:] for name in recorded.files if name.startswith("merged/")]
    assert len(names) == 8
    for scale, key in names:
        params = with_lora(pipeline, layers["kohya"], scale=float(scale)).params
        named = {unet_key(path): np.asarray(value) for path, value in flatten_dict(params).items()}
        ours = unet_to_torch(key.rpartition(".")[0], named[key], linear=False)
        assert_near(ours, recorded[f"merged/{scale}/{key}"], 1e-6)


@pytest.mark.parametrize("guidance", [1.8, pytest.param(1.0, marks=pytest.mark.slow)])
def test_recorded_loop_with_a_lora(pipeline, layers, recorded, guidance):
    fast, case = with_lora(pipeline, layers["kohya"]), f"sample_{guidance}"
    start, noises, out = (nhwc(recorded[f"{case}/{name}"]) for name in ("latents_start", "noises", "out"))
    conditions = {"context": recorded["sample/context"]}
    if guidance != 1:
        conditions |= {"guidance": jnp.full((2,), guidance), "negative": {"context": recorded["sample/uncond"]}}
    latents = quick_jit(pipeline_latents, static_argnames=("shape", "sampler"))(
        fast, jax.random.key(0), shape=start.shape, sampler="lcm", times=fast.times("lcm", 4), start=start,
        noises=noises, **conditions,
    )  # fmt: skip
    assert_near(latents, out)


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_what_is_written_is_what_was_read(sd, pipeline, layers, tmp_path, format):
    file = tmp_path / "lora.safetensors"
    write_lora(file, layers[format], pipeline, format=format, dtype="float16")
    theirs = load_file(sd / "lora" / f"{format}.safetensors")
    ours = load_file(file)
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)
    again = read_lora(file, pipeline)
    jax.tree.map(np.testing.assert_array_equal, again, layers[format])
    if format == "peft":
        stated = json.loads(read_safetensors(file)[1]["lora_adapter_metadata"])
        assert (stated["unet.r"], stated["unet.lora_alpha"], stated["unet.alpha_pattern"]) == (2, 1.5, {})


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_layers_of_text_encoders_and_of_other_ranks(pipeline, tmp_path, format):
    random = np.random.default_rng(0)
    kernel = ("encoder_layers_0", "self_attn", "q_proj", "kernel")
    paths = {"text_encoder": kernel, "unet": ("mid_block", "resnets_0", "conv1", "kernel")}
    shapes = {"text_encoder": (40, 40), "unet": (3, 3, 32, 32)}
    layers = {
        part: {
            path: LoraLayer(
                jnp.asarray(random.normal(size=(*shapes[part][:-1], rank)), jnp.float32),
                jnp.asarray(random.normal(size=(rank, shapes[part][-1])), jnp.float32),
                jnp.float32(alpha),
            )
        }
        for (part, path), rank, alpha in zip(paths.items(), (3, 2), (1.0, 4.0), strict=True)
    }
    layers["unet"][("mid_block", "resnets_1", "conv1", "kernel")] = LoraLayer(
        jnp.ones((3, 3, 32, 1)), jnp.ones((1, 32)), jnp.float32(0.5)
    )
    write_lora(tmp_path / "lora.safetensors", layers, pipeline, format=format)
    again = read_lora(tmp_path / "lora.safetensors", pipeline)
    jax.tree.map(np.testing.assert_array_equal, again, layers)
    merged = with_lora(pipeline, again, scale=2.0)
    text = merged.texts[0].params["encoder_layers_0"]["self_attn"]["q_proj"]["kernel"]
    before = pipeline.texts[0].params["encoder_layers_0"]["self_attn"]["q_proj"]["kernel"]
    layer = layers["text_encoder"][kernel]
    assert_near(text - before, 2 * (1.0 / 3) * layer.down @ layer.up, 1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [("lcm-lora-sd15", {"cross_attention_dim": 768}), pytest.param("lcm-lora-sdxl", SDXL, marks=pytest.mark.slow)],
)
def test_full_size_names(shared, name, config):
    """The layers of LCM-LoRA are layers of our networks, and fit them."""
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    shapes = unet_shapes(unet_module({"_class_name": "UNet2DConditionModel", **config}, name))
    kernels = {
        KOHYA["unet"][0] + layer_of(path[:-1]).replace(".", "_"): leaf.shape
        for path, leaf in shapes.items()
        if path[-1] == "kernel"
    }
    for key, shape in keys.items():
        layer, _, end = key.partition(".")
        if end == "lora_up.weight":
            assert kernels[layer][-1] == shape[0]
        elif end == "lora_down.weight":
            spatial, width = kernels[layer][:-2], kernels[layer][-2]
            assert (width, *(spatial or [1] * len(shape[2:]))) == tuple(shape[1:])


def test_names_of_the_first_diffusers(sd, pipeline, layers, tmp_path):
    """Attention alone, by its processors, without the part's name."""
    arrays, file = load_file(sd / "lora" / "diffusers_old.safetensors"), tmp_path / "lora.safetensors"
    old = {}
    for key, array in arrays.items():
        layer, _, end = key.removeprefix("unet.").partition(".lora.")
        attention, to, which = layer.partition(".to_")
        if to:
            old[f"{attention}.processor.to_{which.removesuffix('.0')}_lora.{end}"] = array
    save_file(old, file)
    read = read_lora(file, pipeline)["unet"]
    assert 2 * len(read) == len(old)
    for path, layer in read.items():
        jax.tree.map(np.testing.assert_array_equal, layer, layers["diffusers_old"]["unet"][path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_output_blocks_3_1.lora_up.weight": (4, 2)}, r"does not fit: lora_unet_output_blocks_3_1\.lora_up"),
        (
            {"unet.conv_in.lora_A.weight": (2, 5, 3, 3), "unet.conv_in.lora_B.weight": (16, 2, 1, 1)},
            r"unet\.conv_in of",
        ),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3)}, r"unet\.conv_in of \(2, 4, 3, 3\) for a kernel of"),
        ({f"lora_unet_{i}.dora_scale": (4,) for i in range(9)}, "lora_unet_4.dora_scale and 4 more"),
    ],
)
def test_a_lora_of_another_network_is_refused_by_key(pipeline, tmp_path, change, message):
    file = tmp_path / "lora.safetensors"
    save_file({key: np.ones(shape, np.float32) for key, shape in change.items()}, file)
    with pytest.raises(ForeignError, match=message):
        read_lora(file, pipeline)


def test_alpha_as_peft_states_it(pipeline, tmp_path):
    arrays = {"unet.conv_in.lora_A.weight": np.ones((4, 4, 3, 3), np.float32)}
    arrays["unet.conv_in.lora_B.weight"] = np.ones((16, 4, 1, 1), np.float32)
    path = ("conv_in", "kernel")
    for stated, alpha in (
        ({}, 4),
        ({"unet.lora_alpha": 8}, 8),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"conv_in": 3}}, 3),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 16),
    ):
        file = tmp_path / "lora.safetensors"
        save_file(arrays, file, {"lora_adapter_metadata": json.dumps(stated)})
        assert read_lora(file, pipeline)["unet"][path].alpha == alpha
    save_file(arrays, file, {"lora_adapter_metadata": "["})
    with pytest.raises(ForeignError, match="its lora_adapter_metadata is damaged"):
        read_lora(file, pipeline)
    with pytest.raises(ForeignError, match="format='webui' must be kohya or peft"):
        write_lora(file, {}, pipeline, format="webui")
