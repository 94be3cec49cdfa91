"""Latents with text embeddings: what is written of captioned images, what is read, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cmjax.cli import encode
from cmjax.config.fields import ConfigError
from cmjax.data.base import DataError
from cmjax.data.batches import Batches
from cmjax.data.latents import about_latents, empty_prompt, latents, sample_latents
from cmjax.generation import text_embeddings
from cmjax.interop.pipeline import load_pipeline
from cmjax.runs.classes import other_encoders
from tests.test_pipeline import write_sdxl

COUNT = 26
WORDS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd" / "pipeline"


@pytest.fixture(scope="module")
def sdxl(shared, tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl", shared / "parity" / "sd")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of several sizes, each with its caption in a text file."""
    folder = tmp_path_factory.mktemp("captioned") / "a folder"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (32, 32 + 8 * (i % 3), 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {WORDS[i % 3]} picture,\n number {i}\n")
    return folder


def config_of(folder, **others):
    data = {"name": "folder", "data_dir": str(folder), "image_size": 32, "channels": 3, **others}
    return {"data": {**encode.WITHOUT_RECIPE["data"], **data}}


@pytest.fixture(scope="module")
def encoded(sd, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "latents"
    encode.run(config_of(images), pipeline=sd, out=out, batch_size=8, shard_size=10)
    return out


def test_the_embeddings_are_those_of_the_pipeline(sd, encoded):
    source = latents(encoded, "train")
    rows = np.arange(len(source))
    captions = source.captions(rows)
    numbers = [int(caption.split()[-1]) for caption in captions]
    assert captions == [f"a {WORDS[i % 3]} picture, number {i}" for i in numbers]
    batch = source.gather(rows)
    assert set(batch) == {"image", "std", "context"}
    pipeline = load_pipeline(sd)
    expected = np.asarray(pipeline.conditions(pipeline.tokens(captions), (32, 32))["context"])
    np.testing.assert_allclose(batch["context"], expected, rtol=1e-3, atol=2e-3)
    assert batch["context"].dtype == np.float16
    assert about_latents(source)["text_encoder"] == pipeline.text_key
    assert about_latents(source)["autoencoder"] == pipeline.autoencoder.weights_key
    sampled = sample_latents(batch, jax.random.key(0))
    assert sampled["context"].dtype == np.float32
    assert Batches(source, 8, 0).at(1)["context"].shape == (8, 77, 40)


def test_the_empty_prompt_is_the_pipelines(sd, encoded):
    pipeline = load_pipeline(sd, with_unet=False)
    expected = pipeline.conditions(pipeline.tokens([""]), (32, 32))["context"][0]
    for folder in (encoded, encoded / "train"):
        read = empty_prompt(folder)
        assert list(read) == ["context"]
        np.testing.assert_allclose(read["context"], expected, rtol=1e-3, atol=2e-3)


def test_sdxl_has_pooled_features_and_the_sizes_of_each_image(sdxl, images, tmp_path):
    out = tmp_path / "latents"
    encode.run(config_of(images, image_size=(16, 32)), pipeline=sdxl, out=out, crop="lanczos", batch_size=8)
    source = latents(out, "train")
    batch, captions = source.gather(np.arange(len(source))), source.captions(np.arange(len(source)))
    pipeline = load_pipeline(sdxl, with_unet=False)
    expected = pipeline.conditions(pipeline.tokens(captions), (16, 32))
    for name in ("context", "pooled"):
        np.testing.assert_allclose(batch[name], expected[name], rtol=1e-3, atol=2e-3)
    # 32 x (32, 40, 48) pixels, scaled to a width of 32
    top = {32: 8, 40: (25.6 - 16) // 2, 48: (21.3 - 16) // 2}
    widths = [32 + 8 * (int(caption.split()[-1]) % 3) for caption in captions]
    np.testing.assert_array_equal(batch["sizes"], [[32, width, top[width], 0, 16, 32] for width in widths])
    none = empty_prompt(out)
    assert {name: value.shape for name, value in none.items()} == {"context": (77, 28), "pooled": (10,)}
    assert not any(value.any() for value in none.values())
    assert sample_latents(batch, jax.random.key(0))["sizes"].dtype == np.float32


def test_latents_without_captions_have_no_empty_prompt(tmp_path, encoded):
    copied = shutil.copytree(encoded, tmp_path / "copied")
    (copied / "train" / "empty_prompt.npz").unlink()
    with pytest.raises(DataError, match=r"has no empty_prompt\.npz: encode captioned images by"):
        empty_prompt(copied)


def test_a_long_caption_is_kept_in_part_and_only_some_are_named(sd, tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (20 * i, 0, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{i} " + 900 * "ä ")
    encode.run(config_of(folder), pipeline=sd, out=tmp_path / "latents", batch_size=4)
    warnings = [record.getMessage() for record in caplog.records if "prompt of" in record.getMessage()]
    assert len(warnings) == text_embeddings.SHOWN
    assert caplog.text.count("more captions are cut, which are not shown") == 1
    caption = latents(tmp_path / "latents", "train").captions(np.array([0]))[0]
    assert len(caption.encode()) in (1023, 1024)
    assert set(caption[2:]) == {"ä", " "}


def test_what_cannot_be_encoded_is_refused_in_one_line(sd, sdxl, images, tmp_path, monkeypatch):
    def refused(problem, config=None, **arguments):
        usual = {"pipeline": sd, "out": tmp_path / "out", "batch_size": 8}
        with pytest.raises((ConfigError, DataError), match=problem) as error:
            encode.run(config or config_of(images), **usual | arguments)
        assert "\n" not in str(error.value)

    refused("--autoencoder is missing: .*or a pipeline's for captions too", pipeline=None)
    refused("--autoencoder=x: the pipeline has an autoencoder; leave one of the flags out", autoencoder="x")
    refused("--scale=2.0: a pipeline's autoencoder has its scale", scale=2.0)
    refused("--pipeline=.*is no pipeline of diffusers: it has no model_index.json", pipeline=images)
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused("--pipeline=.*is a FluxPipeline, which is not read; these are", pipeline=tmp_path / "flux")
    digits = config_of("", name="digits", image_size=0, channels=0)
    refused("the data 'digits' have no captions; these may: folder, webdataset, parquet, huggingface", digits)
    refused(r"--pipeline=.*the images are 30x30, and .*multiples of its factor 8", config_of(images, image_size=30))
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("000.png", "001.png", "002.png"):
        shutil.copy(images / name, plain)
    refused("its images have no captions: neither", config_of(plain))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(text_embeddings, "LARGEST", 0.1)
    refused("the empty prompt: its context is not finite, or beyond float16")
    encode.run(config_of(images), pipeline=sdxl, out=tmp_path / "out", batch_size=8)


def test_a_folder_is_gone_on_with_by_its_pipeline_alone(sd, encoded, images, tmp_path):
    out = shutil.copytree(encoded, tmp_path / "out")
    manifest = json.loads((out / "train" / "manifest.json").read_text())
    again = {"out": out, "batch_size": 8, "shard_size": 10}
    assert encode.run(config_of(images), pipeline=sd, **again) == manifest
    problem = r"was begun with text embeddings of another text encoder or tokenizer, \w+, and this is \w+"
    with pytest.raises(ConfigError, match=problem):
        encode.run(config_of(images), autoencoder=sd, **again)
    other = shutil.copytree(sd, tmp_path / "other")
    config = other / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(ConfigError, match=problem):
        encode.run(config_of(images), pipeline=other, **again)
    assert other_encoders(manifest, {"text_encoder": load_pipeline(other, with_unet=False).text_key}).startswith(
        "captions of text encoders and tokenizers that have the key"
    )
    assert not other_encoders(manifest, {"autoencoder": manifest["autoencoder"]})
