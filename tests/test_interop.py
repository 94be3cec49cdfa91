"""Peers' checkpoints in and out: their recorded outputs, and what is said of files that are something else."""

import dataclasses
import json
import os
import pickle
import re
import sys
import types
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

import cmjax
from cmjax.cli import exporting, importing, sample
from cmjax.config.fields import ConfigError
from cmjax.interop import keys, read
from cmjax.interop.diffusers import read_diffusers, write_diffusers
from cmjax.interop.fields import read_config
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.openai import _source as openai_source
from cmjax.interop.read import READERS, read_foreign
from cmjax.interop.safetensors_files import read_safetensors
from cmjax.interop.torch_files import read_torch
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.adm import ADM, OPENAI
from cmjax.nets.layers import convolve
from cmjax.runs.record import read_record, write_record
from cmjax.runs.weights import write_model

CHECKPOINTS = Path(os.environ.get("CMJAX_SHARED", Path(__file__).parents[2] / "shared")) / "parity" / "ckpt"
OPENAI_STYLES = {
    "openai_unet_imagenet_style": {"image_size": 16, "head_channels": 16},
    "openai_unet_lsun_style": {"image_size": 16, "head_channels": 32},
}
quick_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)
close = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


def recorded(name):
    """The path of a recorded network, and its inputs and outputs, images NHWC."""
    if not CHECKPOINTS.exists():
        pytest.skip(f"needs the recorded networks, {CHECKPOINTS}; CMJAX_SHARED names the folder that holds parity/")
    with np.load(CHECKPOINTS / f"{name}_io.npz") as file:
        io = {key: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for key, value in file.items()}
    return CHECKPOINTS / f"{name}.pt", io


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "edm_ddpmpp",
        pytest.param("edm_ddpmpp_cond", marks=pytest.mark.slow),
        "edm_ncsnpp_cond",
        pytest.param("edm_adm_cond", marks=pytest.mark.slow),
    ],
)
def test_recorded_outputs_of_edm(name, tmp_path):
    path, io = recorded(name)
    importing.run(str(path), tmp_path / "run")
    flow_map = cmjax.load(tmp_path / "run")
    assert flow_map.kind == "denoiser"
    assert "non-commercial" in read_record(tmp_path / "run")["imported"]["licence"]
    x, sigma = np.float32(io["x"]), np.float32(io["sigma"])
    label = {"label": jnp.asarray(io["class_labels"].argmax(1))} if "class_labels" in io else {}
    denoise = quick_jit(lambda flow_map, x, t, **conditions: flow_map(x, t, **conditions))
    close(denoise(flow_map, x, sigma, **label), io["out_noaug"])
    if "augment_labels" in io:
        close(denoise(flow_map, x, sigma, **label, augment=np.float32(io["augment_labels"])), io["out"])
    if label:
        close(denoise(flow_map, x, sigma, label=jnp.full(len(x), -1)), io["out_nolabel"])
    if not label:  # the network alone, once: it is a part of what was compared above
        foreign = read_foreign(path, "edm", {})[0]
        scale = np.sqrt(sigma**2 + 0.25)[:, None, None, None]
        raw = quick_jit(as_net(foreign.module))
        close(raw(foreign.params, x / scale, np.log(sigma) / 4), io["F_x_noaug"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["openai_unet_imagenet_style", pytest.param("openai_unet_lsun_style", marks=pytest.mark.slow)]
)
def test_recorded_outputs_of_openai(name, tmp_path):
    path, io = recorded(name)
    importing.run(str(path), tmp_path / "run", overrides=OPENAI_STYLES[name] | {"kind": "consistency"})
    flow_map = cmjax.load(tmp_path / "run")
    label = {"label": jnp.asarray(io["y"])} if "y" in io else {}
    x = np.float32(io["denoise_in"])
    out = quick_jit(lambda x, t: flow_map(x, t, **label))(x, np.float32(io["sigma"]))
    close(out, io["denoise_out"])
    # The raw network takes the time in thousandths.
    net = as_net(ADM(**{f: getattr(flow_map_module(tmp_path / "run"), f) for f in ADM_FIELDS} | {"time_scale": 1.0}))
    weights = np.linspace(-1, 1, io["out"].size).reshape(np.moveaxis(io["out"], -1, 1).shape).transpose(0, 2, 3, 1)

    def weighted(x):
        out = net(flow_map.params, x, jnp.float32(io["timesteps"]), **label)
        return jnp.sum(out * np.float32(weights)), out

    gradient, out = quick_jit(jax.grad(weighted, has_aux=True))(np.float32(io["x"]))
    close(out, io["out"])
    np.testing.assert_allclose(gradient, io["grad_x"], rtol=0, atol=2e-5 * max(1, np.abs(io["grad_x"]).max()))


ADM_FIELDS = [f.name for f in dataclasses.fields(ADM) if f.name not in ("parent", "name")]


def flow_map_module(workdir):
    from cmjax.config.methods import read_model

    record = read_record(workdir)
    return read_model(record["config"], record["num_classes"]).module


def test_recorded_outputs_of_edm2(tmp_path):
    path, io = recorded("edm2")
    importing.run(str(path), tmp_path / "run", overrides={"head_channels": 16})
    flow_map = cmjax.load(tmp_path / "run")
    label = jnp.asarray(io["class_labels"].argmax(1))
    out = quick_jit(lambda x, t: flow_map(x, t, label=label))(np.float32(io["x"]), np.float32(io["sigma"]))
    close(out, io["out"])


class Persistent:
    """Pickled as NVIDIA's persistent classes are: a call of their reconstruction with the object's state."""

    def __init__(self, class_name, **state):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": self.class_name}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta | {"state": self.state},)


def snapshot(arrays, class_name, monkeypatch, **arguments):
    """The bytes of a pickle like EDM's `network-snapshot.pkl` that holds these arrays."""

    def _reconstruct_persistent_obj(meta):
        raise NotImplementedError

    module = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def network(tree, name, **rest):
        parts = {key: value for key, value in tree.items() if isinstance(value, dict)}
        own = {key: value for key, value in tree.items() if key not in parts}
        modules = {key: network(value, "Layer") for key, value in parts.items()}
        return Persistent(name, _parameters=own, _buffers={}, _modules=modules, training=False, **rest)

    tree = unflatten_dict({tuple(key.split(".")): value for key, value in arrays.items()})
    top = network(tree, class_name, _init_args=(), _init_kwargs=arguments)
    return pickle.dumps({"ema": top, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "dataset_kwargs": {"path": "x"}})


@pytest.mark.parametrize(
    ("name", "class_name", "arguments"),
    [("edm_ncsnpp_cond", "EDMPrecond", {}), ("edm2", "Precond", {"channels_per_head": 16})],
)
def test_pickles_of_nvidia_are_imported(tmp_path, monkeypatch, name, class_name, arguments):
    arrays = read_torch(recorded(name)[0])
    (tmp_path / "network.pkl").write_bytes(snapshot(arrays, class_name, monkeypatch, **arguments))
    importing.run(str(tmp_path / "network.pkl"), tmp_path / "pkl")
    told = {"head_channels": 16} if name == "edm2" else {}
    importing.run(str(CHECKPOINTS / f"{name}.pt"), tmp_path / "pt", overrides=told)
    jax.tree.map(np.testing.assert_array_equal, *(cmjax.load(tmp_path / kind).params for kind in ("pkl", "pt")))


def test_pickles_of_other_networks_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "network.pkl"
    for class_name, arguments, said in (
        ("VPPrecond", {}, "holds a VPPrecond"),
        ("Precond", {"res_balance": 0.4}, "res_balance=0.4"),
        ("EDMPrecond", {}, "of no network that is known"),
    ):
        path.write_bytes(snapshot({"layer.weight": np.zeros(3)}, class_name, monkeypatch, **arguments))
        with pytest.raises(ConfigError, match=said):
            importing.run(str(path), tmp_path / "run")


def test_every_key_is_accounted_for():
    path, _ = recorded("edm_ddpmpp")
    arrays = dict(read_torch(path))
    del arrays["model.map_layer0.bias"]
    arrays["model.enc.16x16_spare.weight"] = np.zeros(3)
    arrays["model.map_layer1.bias"] = np.zeros(3)
    arrays["model.enc.16x16_conv.bias"] = np.full(16, np.nan)
    with pytest.raises(ForeignError, match="of this network") as caught:
        READERS["edm"](arrays, {})
    for said in (
        "missing map_layer0.bias",
        "left over enc.16x16_spare.weight",
        "map_layer1.bias is (3,)",
        "not finite enc.16x16_conv.bias",
    ):
        assert said in str(caught.value)


def test_openais_networks_with_plain_convolutions_between_levels():
    """resblock_updown=False, as many trained forks have: the same parameters and fields from the file's keys."""
    network = ADM(
        channels=32, channel_mult=(1, 2), blocks=1, attention_resolutions=(8,), head_channels=16, resample="conv",
        **OPENAI,
    )  # fmt: skip
    shape = (16, 16, 3)
    params = init_params(network, jax.random.key(0), shape)
    content = {}
    for path, leaf in flatten_dict(params).items():
        (key,) = openai_source(path, levels=2, blocks=1, attended=[1]).keys
        content[key] = np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim > 1 else leaf
    assert {"input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"} <= content.keys()
    foreign = READERS["openai"](content, {"image_size": 16, "head_channels": 16})
    assert foreign.module == network
    jax.tree.map(np.testing.assert_array_equal, foreign.params, params)
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    out = quick_jit(as_net(network))(jax.tree.map(lambda leaf: leaf + 0.1, params), x, jnp.ones(2))
    assert out.shape == x.shape
    assert np.all(np.isfinite(out))


def test_a_strided_convolution_is_every_second_point_of_the_whole():
    """As PyTorch's with stride 2 and one zero on each side; XLA's SAME would have one zero on one side alone."""
    x, kernel = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)), jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    np.testing.assert_allclose(convolve(x, kernel, 1, 2), convolve(x, kernel, 1)[:, ::2, ::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "reader"), [("edm_ddpmpp", "edm"), ("openai_unet_lsun_style", "openai")])
