"""Edits by prompts from the command line: an image and a mask in, strips with their settings out, and wrong input."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.generation import keys, sampling
from cmjax.generation.pipelines import PromptOptions
from cmjax.generation.prompt_edits import edit_by_prompt, fitting_size
from cmjax.system.mesh import batch_sharding, replicated
from tests.in_process import do
from tests.recorded_parts import quick_jit
from tests.test_pipeline import linked


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def lcm(sd, tmp_path_factory):
    return linked(tmp_path_factory.mktemp("edits") / "lcm", sd, unet="lcm/unet", scheduler="lcm/scheduler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 24, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    mask = np.full((16, 24), 255, np.uint8)
    mask[:, 9:] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    mask[:] = 0
    mask[::2] = 255
    Image.fromarray(mask).save(folder / "stripes.png")
    Image.new("L", (24, 16), 255).save(folder / "white.png")
    Image.new("L", (20, 16), 0).save(folder / "other.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


@pytest.fixture
def quickly(monkeypatch):
    """What is spread over devices is compiled quickly."""

    def spread(function, mesh):
        return quick_jit(function, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))

    monkeypatch.setattr(sampling, "_spread", spread)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_inpainting_keeps_white_pixels_and_says_its_settings(lcm, folder, tmp_path, caplog):
    image, mask, out = folder / "a.png", folder / "mask.png", tmp_path / "x.png"
    flags = ["--num=2", "--seed=3", "--times=999", "--guidance=3", "--size=16x24", "--prompt=a red ball"]
    do("edit", f"--workdir={lcm}", "--task=inpaint", f"--image={image}", f"--mask={mask}", f"--out={out}", *flags)
    shown = Image.alpha_composite(Image.new("RGBA", (24, 16), "white"), Image.open(image)).convert("RGB")
    white = pixels(mask) == 255
    one, two = (pixels(tmp_path / f"x-result-{i}.png") for i in range(2))
    for result in (one, two):
        assert np.abs(result[white] - np.asarray(shown).astype(int)[white]).max() <= 1  # as Pillow lays over white
        np.testing.assert_array_equal(result[white], one[white])
    assert np.abs(one - two)[~white].max() > 10
    stated = {"task": "inpainting", "strength": 1.0, "seed": 3, "num": 2, "sampler": "lcm", "times": [999]}
    stated |= {"size": [16, 24], "guidance": 3.0, "negative": None, "folder": str(lcm)}
    for file in (out, tmp_path / "x-result-1.png"):
        with Image.open(file) as opened:
            assert opened.text["prompt"] == "a red ball"
            assert json.loads(opened.text["cmjax"]) == stated | {"image": str(image), "mask": str(mask)}
    assert pixels(out).shape == (64 + 4, 4 * (96 + 2) + 2, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_strokes_are_those_of_python_whatever_the_batch(sd, folder, tmp_path):
    options = PromptOptions(
        sampler="ddim", steps=4, negative="blurred", size="16x24", lora=str(sd / "lora/kohya.safetensors")
    )
    for num in (1, 3):
        out = tmp_path / f"{num}.png"
        edit_by_prompt(sd / "pipeline", "a cat", str(folder / "a.png"), strength=0.5, num=num, out=out, options=options)
    one, first = pixels(tmp_path / "1-result.png"), pixels(tmp_path / "3-result-0.png")
    assert np.abs(one - first).max() <= 1
    with Image.open(tmp_path / "1.png") as opened:
        settings = json.loads(opened.text["cmjax"])
    assert settings["times"] == [251, 1, 0]
    assert (settings["negative"], settings["lora_scale"]) == ("blurred", 1.0)
    pipeline = cmjax.load_pipeline(sd / "pipeline")
    image = pixels(tmp_path / "1.png")[2:66:4, 2:98:4] / np.float32(127.5) - 1
    key = jax.random.wrap_key_data(keys.keys_of(0, np.arange(1)))
    by = {"key": key, "sampler": "ddim", "steps": 4, "negative": ["blurred"], "strength": 0.5}
    without = pipeline.sample(["a cat"], images=image[None].astype(np.float32), **by)
    assert np.abs((without[0] + 1) * 127.5 - one).max() > 2  # the LoRA


def test_an_image_is_edited_at_a_size_that_the_network_knows():
    assert fitting_size((512, 768), 512, 8) == (512, 768)
    assert fitting_size((516, 500), 512, 8) == (512, 496)
    assert fitting_size((3000, 4000), 512, 8) == (440, 592)
    assert fitting_size((32, 32), 512, 8) == (512, 512)
    assert fitting_size((10, 2000), 64, 8) == (8, 904)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt="], "--prompt= is empty"),
        (["--image={a}"], "--prompt is missing: name what the result shows"),
        (["--prompt=a"], "--image is missing: name the image that is edited"),
        (["--prompt=a", "--image={a},{a}"], "name one image that is edited"),
        (["--prompt=a", "--image=nowhere.png"], "--image=nowhere.png cannot be read: No such file"),
        (["--prompt=a", "--image={folder}/broken.png"], "--image=.*broken.png cannot be read: it is no image"),
        (["--prompt=a", "--image={a}", "--strength=0"], "--strength=0: must be above 0, and at most 1"),
        (["--prompt=a", "--image={a}", "--strength=2"], "--strength=2: must be above 0, and at most 1"),
        (["--prompt=a", "--image={a}", "--strength=nan"], "--strength=nan: must be above 0, and at most 1"),
        (
            ["--prompt=a", "--image={a}", "--strength=0.01"],
            "--strength=0.01: strength=0.01 leaves none",
        ),
        (["--prompt=a", "--image={a}", "--steps=4", "--strength=0.04"], "--steps=4: n must lie in 1 … 2, the steps"),
        (["--prompt=a", "--image={a}", "--sampler=heun"], "--sampler=heun: of a pipeline it must be one of ddim, pndm"),
        (["--prompt=a", "--image={a}", "--mask={a}"], "--mask: only --task=inpainting, --task=blending; this is strok"),
        (["--prompt=a", "--image={a}", "--label=3"], "--label: an edit by prompts takes --prompt, --negative-prompt"),
        (["--prompt=a", "--image={a}", "--noclip"], "--clip: an edit by prompts takes"),
        (["--prompt=a", "--image={a}", "--lora-scale=2"], "--lora_scale=2: it has no effect without --lora"),
        (["--prompt=a", "--image={a}", "--size=20x20"], "--size=20x20: must be a height and a width in pixels, mult"),
        (["--prompt=a", "--image={a}", "--negative_prompt=b"], "a negative prompt has no effect: the network has guid"),
        (["--prompt=a", "--image={a}", "--out={a}"], "--out=.*a.png: it would write over"),
        (["--prompt=a", "--image={a}", "--lora={unet}"], "is no LoRA of this network; what does not fit: conv_in.bias"),
        (["--prompt=a", "--image={a}", "--task=inpaint"], "--mask is missing: --task=inpainting keeps its white pix"),
        (["--prompt=a", "--image={a}", "--task=colorization"], "--task=colorization: a pipeline of prompts takes str"),
        (
            ["--prompt=a", "--image={a}", "--task=inpaint", "--mask={folder}/other.png"],
            "20x16 pixels; it must have the",
        ),
        (["--prompt=a", "--image={a}", "--task=inpaint", "--mask={folder}/white.png"], "of it is all white"),
        (["--prompt=a", "--image={a}", "--task=inpaint", "--mask={folder}/stripes.png"], "no square of 8x8 pixels, as"),
    ],
)
def test_wrong_input_is_one_line(lcm, sd, folder, tmp_path, flags, message):
    unet = sd / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    flags = [flag.format(folder=folder, a=folder / "a.png", unet=unet) for flag in flags]
    given = ["--task=stroke"] * (not any(flag.startswith("--task") for flag in flags))
    given += [f"--out={tmp_path / 'x.png'}"] * (not any(flag.startswith("--out") for flag in flags))
    with pytest.raises(ConfigError, match=message) as refused:
        do("edit", f"--workdir={lcm}", *given, *flags)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_prompts_are_of_pipelines_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"--strength: --workdir=.* is no pipeline of prompts, nor a run of one"):
        do("edit", f"--workdir={tmp_path}", "--task=strokes", "--image=a.png", "--strength=0.5")
