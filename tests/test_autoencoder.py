"""Autoencoders: the recorded outputs of their authors' classes, every kind of file, tiles, and what is refused."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import cmjax
from cmjax.interop.autoencoder import autoencoder_shapes, names_of, to_torch, write_autoencoder
from cmjax.interop.autoencoder_config import config_from_shapes, network, read_fields
from cmjax.interop.keys import ForeignError
from cmjax.nets.autoencoder import AutoencoderKL
from cmjax.nets.latents import Autoencoder
from cmjax.nets.layers import upsample
from tests.recorded_parts import assert_near, quick_jit

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Programs that run once: compiling them is what these tests cost.
encode = quick_jit(lambda autoencoder, images: autoencoder.encode(images))
decode = quick_jit(lambda autoencoder, latents: autoencoder.decode(latents))


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def tiny(scale=(0.5,) * 4, shift=(0.0,) * 4, **fields):
    """A small autoencoder of random weights."""
    module = AutoencoderKL(**{"widths": (4, 8), "blocks": 1, "groups": 2} | fields)
    random = np.random.default_rng(0)
    params = {
        path: jnp.asarray(random.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5, jnp.float32)
        for path, leaf in autoencoder_shapes(module).items()
    }
    return Autoencoder(unflatten_dict(params), module, scale, shift, 32)


@pytest.fixture(scope="module")
def sd(shared):
    return cmjax.load_autoencoder(shared / "parity" / "sd" / "pipeline")


@pytest.fixture(scope="module")
def recorded_sd(shared):
    return np.load(shared / "parity" / "sd" / "vae.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A written folder, to be read only."""
    folder = tmp_path_factory.mktemp("autoencoder")
    write_autoencoder(folder, tiny())
    return folder


def test_recorded_outputs_of_stable_diffusions(sd, recorded_sd):
    image, noise, latents = (nhwc(recorded_sd[f"wide/{name}"]) for name in ("image", "noise", "latents"))
    mean, logvar = encode(sd, image)
    assert_near(mean, nhwc(recorded_sd["wide/mean"]))
    assert_near(logvar, nhwc(recorded_sd["wide/logvar"]))
    assert_near(sd.scaled(mean + jnp.exp(logvar / 2) * noise), latents)
    assert_near(decode(sd, sd.unscaled(latents)), nhwc(recorded_sd["wide/decoded"]))
    # Weights so small that the eps of norms shows.
    weak = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if "norm" in jax.tree_util.keystr(path) else leaf / 32, sd
    )
    assert_near(encode(weak, image)[0], nhwc(recorded_sd["scaled_down/mean"]))
    assert_near(decode(weak, weak.unscaled(latents)), nhwc(recorded_sd["scaled_down/decoded"]))


def test_recorded_outputs_of_va_vae(shared):
    autoencoder = cmjax.load_autoencoder(shared / "parity" / "latent" / "vavae.pt")
    recorded = np.load(shared / "parity" / "latent" / "vavae_io.npz")
    mean, logvar = encode(autoencoder, nhwc(recorded["x"]))
    assert_near(mean, nhwc(recorded["mean"]))
    assert_near(logvar, nhwc(recorded["logvar"]))
    assert_near(autoencoder.scaled(mean), nhwc(recorded["normalised_mean"]))
    assert_near(decode(autoencoder, nhwc(recorded["z"])), nhwc(recorded["out_decoded"]))


def test_names_of_2022_and_of_today_are_the_same_weights(shared, sd):
    for name in ("pipeline/vae", f"pipeline/vae/{WEIGHTS}", "variants/legacy/vae"):
        other = cmjax.load_autoencoder(shared / "parity" / "sd" / name)
        assert (other.weights_key, other.scale) == (sd.weights_key, (0.18215,) * 4)
    assert (sd.factor, sd.latent_channels, sd.sample_size) == (8, 4, 64)


@pytest.mark.parametrize("name", ["AutoencoderKL-sd", "VA-VAE-f16d32"])
def test_full_size_names_and_shapes(shared, name):
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    module = network(read_fields(config_from_shapes(abstract(keys), name), name), jnp.float32)
    key_of = names_of(keys, len(module.widths))
    ours = {key_of(path): to_torch(path, zeros(leaf.shape)).shape for path, leaf in autoencoder_shapes(module).items()}
    # A matrix may be written as a 1×1 convolution.
    assert {key: without_1x1(shape) for key, shape in ours.items()} == {key: without_1x1(s) for key, s in keys.items()}


