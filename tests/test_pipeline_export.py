"""Pipelines written back: read again they give bitwise the same images, and diffusers opens them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.interop import text_to_image
from cmjax.interop.keys import ForeignError
from cmjax.interop.lora import read_lora, with_lora
from cmjax.interop.pipeline_export import write_pipeline
from cmjax.interop.prompt_sampling import pipeline_images, pipeline_latents
from cmjax.interop.scheduler import read_schedule, scheduler_config
from tests.in_process import do
from tests.recorded_parts import assert_near, nhwc, quick_jit
from tests.test_pipeline import linked, sdxl_folder  # noqa: F401

PROMPTS = ["A cat, sitting!", "42 dogs"]
jitted = quick_jit(pipeline_images, static_argnames=("sampler", "size"))


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def folders(sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    linked(folder / "lcm", sd, unet="lcm/unet", scheduler="lcm/scheduler", tokenizer="variants/tokenizer_as_saved_now")
    parts = {name: f"sd2/{name}" for name in ("unet", "scheduler", "text_encoder", "tokenizer")}
    linked(folder / "sd2", sd, **parts)
    linked(folder / "sd15", sd, text_encoder="variants/text_encoder_unprefixed")
    return folder


def check_reads_back(source, folder):
    pipeline, back = cmjax.load_pipeline(source), cmjax.load_pipeline(folder)
    same_but_tokenizers(pipeline, back)
    return pipeline, back


def same_but_tokenizers(pipeline, back):
    """One program serves both, and their leaves are bitwise equal: so are their images."""
    back = dataclasses.replace(back, tokenizers=pipeline.tokenizers)
    assert jax.tree.structure(pipeline) == jax.tree.structure(back)
    jax.tree.map(np.testing.assert_array_equal, pipeline, back)


@pytest.fixture(scope="module")
def merged(sd, tmp_path_factory):
    """A pipeline with a LoRA merged, and the same as the command line wrote it."""
    folder, lora = tmp_path_factory.mktemp("merged"), sd / "lora" / "kohya.safetensors"
    do("export", f"--workdir={sd / 'pipeline'}", f"--lora={lora}", "--lora_scale=0.5", f"--out={folder / 'a b'}")
    assert [file.name for file in folder.iterdir()] == ["a b"]
    pipeline = cmjax.load_pipeline(sd / "pipeline")
    return with_lora(pipeline, read_lora(lora, pipeline), scale=0.5), cmjax.load_pipeline(folder / "a b")


def test_a_pipeline_with_a_lora_is_written(merged):
    same_but_tokenizers(*merged)


@pytest.mark.slow
def test_what_was_written_gives_bitwise_the_same_images(sd, merged, monkeypatch):
    monkeypatch.setattr(text_to_image, "_jitted_images", jitted)
    by = {"key": jax.random.key(0), "steps": 1, "guidance": 1.0, "size": (16, 16)}
    images = merged[1].sample(PROMPTS, **by)
    np.testing.assert_array_equal(images, merged[0].sample(PROMPTS, **by))
    without = cmjax.load_pipeline(sd / "pipeline").sample(PROMPTS, **by)
    assert np.abs(images - without).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "kind", "scheduler"),
    [
        ("sd15", "StableDiffusionPipeline", "PNDMScheduler"),
        ("sd2", "StableDiffusionPipeline", "DDIMScheduler"),
        ("lcm", "LatentConsistencyModelPipeline", "LCMScheduler"),
    ],
)
def test_pipelines_of_every_kind_are_written(sd, folders, tmp_path, name, kind, scheduler):
    write_pipeline(tmp_path / "out", cmjax.load_pipeline(folders / name))
    pipeline, back = check_reads_back(folders / name, tmp_path / "out")
    prompts = json.loads((sd / "prompts.json").read_text())
    np.testing.assert_array_equal(back.tokens(prompts), pipeline.tokens(prompts))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (index["_class_name"], index["scheduler"]) == (kind, ["diffusers", scheduler])


def test_two_text_encoders_are_written(sdxl_folder, tmp_path):  # noqa: F811
    write_pipeline(tmp_path / "out", cmjax.load_pipeline(sdxl_folder))
    pipeline, back = check_reads_back(sdxl_folder, tmp_path / "out")
    np.testing.assert_array_equal(back.tokens(PROMPTS), pipeline.tokens(PROMPTS))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]


def test_schedules_are_written_as_they_were_read():
    betas = np.linspace(0.001, 0.02, 10).tolist()
    for config in ({"trained_betas": betas}, {"beta_schedule": "linear", "prediction_type": "v_prediction"}):
        for kind in ("LCMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"):
            schedule = read_schedule(config | {"_class_name": kind, "timestep_scaling": 5, "steps_offset": 1}, "")
            again = scheduler_config(schedule)
            assert read_schedule(again, "") == dataclasses.replace(schedule, scaling=5.0 if "LCM" in kind else 10.0)
            assert again["_class_name"] == kind.replace("EulerDiscrete", "DDIM")


def test_what_cannot_be_written_leaves_nothing(sd, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    given = f"--workdir={sd / 'pipeline'}"
    for flags, message in [
        (["--format=npz"], "--format=npz: a pipeline, of conditional_unet, is written as diffusers"),
        ([f"--out={tmp_path / 'full'}"], r"--out=.*full exists and is not empty"),
        ([f"--out={tmp_path / 'file'}"], r"--out=.*file cannot be written"),
        (["--lora=nowhere", f"--out={tmp_path / 'x'}"], "--lora=nowhere"),
    ]:
        with pytest.raises(ConfigError, match=message) as refused:
            do("export", given, *flags)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"--lora: --workdir=.* is no pipeline of prompts"):
        do("export", f"--workdir={tmp_path}", "--lora=x")
    pipeline = cmjax.load_pipeline(sd / "pipeline")
    unknown = dataclasses.replace(pipeline.autoencoder, scale=None)
    with pytest.raises(ForeignError, match="scale is not known"):
        write_pipeline(tmp_path / "out", dataclasses.replace(pipeline, autoencoder=unknown))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "lcm", "sd2", "sdxl"])
def test_diffusers_draws_the_same_image(folders, sdxl_folder, tmp_path, name):  # noqa: F811
    """By its own classes from the written folder, from the same noise, to 1e-3. It needs the extra `diffusers`."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    write_pipeline(tmp_path / "out", cmjax.load_pipeline(sdxl_folder if name == "sdxl" else folders / name))
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    ours = cmjax.load_pipeline(tmp_path / "out")
    start = jax.random.normal(jax.random.key(0), (2, ours.sample_size, ours.sample_size, 4))
    given = torch.from_numpy(np.moveaxis(np.asarray(start), -1, 1).copy())
    sampler = type(theirs.scheduler).__name__.removesuffix("Scheduler").lower()
    steps = 1 if name == "lcm" else 4
    drawn = theirs(PROMPTS, latents=given, num_inference_steps=steps, guidance_scale=5.0, output_type="pt")
    rows = ours.rows(PROMPTS, sampler=sampler, guidance=5.0)
    times = ours.times(sampler, steps)
    conditions = ours.guided_conditions(rows, (ours.pixels, ours.pixels))
    by = {"sampler": sampler, "times": times, "start": start}
    latents = pipeline_latents(ours, jax.random.key(0), start.shape, **by, **conditions)
    images = np.clip(ours.decode(latents) / 2 + 0.5, 0, 1)
    assert_near(images, nhwc(drawn.images.numpy()), 1e-3)