def test_any_missing_key_is_an_error(name, reader, monkeypatch):
    monkeypatch.setattr(keys, "parameter_shapes", cache(keys.parameter_shapes))  # most networks are one
    path, _ = recorded(name)
    arrays = dict(read_torch(path))
    optional = ("resample_filter", "map_augment.weight")  # without its augmentation input it is a network as well
    for key in [key for key in arrays if not key.endswith(optional)][::7]:
        with pytest.raises(ForeignError):
            READERS[reader]({k: v for k, v in arrays.items() if k != key}, OPENAI_STYLES.get(name, {}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is"),
        (b"<!DOCTYPE html><html>404</html>", "neither a PyTorch file"),
        (b"PK\x03\x04 broken", "model.bin"),
        (b"\x80\x04K\x01.", "not a pickle of EDM's networks"),
        (b"\x80\x04cposix\nsystem\n.", "posix"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, said):
    path, workdir = tmp_path / "model.bin", tmp_path / "run"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        importing.run(str(path), workdir)
    assert "model.bin" in str(caught.value)
    assert not workdir.exists()
    assert [p.name for p in tmp_path.iterdir()] == (["model.bin"] if content is not None else [])


def test_what_the_file_does_not_tell_is_asked_for(tmp_path):
    path, _ = recorded("openai_unet_lsun_style")
    with pytest.raises(ConfigError, match="--arch-kind=denoiser"):
        importing.run(str(path), tmp_path / "run", overrides=OPENAI_STYLES["openai_unet_lsun_style"])
    with pytest.raises(ConfigError, match="its keys are those of openai"):
        importing.run(str(path), tmp_path / "run", format="edm")
    with pytest.raises(ConfigError, match="head_channels=48"):
        importing.run(str(path), tmp_path / "run", overrides={"image_size": 16, "head_channels": 48})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        importing.run(str(path), tmp_path / "run", overrides={"kind": "denoiser"})


TINY = {"channels": 32, "channel_mult": (1,), "blocks": 1, "attention_resolutions": (8,), "head_channels": 16}
STATED = {"kind": "consistency", "head_channels": 16}


@cache
def tiny_arrays(**changes):
    """A small UNetModel of 8×8 images as OpenAI's state dict."""
    network = ADM(**OPENAI, **TINY | changes)
    attended = [0] if network.attention_resolutions else []
    arrays = {}
    for path, leaf in flatten_dict(init_params(network, jax.random.key(0), (8, 8, 3))).items():
        (key,) = openai_source(path, levels=1, blocks=1, attended=attended).keys
        leaf = np.asarray(leaf) + np.float32(0.01)
        arrays[key] = np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim > 1 else leaf
    return arrays


def write_file(path, arrays):
    path.write_bytes(save(arrays))
    return str(path)


def test_prefixes_of_wrappers_are_removed():
    """What DistributedDataParallel, torch.compile and an outer module put before every key."""
    arrays = tiny_arrays()
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "model.", "ema_model.module.", "net._orig_mod."):
        found, bare = read._recognise(Path("x.pt"), {prefix + key: value for key, value in arrays.items()})
        assert (found, bare.keys()) == ("openai", arrays.keys()), prefix
    inner = {key.replace("middle_block.", "middle_block._orig_mod."): value for key, value in arrays.items()}
    assert read._recognise(Path("x.pt"), inner)[1].keys() == arrays.keys()
    twice = {prefix + key: value for key, value in arrays.items() for prefix in ("ema.", "model.")}
    with pytest.raises(ForeignError, match=r"several networks, with the prefixes 'ema\.' and 'model\.'"):
        read._recognise(Path("x.pt"), twice)


def test_the_only_state_dict_of_a_checkpoint_or_its_average_is_read():
    arrays = tiny_arrays()
    assert read._only_arrays(Path("x"), {"model": arrays, "epoch": 3, "optimizer": {"state": {}}}) is arrays
    assert read._only_arrays(Path("x"), {"model": {"other": np.ones(1)}, "ema": arrays}) is arrays
    with pytest.raises(ForeignError, match="several state dicts, model, old"):
        read._only_arrays(Path("x"), {"model": arrays, "old": arrays})


def test_a_network_that_predicts_a_variance_is_refused(tmp_path):
    source = write_file(tmp_path / "diffusion.safetensors", tiny_arrays(out_channels=6))
    for kind in ("denoiser", "consistency"):
        with pytest.raises(ConfigError, match=r"6 output channels for images of 3.*learned sigma"):
            importing.run(source, tmp_path / "run", overrides=STATED | {"kind": kind})
    assert not (tmp_path / "run").exists()


def test_all_that_a_file_leaves_open_is_asked_in_one_message(tmp_path):
    source = write_file(tmp_path / "x.safetensors", tiny_arrays())
    with pytest.raises(ConfigError, match=r"--arch-head_channels=N.*--arch-kind=denoiser"):
        importing.run(source, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"head_channels=7 does not divide.*give --arch-kind=denoiser"):
        importing.run(source, tmp_path / "run", overrides={"head_channels": 7})
    with pytest.raises(ConfigError, match=r"resample_filter has no effect.*--arch-head_channels=N.*--arch-kind="):
        importing.run(source, tmp_path / "run", overrides={"resample_filter": (1, 1)})
    with pytest.raises(ConfigError, match="--arch-resample_filter has no effect on --format=openai"):
        importing.run(source, tmp_path / "run", overrides=STATED | {"resample_filter": (1, 1)})


def test_a_network_without_attention_is_opened_again(tmp_path):
    source = write_file(tmp_path / "x.safetensors", tiny_arrays(attention_resolutions=()))
    importing.run(source, tmp_path / "run", overrides=STATED)
    assert flow_map_module(tmp_path / "run").attention_resolutions == ()


def test_a_model_that_gives_no_numbers_is_refused(tmp_path):
    large = {"time_embed.0.weight": np.full_like(tiny_arrays()["time_embed.0.weight"], 3e38)}
    source = write_file(tmp_path / "x.safetensors", tiny_arrays() | large)
    with pytest.raises(ConfigError, match="not finite"):
        importing.run(source, tmp_path / "run", overrides=STATED)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def conditional_run(tmp_path):
    """The folder of a small class-conditional consistency model that diffusers can hold."""
    module = ADM(**OPENAI, channels=32, channel_mult=(1, 2), blocks=1, attention_resolutions=(8,),
                 head_channels=32, num_classes=3)  # fmt: skip
    params = init_params(module, jax.random.key(0), (16, 16, 3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(leaf + 0.03 * rng.standard_normal(leaf.shape)), params)
    levels = {"t_max": 40.0, "sigma_data": 0.4}
    foreign = importing.Foreign(module, params, (16, 16, 3), "consistency", "none", levels)
    workdir = tmp_path / "original"
    config = importing._config(foreign)
    write_model(workdir, config, foreign.shape, 3, params, imported=None, option="--workdir")
    return workdir


@pytest.mark.parametrize("format", ["npz", "safetensors", "diffusers"])
def test_what_is_exported_comes_back_unchanged(conditional_run, tmp_path, format):
    exporting.run(conditional_run, format, None)
    (out,) = (conditional_run / "export").iterdir()
    importing.run(str(out), tmp_path / "back")
    original, back = (cmjax.load(path) for path in (conditional_run, tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, original.params, back.params)
    assert (back.kind, back.shape, back.t_max) == (original.kind, original.shape, original.t_max)
    assert flow_map_module(tmp_path / "back") == flow_map_module(conditional_run)
    models = [read_record(path)["config"]["model"] for path in (conditional_run, tmp_path / "back")]
    assert models[0] == models[1]
    with pytest.raises(ConfigError, match="weights that no run here made"):
        write_record(tmp_path / "back", read_record(tmp_path / "back")["config"], (16, 16, 3), 3)


@pytest.mark.parametrize(("name", "kind"), [("consistency", "consistency"), ("denoising", "denoiser")])
def test_a_folder_that_was_imported_before_is_read(conditional_run, tmp_path, name, kind):
    """Its record has an objective in place of the kind of model."""
    record = read_record(conditional_run)
    model = {field: value for field, value in record["config"]["model"].items() if field != "kind"}
    record["config"] = record["config"] | {"model": model, "objective": {"name": name}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    os.symlink(conditional_run / "checkpoints", tmp_path / "checkpoints")
    assert cmjax.load(tmp_path).kind == kind


def test_an_imported_model_is_sampled_like_any_other(conditional_run, tmp_path):
    options = {"num": 3, "seed": 0, "times": None, "solver": None, "steps": None, "label": 2, "guidance": None}
    sample.run(conditional_run, out=str(tmp_path / "x.npz"), **options)
    with np.load(tmp_path / "x.npz") as file:
        assert file["images"].shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("label", 3, "--label=3: the model has 3 classes"),
        ("guidance", -1.0, "--guidance=-1.0: must be at least 0"),
        ("steps", 18, "--solver and --steps are for teachers"),
    ],
)
def test_a_wrong_option_is_named_before_times_are_searched_for(
    conditional_run, tmp_path, monkeypatch, option, value, said
):
    monkeypatch.setattr("cmjax.generation.search.find_times", lambda *_, **__: pytest.fail("searched"))
    options = {"num": 3, "seed": 0, "times": "auto:2", "solver": None, "steps": None, "label": 2, "guidance": None}
    with pytest.raises(ConfigError, match=said):
        sample.run(conditional_run, out=str(tmp_path / "x.npz"), **options | {option: value})


@pytest.mark.slow
def test_diffusers_runs_what_is_exported(conditional_run, tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    exporting.run(conditional_run, "diffusers", str(tmp_path / "pipeline"))
    pipeline = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
    latents = torch.tensor(noise.transpose(0, 3, 1, 2))
    theirs = pipeline(num_inference_steps=1, class_labels=1, latents=latents, output_type="np").images
    ours = cmjax.load(conditional_run)(40 * jnp.asarray(noise), 40.0, label=jnp.array([1]))
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), theirs, atol=1e-4)


def test_what_cannot_be_exported_is_named(conditional_run, tmp_path):
    config = read_record(conditional_run)["config"]
    for change, said in (({"time_scale": 1.0}, "time_scale"), ({"heads": 2}, "heads=2")):
        changed = config | {"net": config["net"] | change}
        write_record(tmp_path / said, changed, (16, 16, 3), 3)
        os.symlink(conditional_run / "checkpoints", tmp_path / said / "checkpoints")
        with pytest.raises(ConfigError, match=said):
            exporting.run(tmp_path / said, "diffusers", None)
        assert not (tmp_path / said / "export").exists()
    with pytest.raises(ConfigError, match="must be one of safetensors, npz, diffusers"):
        exporting.run(conditional_run, "pickle", None)
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        exporting.run(conditional_run, "npz", str(tmp_path / "x.bin"))


def test_diffusers_configs_of_other_networks_are_refused(conditional_run):
    exporting.run(conditional_run, "diffusers", None)
    unet = conditional_run / "export" / "diffusers" / "unet"
    config, arrays = read_config(unet / "config.json"), read_safetensors(next(unet.glob("*.safetensors")))[0]
    for change in ({"norm_eps": 1e-6}, {"upsample_type": "conv"}, {"resnet_time_scale_shift": "ada"}):
        (name,) = change
        with pytest.raises(ForeignError, match=name):
            read_diffusers(config | change, arrays, {})
    with pytest.raises(ForeignError, match="CrossAttn"):
        read_diffusers(config | {"down_block_types": ["CrossAttnDownBlock2D"] * 2}, arrays, {})
    wrong = {"norm_eps": 1e-6, "layers_per_block": 0, "in_channels": "3", "block_out_channels": [], "sample_size": [8]}
    wrong |= {"resnet_time_scale_shift": ["ada"], "norm_num_groups": None}
    with pytest.raises(ForeignError, match="CrossAttnUpBlock2D are no ADM's") as refused:
        read_diffusers(config | wrong | {"up_block_types": ["CrossAttnUpBlock2D"]}, arrays, {})
    for name, value in wrong.items():
        assert f"{name}={value!r} must be" in str(refused.value)
    with pytest.raises(UndeterminedError, match=r"layers_per_block=None must be .*; the file leaves open .*image_size"):
        read_diffusers(config | {"layers_per_block": None, "sample_size": None}, arrays, {})
    json.loads((unet.parent / "model_index.json").read_text())


def test_pipelines_of_other_models_are_refused(conditional_run, tmp_path):
    """A DDPM's network predicts the noise: it is no EDM denoiser, whatever --arch-kind says."""
    exporting.run(conditional_run, "diffusers", None)
    folder = conditional_run / "export" / "diffusers"
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "epsilon", "beta_schedule": "linear"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for source in (folder, folder / "unet"):
        with pytest.raises(ConfigError, match="DDPMScheduler with prediction_type='epsilon'"):
            importing.run(str(source), tmp_path / "run", overrides={"kind": "denoiser"})
    unet = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(unet | {"norm_eps": 1e-6, "freq_shift": 1}))
    with pytest.raises(ConfigError, match=r"DDPMScheduler.*freq_shift=1 must be 0.*norm_eps=1e-06 must be 1e-05"):
        importing.run(str(folder), tmp_path / "run")
    levels = {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0, "rho": "7"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(levels))
    with pytest.raises(ConfigError, match=r"sigma_min=0 must be a positive.*rho='7' must be a positive.*norm_eps"):
        importing.run(str(folder), tmp_path / "run")