def zeros(shape):
    return np.broadcast_to(np.float32(0), shape)


def abstract(keys):
    return {key: zeros(shape) for key, shape in keys.items()}


def without_1x1(shape):
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def by_torch(autoencoder, images):
    """Mean, log variance and the mean's image, by PyTorch's functions on the arrays under diffusers' names."""
    torch = pytest.importorskip("torch")
    f, module = torch.nn.functional, autoencoder.module
    key_of = names_of((), len(module.widths))
    arrays = {
        key_of(path): torch.tensor(to_torch(path, np.asarray(value)))
        for path, value in flatten_dict(autoencoder.params).items()
    }
    act = {"silu": f.silu, "mish": f.mish, "gelu": f.gelu, "relu": f.relu}[module.activation]

    def layer(name, x, function, **options):
        weight = arrays[f"{name}.weight"]
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        return function(x, weight, arrays[f"{name}.bias"], **options)

    def conv(name, x, **options):
        return layer(name, x, f.conv2d, **options)

    def norm(name, x):
        return f.group_norm(x, module.groups, arrays[f"{name}.weight"], arrays[f"{name}.bias"], 1e-6)

    def block(name, x):
        h = conv(f"{name}.conv1", act(norm(f"{name}.norm1", x)), padding=1)
        h = conv(f"{name}.conv2", act(norm(f"{name}.norm2", h)), padding=1)
        return h + (conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.bias" in arrays else x)

    def attention(name, x):
        if f"{name}.group_norm.bias" not in arrays:
            return x
        q, k, v = (conv(f"{name}.to_{n}", norm(f"{name}.group_norm", x)).flatten(2).mT for n in "qkv")
        attended = f.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mT.reshape(x.shape)
        return x + conv(f"{name}.to_out.0", attended)

    def middle(name, x):
        return block(f"{name}.resnets.1", attention(f"{name}.attentions.0", block(f"{name}.resnets.0", x)))

    def half(name, way, x):
        h = conv(f"{name}.conv_in", x, padding=1)
        h = middle(f"{name}.mid_block", h) if way == "up" else h
        for level in range(len(module.widths)):
            prefix = f"{name}.{way}_blocks.{level}"
            for i in range(module.blocks + (way == "up")):
                h = attention(f"{prefix}.attentions.{i}", block(f"{prefix}.resnets.{i}", h))
            if level < len(module.widths) - 1 and way == "down":
                h = conv(f"{prefix}.downsamplers.0.conv", f.pad(h, (0, 1, 0, 1)), stride=2)
            elif level < len(module.widths) - 1:
                h = conv(f"{prefix}.upsamplers.0.conv", f.interpolate(h, scale_factor=2), padding=1)
        h = h if way == "up" else middle(f"{name}.mid_block", h)
        return conv(f"{name}.conv_out", f.silu(norm(f"{name}.conv_norm_out", h)), padding=1)

    h = half("encoder", "down", torch.tensor(images).permute(0, 3, 1, 2))
    mean, logvar = (conv("quant_conv", h) if module.moments_conv else h).chunk(2, dim=1)
    image = half("decoder", "up", conv("post_quant_conv", mean) if module.latents_conv else mean)
    return [nhwc(np.asarray(each)) for each in (mean, logvar.clamp(-30, 20), image)]


ODD = {
    "channels": 1,
    "out_channels": 2,
    "latent_channels": 3,
    "encoder_attention": (0,),
    "decoder_attention": (1,),
    "moments_conv": False,
    "latents_conv": False,
}
"""Fields that no release has together."""


@pytest.mark.parametrize(
    "fields",
    [
        ODD | {"activation": "mish"},
        {"activation": "gelu", "mid_attention": False, "widths": (4,), "channels": 4},
    ],
    ids=lambda fields: fields["activation"],
)
def test_every_field_computes_what_pytorch_does(fields):
    autoencoder = tiny(**fields)
    images = np.random.default_rng(1).normal(size=(2, 8, 12, autoencoder.module.channels)).astype(np.float32)
    expected = by_torch(autoencoder, images)
    mean, logvar = encode(autoencoder, images)
    for ours, theirs in zip((mean, logvar, decode(autoencoder, mean)), expected, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize(
    "autoencoder",
    [tiny(**ODD, activation="mish", scale=(0.5, 1.0, 2.0), shift=(0.0, 0.5, -1.0)), tiny(shift=(0.25,) * 4)],
    ids=["by channel", "one scale"],
)
def test_a_written_folder_gives_back_the_same(tmp_path, autoencoder):
    write_autoencoder(tmp_path, autoencoder)
    back = cmjax.load_autoencoder(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back.params, autoencoder.params)
    assert (back.module, back.shift, back.sample_size) == (autoencoder.module, autoencoder.shift, 32)
    np.testing.assert_allclose(back.scale, autoencoder.scale)
    assert back.weights_key == autoencoder.weights_key


@pytest.mark.parametrize("kind", ["half", "sharded", "bin", "ckpt", "wrapped"])
def test_files_of_every_kind(folder, tmp_path, kind):
    """Half precision in a file's name, several files, PyTorch's containers, and keys within a larger model."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    expected = cmjax.load_autoencoder(folder)
    arrays = pytest.importorskip("safetensors.numpy").load_file(folder / WEIGHTS)
    shutil.copy(folder / "config.json", tmp_path)
    path = tmp_path
    if kind == "half":
        arrays = {key: array.astype(np.float16) for key, array in arrays.items()}
        save_file(arrays, tmp_path / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    elif kind == "sharded":
        names = {key: f"{key.partition('.')[0]}.safetensors" for key in arrays}
        for name in set(names.values()):
            save_file({key: arrays[key] for key in arrays if names[key] == name}, tmp_path / name)
        (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch = pytest.importorskip("torch")
        content = {key: torch.tensor(array) for key, array in arrays.items()}
        if kind == "bin":
            torch.save(content, tmp_path / WEIGHTS.replace(".safetensors", ".bin"))
        else:
            prefix = "first_stage_model." if kind == "wrapped" else ""
            other = {f"{prefix}{key}": value for key, value in content.items()} | {"logit_scale": torch.ones(1)}
            path = tmp_path / "v1.ckpt"
            torch.save({"state_dict": other, "global_step": 3}, path)
    loaded = cmjax.load_autoencoder(path)
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3 if kind == "half" else 0)


def test_a_file_alone_tells_its_network_and_not_its_scale(tmp_path):
    write_autoencoder(tmp_path, tiny(widths=(32, 64), groups=32, decoder_attention=(1,)))
    (tmp_path / "config.json").unlink()
    autoencoder = cmjax.load_autoencoder(tmp_path)
    assert autoencoder.module == AutoencoderKL(widths=(32, 64), blocks=1, decoder_attention=(1,))
    with pytest.raises(ValueError, match=r"scale=0\.18215"):
        autoencoder.scaled(jnp.zeros((1, 4)))
    autoencoder = cmjax.load_autoencoder(tmp_path / WEIGHTS, scale=2, shift=(1, 2, 3, 4))
    np.testing.assert_array_equal(autoencoder.scaled(jnp.ones((1, 4))), [[0, -2, -4, -6]])
    np.testing.assert_array_equal(autoencoder.unscaled(autoencoder.scaled(jnp.ones((1, 4)))), np.ones((1, 4)))
    assert cmjax.load_autoencoder(tmp_path, scale=2).shift == (0.0,) * 4


def test_an_autoencoder_is_a_tree_of_its_parameters_and_its_key_of_what_it_computes():
    autoencoder = tiny()
    leaves, tree = jax.tree.flatten(autoencoder)
    assert sum(leaf.size for leaf in leaves) == sum(
        np.prod(s.shape) for s in autoencoder_shapes(autoencoder.module).values()
    )
    assert jax.tree.unflatten(tree, leaves).weights_key == autoencoder.weights_key
    half = replace(autoencoder, module=autoencoder.module.clone(dtype=jnp.bfloat16))
    assert half.weights_key == autoencoder.weights_key
    others = [jax.tree.map(lambda leaf: leaf + 1e-6, autoencoder), tiny(groups=1), tiny(activation="relu")]
    assert len({each.weights_key for each in (autoencoder, *others)}) == 4


def test_bfloat16_keeps_the_input_s_dtype_and_stays_near(folder):
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    exact = decode(cmjax.load_autoencoder(folder), latents)
    rough = decode(cmjax.load_autoencoder(folder, dtype="bfloat16"), latents)
    assert rough.dtype == exact.dtype == jnp.float32
    assert 1e-4 < np.abs(rough - exact).max() / np.abs(exact).max() < 0.1
    with pytest.raises(ForeignError, match=r"float16.*force_upcast.*bfloat16"):
        cmjax.load_autoencoder(folder, dtype="float16")


class Repeating(Autoencoder):
    """An autoencoder whose images depend on each latent alone, so that tiles change nothing."""

    def decode(self, latents):
        return upsample(latents[..., :3], (1, 1))

    def encode(self, images):
        latents = images[:, ::2, ::2]
        latents = jnp.concatenate([latents, latents[..., :1]], axis=-1)
        return latents, latents - 1


@pytest.mark.parametrize(("tile", "overlap"), [(4, 0.25), (5, 0.0), (3, 0.6), (8, 0.25), (None, 0.25)])
def test_tiles_cover_every_pixel_once(tile, overlap):
    autoencoder = Repeating((), AutoencoderKL(widths=(4, 8), groups=2), (1.0,) * 4, (0.0,) * 4, 12)
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 13, 4)), jnp.float32)
    images = autoencoder.decode_tiled(latents, tile=tile, overlap=overlap)
    np.testing.assert_allclose(images, autoencoder.decode(latents), atol=1e-6)
    moments = autoencoder.encode_tiled(images, tile=tile, overlap=overlap)
    for tiled, whole in zip(moments, autoencoder.encode(images), strict=True):
        np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_one_tile_is_the_whole_image_and_several_blend(folder):
    autoencoder = cmjax.load_autoencoder(folder)
    latents = np.random.default_rng(0).normal(size=(1, 4, 6, 4)).astype(np.float32)
    tiled = quick_jit(lambda autoencoder, latents, tile: autoencoder.decode_tiled(latents, tile=tile), static_argnums=2)
    whole = decode(autoencoder, latents)
    np.testing.assert_allclose(tiled(autoencoder, latents, 6), whole, atol=1e-5)
    images = np.asarray(whole)
    encoded = quick_jit(lambda autoencoder, images: autoencoder.encode_tiled(images, tile=6))(autoencoder, images)
    for one, other in zip(encoded, quick_jit(Autoencoder.encode)(autoencoder, images), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # Between two tiles of 4 the image is a mean of both: without jumps, and near none of them alone.
    left, right = (decode(autoencoder, latents[:, :, at : at + 4]) for at in (0, 2))
    blended = np.asarray(tiled(autoencoder, latents, 4))
    np.testing.assert_allclose(blended[:, :, :4], left[:, :, :4], atol=1e-5)
    np.testing.assert_allclose(blended[:, :, 8:], right[:, :, 4:], atol=1e-5)
    between = blended[:, :, 4:8] - left[:, :, 4:]
    share = np.sum(between * (right[:, :, :4] - left[:, :, 4:]), (0, 1, 3)) / np.sum(
        (right[:, :, :4] - left[:, :, 4:]) ** 2, (0, 1, 3)
    )
    assert (np.diff(share) > 0).all()


def test_inputs_that_do_not_fit_are_refused_in_one_line():
    autoencoder = tiny()
    for images, problem in (
        (np.zeros((1, 9, 8, 3), np.float32), r"images must be .*h, w, 3\), h and w multiples of 2; got \(1, 9, 8, 3\)"),
        (np.zeros((1, 8, 8, 1), np.float32), r"images must be .*got \(1, 8, 8, 1\)"),
        (np.zeros((8, 8, 3), np.float32), r"images must be"),
        (np.zeros((1, 0, 8, 3), np.float32), r"images must be"),
    ):
        with pytest.raises(ValueError, match=problem):
            autoencoder.encode(images)
    with pytest.raises(TypeError, match="images must be floats"):
        autoencoder.encode(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"latents must be of the shape \(b, h, w, 4\); got \(1, 4, 8, 8\)"):
        autoencoder.decode(np.zeros((1, 4, 8, 8), np.float32))
    latents = np.zeros((1, 8, 8, 4), np.float32)
    for options in ({"tile": 0}, {"overlap": 1.0}, {"overlap": -0.1}):
        with pytest.raises(ValueError, match="tile must be at least 1, overlap must lie in"):
            autoencoder.decode_tiled(latents, **options)
    with pytest.raises(ValueError, match="4 channels"):
        autoencoder.scaled(jnp.zeros((1, 3)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"_class_name": "AutoencoderTiny"}, "class AutoencoderTiny; AutoencoderKL is the one"),
        (
            {"act_fn": "tanh", "layers_per_block": 0, "use_quant_conv": "yes"},
            r"layers_per_block=0 must be .*; act_fn='tanh' must be one of .*; use_quant_conv='yes' must be true",
        ),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide"),
        ({"down_block_types": ["DownBlock2D"] * 2}, r"down_block_types=.* must be of DownEncoderBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 levels, block_out_channels 2"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std must be given together"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean has 3 numbers for latent_channels=4"),
        (
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 1.0},
            "shift_factor and latents_mean exclude each other",
        ),
        ({"scaling_factor": 0}, "scaling_factor=0 must be a number above 0"),
        (
            {"block_out_channels": [4, 16], "mid_block_add_attention": False},
            r"left over encoder\.mid_block\.attentions\.0.*not \(3, 3, 16, 16\)",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused_in_one_line(folder, tmp_path, changes, problem):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ForeignError, match=problem) as refused:
        cmjax.load_autoencoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_are_refused_in_one_line(folder, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = safetensors.load_file(folder / WEIGHTS)

    def refused(arrays, problem, path=tmp_path):
        safetensors.save_file(arrays, tmp_path / WEIGHTS)
        with pytest.raises(ForeignError, match=problem) as error:
            cmjax.load_autoencoder(path)
        assert "\n" not in str(error.value)

    shutil.copy(folder / "config.json", tmp_path)
    lost = ("decoder.mid_block.resnets.1.norm2.bias", "encoder.conv_in.weight")
    less = {key: array for key, array in arrays.items() if key not in lost}
    refused(
        less | {"encoder.more": arrays["quant_conv.bias"]}, ".*".join(map(re.escape, (*lost, "left over encoder.more")))
    )
    refused(arrays | {lost[0]: np.full(8, np.nan, np.float32)}, f"not finite {lost[0]}")
    refused({"unet.weight": arrays["quant_conv.bias"]}, "holds no autoencoder.*unet.weight")
    twice = {f"{name}.{key}": array for name in ("a", "b") for key, array in arrays.items()}
    refused(twice, r"several autoencoders, 'a\.', 'b\.'")
    (tmp_path / WEIGHTS).unlink()
    refused_index = tmp_path / f"{WEIGHTS}.index.json"
    refused_index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(ForeignError, match=r"missing: one\.safetensors, two\.safetensors"):
        cmjax.load_autoencoder(tmp_path)
    refused_index.unlink()
    with pytest.raises(ForeignError, match=r"no autoencoder's folder.*it has config\.json"):
        cmjax.load_autoencoder(tmp_path)
    with pytest.raises(ForeignError, match="does not exist"):
        cmjax.load_autoencoder(tmp_path / "nothing")
    with pytest.raises(ForeignError, match="scale must be one finite number above 0 or one for each of 4 channels"):
        cmjax.load_autoencoder(folder, scale=(1, 2))
    with pytest.raises(ForeignError, match="dtype=int8 must be one of float32"):
        cmjax.load_autoencoder(folder, dtype="int8")


def test_over_explicit_axes_outputs_are_split_as_inputs():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    autoencoder = tiny(widths=(4,))
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    tiled = quick_jit(lambda autoencoder, latents: autoencoder.decode_tiled(latents, tile=3))
    expected = tiled(autoencoder, latents)
    with jax.set_mesh(mesh):
        split = jax.device_put(latents, jax.NamedSharding(mesh, jax.P("data")))
        images = tiled(autoencoder, split)
    assert jax.typeof(images).sharding.spec[0] == "data"
    np.testing.assert_allclose(images, expected, atol=1e-5)
