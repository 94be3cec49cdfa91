"""Training of networks that see prompts, by the command line: a pipeline distilled to an LCM and to an LCM-LoRA."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.cli import average, encode, importing, train
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import load_recipe
from cmjax.config.run import read_run
from cmjax.generation.prompts import PromptOptions, sample_prompts
from cmjax.interop.conditional_unet import load_unet, write_unet
from cmjax.interop.lora import read_lora, with_lora
from cmjax.nets.adapter import init_params
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.runs.dependencies import check_others
from cmjax.runs.setup import set_up
from cmjax.runs.trained import open_trained
from cmjax.training.lora import Lora
from cmjax.training.step import prepare_inputs
from configs import common, sd15_lcm
from tests.in_process import do
from tests.test_pipeline import linked
from tests.test_text_latents import config_of


@pytest.fixture(scope="module")
def runs(shared, tmp_path_factory):
    """A folder of runs with an imported pipeline, and latents of captioned images beside them."""
    folder = tmp_path_factory.mktemp("text to image")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text(f"picture number {i}")
    small = linked(folder / "small", shared / "parity" / "sd", unet=None)
    module = ConditionalUNet(**sd15_lcm.TINY)
    write_unet(small / "unet", module, init_params(module, jax.random.key(1), (8, 8, 4)), sample_size=8)
    importing.run(str(small), folder / "sd15")
    where = config_of(folder / "images", image_size=64)
    encode.run(where, pipeline=folder / "sd15", out=folder / "latents", batch_size=4)
    return folder


def config_for(runs, recipe, **changes):
    """A recipe with its teacher and its data in that folder."""
    config = load_recipe(recipe)
    with config.ignore_type():
        config.init_from = str(runs / "sd15")
        config.objective.teacher = str(runs / "sd15")
        config.data.data_dir = str(runs / "latents")
        config.log.tensorboard = False
        for name, value in changes.items():
            section = config
            *sections, field = name.split(".")
            for each in sections:
                section = section[each]
            section[field] = value
    return config.to_dict()


def trained(runs, recipe, name, **changes):
    train.run(config_for(runs, recipe, **changes), runs / name)
    return runs / name


@pytest.mark.slow
def test_a_pipeline_becomes_an_lcm(runs):
    folder = trained(runs, "sd15_lcm:tiny", "lcm")
    assert (folder / "samples" / "0000004-4-step.png").is_file()
    # what surrounds the U-Net is in the folder, which can be moved alone
    moved = runs / "elsewhere" / "lcm"
    moved.parent.mkdir()
    shutil.copytree(folder, moved)
    pipeline = cmjax.load_pipeline(moved)
    assert pipeline.sampler == "lcm"
    assert pipeline.module.guidance_width == 20
    out = sample_prompts(moved, ["a cat"], num=2, out=runs / "x.npz", options=PromptOptions(steps=2, guidance=8.0))
    with np.load(out) as file:
        assert file["images"].shape == (2, 64, 64, 3)
    teacher = open_trained(runs / "sd15").load()
    flat = flatten_dict(pipeline.params)
    (new,) = set(flat) - set(flatten_dict(teacher.params))
    assert new == ("time_embedding", "cond_proj", "kernel")
    # from the teacher's weights, by Adam's steps of 1e-6
    for path, value in flatten_dict(teacher.params).items():
        assert 0 < np.abs(flat[path] - value).max() < 1e-5, path
    # as PyTorch starts it
    assert 0.9 * 20**-0.5 < np.abs(flat[new]).max() < 1.1 * 20**-0.5


@pytest.mark.slow
def test_an_average_has_the_pipeline_too(runs, tmp_path):
    changes = {"optimizer.averages": ("power(std=0.05)", "power(std=0.1)"), "checkpoint.save_every": 2}
    folder = trained(runs, "sd15_lcm:tiny", "averaged", **changes, **{"checkpoint.keep": 2})
    average.run(folder, stds=["0.08"], out=tmp_path / "average")
    shutil.rmtree(folder)
    shutil.move(runs / "sd15", runs / "away")
    try:
        sample_prompts(tmp_path / "average", ["a cat"], out=tmp_path / "x.npz", options=PromptOptions(steps=1))
    finally:
        shutil.move(runs / "away", runs / "sd15")
    with np.load(tmp_path / "x.npz") as file:
        assert file["images"].shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_an_adapter_alone_is_trained_and_kept(runs):
    folder = trained(runs, "sd15_lcm_lora:tiny", "lora")
    run = open_trained(folder)
    adapter = run.parameter_shapes()
    assert {path[-1] for path in flatten_dict(adapter)} == {"down", "up"}
    pipeline = cmjax.load_pipeline(folder)
    assert pipeline.sampler == "lcm"
    assert not pipeline.module.guidance_width
    teacher = flatten_dict(open_trained(runs / "sd15").load().params)
    changed = {path for path, value in flatten_dict(pipeline.params).items() if np.any(value != teacher[path])}
    assert len(changed) == len(flatten_dict(adapter)) / 2
    assert {path[-1] for path in changed} == {"kernel"}
    with np.load(sample_prompts(folder, ["a cat"], out=runs / "y.npz", options=PromptOptions(steps=1))) as file:
        assert file["images"].shape == (1, 64, 64, 3)
    do("export", f"--workdir={folder}", "--format=lora", f"--out={runs / 'adapter.safetensors'}")
    imported = cmjax.load_pipeline(runs / "sd15")
    merged = flatten_dict(with_lora(imported, read_lora(runs / "adapter.safetensors", imported)).params)
    for path, value in flatten_dict(pipeline.params).items():
        np.testing.assert_allclose(merged[path], value, rtol=1e-6, atol=1e-7)
    # the base is in the folder too
    shutil.move(runs / "sd15", runs / "away")
    try:
        np.testing.assert_array_equal(run.load().params["conv_in"]["kernel"], pipeline.params["conv_in"]["kernel"])
    finally:
        shutil.move(runs / "away", runs / "sd15")


def test_a_fresh_adapter_changes_nothing_and_its_targets_are_the_scripts(shared):
    _, base = load_unet(shared / "parity" / "sd" / "pipeline" / "unet")
    lora = Lora(4, 4.0, common.LORA_TARGETS)
    adapter = lora.init(jax.random.key(0), base)
    flat = flatten_dict(adapter)
    assert len(flat) == 2 * 198
    same = flatten_dict(lora.merged(base, adapter))
    for path, value in flatten_dict(base).items():
        np.testing.assert_array_equal(same[path], value)
    down = flat["mid_block", "resnets_0", "conv1", "down"]
    assert down.shape == (3, 3, 32, 4)
    assert 0.9 < np.abs(down).max() * (9 * 32) ** 0.5 <= 1


def test_wrong_targets_are_named(runs):
    config = config_for(runs, "sd15_lcm_lora:tiny", **{"lora.targets": ("to_q", "to_z")})
    run = read_run(config)
    with pytest.raises(ConfigError, match=r"config.lora.targets: the network has no layer to_z"):
        set_up(run, run.open_source)


def test_prompts_are_left_out_at_their_rate():
    context, pooled = jnp.ones((4000, 3, 2)), jnp.ones((4000, 2))
    batch = {"image": jnp.zeros((4000, 1, 1, 1)), "context": context, "pooled": pooled, "sizes": jnp.ones((4000, 6))}
    empty = {"context": np.zeros((3, 2), np.float32), "pooled": np.full(2, 5.0, np.float32)}
    how = {"preprocess": lambda x, key: x, "conditions": ("context", "pooled", "sizes")}
    _, inputs = prepare_inputs(batch, jax.random.key(0), **how, empty=empty, label_dropout=0.25, negative=True)
    dropped = np.asarray(inputs["context"][:, 0, 0] == 0)
    assert 0.2 < dropped.mean() < 0.3
    np.testing.assert_array_equal(inputs["context"], np.where(dropped[:, None, None], 0.0, context))
    np.testing.assert_array_equal(inputs["pooled"], np.where(dropped[:, None], 5.0, pooled))
    assert set(inputs["negative"]) == {"context", "pooled"}
    assert not inputs["negative"]["context"].any()
    _, plain = prepare_inputs(batch, jax.random.key(0), **how)
    assert "negative" not in plain


WRONG = [
    ({"net.context_width": 48}, r"config.init_from=.*; net.context_width is 40 there and 48 here$"),
    ({"net.widths": (8, 24)}, r"config.init_from=.*; net.widths is \(8, 16\) there and \(8, 24\) here$"),
    ({"model.path": "ddpm(schedule='linear')"}, r"config.model.path: is .*linear.* is of paths.ddpm\(schedule='scaled"),
    ({"model.preconditioning": "lcm(prediction='v')"}, r"predicts v, and config.objective.teacher=.* predicts epsilon"),
    ({"objective.teacher": "nowhere"}, r"config.objective.teacher='nowhere'.*is not a run's folder"),
    ({"samples.prompts": (1,)}, r"config.samples.prompts=\(1,\): must be texts"),
    ({"lora.rank": -1}, r"config.lora.rank=-1: must be at least 0"),
    ({"lora.targets": ()}, r"config.lora.targets=\(\): must name layers"),
    ({"init_from": ""}, r"config.lora.rank=4: an adapter changes weights that are there"),
    ({"net.attends": (True, 1)}, r"config.net.attends=.*True and False"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_what_does_not_fit_is_named(runs, changes, message):
    with pytest.raises(ConfigError, match=message):
        begin(config_for(runs, "sd15_lcm_lora:tiny", **changes))


def begin(config):
    run = read_run(config)
    check_others(run)
    return set_up(run, run.open_source).first_state()


def test_latents_without_captions_are_refused(runs, tmp_path):
    shutil.copytree(runs / "latents", tmp_path / "latents")
    manifest = tmp_path / "latents" / "train" / "manifest.json"
    stated = json.loads(manifest.read_text())
    assert "context" in stated["text"]
    run = read_run(config_for(runs, "sd15_lcm:tiny"))
    source = run.open_source("train")
    plain = type("Plain", (), {"shape": source.shape, "num_classes": None, "__len__": lambda self: 12})()
    plain.gather = lambda rows: {"image": source.gather(rows)["image"]}
    with pytest.raises(ConfigError, match="has no context of captions: encode it with --pipeline"):
        set_up(run, lambda split: plain)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_latents_of_another_pipeline_are_refused(runs, tmp_path, part):
    other = tmp_path / "other"
    shutil.copytree(runs / "sd15", other)
    file = next((other / part).glob("*.safetensors"))
    arrays = load_file(file)
    name = min(arrays)
    save_file({**arrays, name: arrays[name] + 1}, file)
    what = {"text_encoder": "captions of text encoders and tokenizers", "vae": "latents of an autoencoder"}[part]
    with pytest.raises(
        ConfigError, match=rf"config.objective.teacher='.*other': was trained on {what} .*these data are of"
    ):
        begin(config_for(runs, "sd15_lcm_lora:tiny", **{"init_from": str(other), "objective.teacher": str(other)}))


def test_targets_match_whole_names():
    lora = Lora(2, 2.0, ("conv1",))
    params = {"a": {"conv1": {"kernel": np.zeros((3, 3, 4, 4))}, "xconv1": {"kernel": np.zeros((2, 2))}}}
    assert set(flatten_dict(lora.shapes(params))) == {("a", "conv1", "down"), ("a", "conv1", "up")}