def test_what_diffusers_configs_leave_open_or_write_otherwise(conditional_run):
    exporting.run(conditional_run, "diffusers", None)
    unet = conditional_run / "export" / "diffusers" / "unet"
    config, arrays = read_config(unet / "config.json"), read_safetensors(next(unet.glob("*.safetensors")))[0]
    assert read_diffusers(config | {"attention_head_dim": None}, arrays, {}).module.heads == 1
    assert read_diffusers(config | {"sample_size": [16, 8]}, arrays, {}).shape == (16, 8, 3)
    for size in (None, "16", [16], [16, 0], 0, True):
        with pytest.raises(ForeignError, match="--arch-image_size" if size is None else "sample_size="):
            read_diffusers(config | {"sample_size": size}, arrays, {})


@pytest.mark.parametrize(
    ("shape", "change", "said"),
    [
        ((16, 8, 3), {}, "images of 16x8: ConsistencyModelPipeline draws square images"),
        ((32, 32, 3), {"patch": 2}, "net.patch=2"),
        ((16, 16, 3), {"resample": "conv"}, "net.resample='conv'"),
        ((16, 8, 3), {"patch": 2, "resample": "conv"}, "net.patch=2.*net.resample='conv'.*images of 16x8"),
    ],
)
def test_networks_that_diffusers_cannot_hold_are_not_exported(tmp_path, shape, change, said):
    with pytest.raises(ForeignError, match=said):
        write_diffusers(tmp_path / "out", ADM(**OPENAI, **TINY | change), {}, shape, {})
    assert not (tmp_path / "out").exists()


def test_fixed_frequencies_are_no_parameters(tmp_path, capsys):
    path, _ = recorded("edm_ncsnpp_cond")
    importing.run(str(path), tmp_path / "run")
    told = re.search(r"([\d,]+) parameters", capsys.readouterr().out)[1]
    leaves = jax.tree_util.tree_leaves_with_path(cmjax.load(tmp_path / "run").params)
    fixed = [leaf.size for path, leaf in leaves if path[-1].key == "frequencies"]
    assert len(fixed) == 1
    assert int(told.replace(",", "")) == sum(leaf.size for _, leaf in leaves) - fixed[0]
