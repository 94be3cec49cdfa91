"""Images of prompts from the command line: a pipeline is imported and sampled, and wrong options are one line."""

import contextlib
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.data.batches import to_uint8
from cmjax.generation import pipelines
from cmjax.generation.pipelines import PromptOptions
from cmjax.generation.prompts import sample_prompts
from cmjax.generation.sampling import keys_of
from cmjax.interop.prompt_sampling import pipeline_images
from tests.in_process import do


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def imported(sd, tmp_path_factory):
    """An imported pipeline, whose U-Net is in shards of half precision, with a part that is not read."""
    folder = tmp_path_factory.mktemp("prompts")
    shutil.copytree(sd / "pipeline", folder / "source")
    shutil.rmtree(folder / "source" / "unet")
    shutil.copytree(sd / "variants" / "sharded" / "unet", folder / "source" / "unet")
    (folder / "source" / "safety_checker").mkdir()
    index = json.loads((folder / "source" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "source" / "model_index.json").write_text(json.dumps(index))
    do("import", f"--source={folder / 'source'}", f"--workdir={folder / 'sd15'}")
    return folder / "sd15"


def test_an_import_copies_what_is_read(imported, sd):
    files = {file.relative_to(imported).as_posix() for file in imported.rglob("*") if file.is_file()}
    assert "unet/diffusion_pytorch_model-00002-of-00002.safetensors" in files
    assert {"vae/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= files
    index = json.loads((imported / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert not [file for file in files if file.startswith("safety_checker")]
    assert cmjax.load_pipeline(imported).module == cmjax.load_pipeline(sd / "pipeline").module


def test_sampling_writes_a_grid_with_its_prompts_and_settings(imported, sd, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    lora = sd / "lora" / "kohya.safetensors"
    flags = ["--sampler=lcm", "--times=999,500", "--guidance=1.5", "--negative-prompt=blurred", f"--lora={lora}"]
    flags += ["--lora_scale=0.5", "--num=2", "--seed=3", "--size=32x16"]
    file = tmp_path / "grid.png"
    do("sample", f"--workdir={imported}", f"--prompts={tmp_path / 'prompts.txt'}", f"--out={file}", *flags)
    with Image.open(file) as image:
        assert image.size == (2 * 64 + 3 * 2, 2 * 128 + 3 * 2)  # enlarged to be seen, with gaps
        assert image.text["prompt"] == "a cat\na dog"
        settings = json.loads(image.text["cmjax"])
    stated = {"seed": 3, "num": 2, "sampler": "lcm", "times": [999, 500], "size": [32, 16], "guidance": 1.5}
    stated |= {"negative": "blurred", "lora": str(lora), "lora_scale": 0.5, "folder": str(imported)}
    assert settings == stated


@pytest.mark.slow
def test_an_image_is_that_of_python_whatever_the_devices(imported, tmp_path):
    options = PromptOptions(sampler="lcm", steps=1, size="16x16")
    file = sample_prompts(imported, ["a cat"], num=3, out=tmp_path / "x.npz", options=options)
    arrays = np.load(file)
    assert arrays["prompts"].tolist() == ["a cat"] * 3
    assert arrays["images"].shape == (3, 16, 16, 3)
    one = sample_prompts(imported, ["a cat"], out=tmp_path / "y.npz", options=options)
    assert np.abs(np.load(one)["images"].astype(int) - arrays["images"][:1]).max() <= 1


def test_the_steps_of_ddim_are_counted_and_are_those_of_the_whole_loop(imported, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def bar(description, total):
        yield lambda done, text: shown.append((done, total))

    monkeypatch.setattr(pipelines, "progress", bar)
    options = PromptOptions(steps=4, size="16x16", guidance=2.0)
    pipeline = pipelines.open_pipeline(imported, options)
    request = pipelines.make_request(pipeline, ["a cat"] * 2, options)
    images = pipelines.sample_request(request, seed=3)
    assert shown == [(2, 8), (4, 8), (6, 8), (8, 8)]
    keys = jax.random.wrap_key_data(keys_of(3, np.arange(2)))
    by = {"sampler": "ddim", "size": (16, 16)}
    whole = jax.jit(partial(pipeline_images, **by))(pipeline, keys, request.rows, np.float32(request.times))
    assert np.abs(images.astype(int) - to_uint8(whole)).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--prompt is missing: name what the images show"),
        (["--prompt=a cat", "--prompts=x"], "--prompt is missing"),
        (["--prompts={file}"], "line 2 is empty; each line must be a prompt"),
        (["--prompts=nowhere"], "--prompts=nowhere"),
        (["--prompt=a", "--size=30x32"], "--size=30x32: must be a height and a width in pixels, multiples of 8"),
        (["--prompt=a", "--size=32x32x32"], "--size=32x32x32: must be"),
        (["--prompt=a", "--steps=2", "--times=999"], "--times=999: --steps=2 is set too; give one of them"),
        (["--prompt=a", "--times=3,9"], "--times=3,9: steps must be whole numbers that descend"),
        (["--prompt=a", "--times=x"], "--times=x: invalid literal"),
        (["--prompt=a", "--sampler=multistep"], "--sampler=multistep: of a pipeline it must be one of ddim, pndm, lcm"),
        (["--prompt=a", "--guidance=1", "--negative-prompt=b"], "a negative prompt has no effect: guidance is 1"),
        (["--prompt=a", "--label=3"], "--label: a pipeline of prompts takes --prompt, --prompts, --negative-prompt"),
        (["--prompt=a", "--lora={file}"], "--lora=.* is no whole safetensors file"),
        (["--prompt=a", "--out=x.jpg"], r"--out=x.jpg: must end in .png"),
    ],
)
def test_wrong_options_are_one_line(imported, tmp_path, flags, message):
    (tmp_path / "empty.txt").write_text("a cat\n\na dog")
    flags = [flag.format(file=tmp_path / "empty.txt") for flag in flags]
    with pytest.raises(ConfigError, match=message) as refused:
        do("sample", f"--workdir={imported}", *flags)
    assert "\n" not in str(refused.value)


def test_prompts_are_of_pipelines_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"--prompt: --workdir=.* is no pipeline of prompts, nor a run of"):
        do("sample", f"--workdir={tmp_path}", "--prompt=a cat")


def test_what_cannot_be_imported_leaves_nothing(sd, tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match="is a FluxPipeline, which is not read; these are: StableDiffusionPipeline"):
        do("import", f"--source={tmp_path / 'flux'}", f"--workdir={tmp_path / 'run'}")
    shutil.copytree(sd / "pipeline", tmp_path / "source", ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(ConfigError, match="has no part vae, which a StableDiffusionPipeline needs"):
        do("import", f"--source={tmp_path / 'source'}", f"--workdir={tmp_path / 'run'}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["flux", "source"]
