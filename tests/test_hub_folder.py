"""A run as a folder for model hubs: what is in it, what is left out, and that it is the same model again."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import cmjax
from cmjax.cli import exporting, importing
from cmjax.config.fields import ConfigError
from cmjax.runs.record import read_record
from tests.leaving import write_run
from tests.test_decoding import out, run, vae  # noqa: F401


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run with metrics, whose data lay in a folder."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits", "mlp")
    record = read_record(folder)
    record["config"]["data"]["data_dir"] = "/data/of mine"
    record["config"]["init_from"] = "/data/runs/teacher"
    (folder / "config.json").write_text(json.dumps(record))
    metrics = {"1-step": {"fd": 1.25, "recall_pixels": 0.5}, "training images": {"fd": 0.75, "recall_pixels": None}}
    summary = {"steps": 0, "metrics": metrics, "metrics_of": "fd: of a classifier"}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_folder_has_weights_a_card_metrics_and_a_picture(digits, tmp_path):
    exporting.run(digits, "hub", str(tmp_path / "x"), licence="cc-by-4.0")
    names = ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == names
    card = (tmp_path / "x" / "README.md").read_text()
    header = card.split("---\n")[1]
    assert "license: cc-by-4.0\npipeline_tag: unconditional-image-generation\n" in header
    assert '    - type: fd\n      name: "fd, 1-step"\n      value: 1.25\n' in header
    assert "| 1-step | 1.250 | 0.500 |\n| training images | 0.750 | - |" in card
    assert "| | fd ↓ | recall_pixels ↑ |" in card
    with Image.open(tmp_path / "x" / "samples.png") as picture:
        assert picture.size[0] > 64
    for file in ("README.md", "config.json", "model.safetensors"):
        assert b"/data/" not in (tmp_path / "x" / file).read_bytes()
    record = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (record["config"]["init_from"], record["licence"]) == ("teacher", "cc-by-4.0")


def test_a_card_without_metrics_of_the_training_has_those_of_evaluations(digits, tmp_path):
    copy = Path(shutil.copytree(digits, digits.parent / "evaluated"))
    (copy / "summary.json").write_text(json.dumps({"steps": 0, "metrics": {}}))
    average = read_record(copy)["config"]["optimizer"]["averages"][0]
    protocol = {"metrics": {"fd": {"rule": "Fréchet distance", "network": "dataset", "of": "a classifier"}}}
    row = {"step": 0, "average": average, "sampler": "1-step", "num": 50, "guidance": 2.0, "protocol": protocol}
    rows = [row | {"metrics": {"fd": 1.5}, "real": {"fd": 0.5}}]
    rows += [row | {"step": 7, "sampler": "2-step", "metrics": {"fd": 9.0}, "real": {}}]
    (copy / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exporting.run(copy, "hub", str(tmp_path / "x"))
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| 1-step | 1.500 |\n| real images | 0.500 |\n\nOf 50 samples each, guidance 2, by a classifier." in card
    assert "2-step" not in card


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_comes_back_as_the_same_model(digits, tmp_path, dtype):
    exporting.run(digits, "hub", str(tmp_path / "x"), dtype=dtype)
    assert {str(array.dtype) for array in load_file(tmp_path / "x" / "model.safetensors").values()} == {dtype}
    importing.run(str(tmp_path / "x"), tmp_path / "back")
    ours, back = cmjax.load(digits), cmjax.load(tmp_path / "back")
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), ours.params)
    jax.tree.map(np.testing.assert_array_equal, rounded, back.params)
    assert (back.kind, back.shape, back.t_max) == (ours.kind, ours.shape, ours.t_max)
    assert "license: other\n" in (tmp_path / "x" / "README.md").read_text()


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(digits, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("")
    with pytest.raises(ConfigError, match=r"--out=.*there exists and is not empty; name another"):
        exporting.run(digits, "hub", str(tmp_path / "there"))
    for licence in ("Apache 2.0", "mit\nx", ""):
        with pytest.raises(ConfigError, match=r"--licence=.*must be an identifier in small letters"):
            exporting.run(digits, "hub", str(tmp_path / "x"), licence=licence)
    big = write_run(tmp_path / "big", "mlp")
    params = jax.tree.map(lambda leaf: 1e6 + 0 * leaf, cmjax.load(big).params)
    from cmjax.runs.weights import write_model

    record = read_record(big)
    write_model(tmp_path / "bigger", record["config"], (8, 8, 1), None, params, imported=None, option="")
    with pytest.raises(ConfigError, match=r"--dtype=float16: a weight is 1e\+06, which it has no number for"):
        exporting.run(tmp_path / "bigger", "hub", str(tmp_path / "x"), dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["big", "bigger", "there"]


def test_damaged_folders_are_refused_by_the_import(digits, tmp_path):
    exporting.run(digits, "hub", str(tmp_path / "x"))
    whole = (tmp_path / "x" / "config.json").read_text()
    for text, said in (('{"model_type": "bert"}', "is no cmjax model"), ("{", "is no cmjax model")):
        (tmp_path / "x" / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=said) as refused:
            importing.run(str(tmp_path / "x"), tmp_path / "back")
        assert "\n" not in str(refused.value)
    (tmp_path / "x" / "config.json").write_text(whole)
    (tmp_path / "x" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=re.escape("model.safetensors")):
        importing.run(str(tmp_path / "x"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_latents_take_their_autoencoder_with_them(run, vae, tmp_path):  # noqa: F811
    """And decode without the folders that they were encoded by."""
    exporting.run(run, "hub", str(tmp_path / "x"))
    assert sorted(path.name for path in (tmp_path / "x" / "autoencoder").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert str(vae).encode() not in (tmp_path / "x" / "config.json").read_bytes()
    importing.run(str(tmp_path / "x"), tmp_path / "back")
    from cmjax.generation.decoding import decoder_of
    from cmjax.runs.trained import open_trained

    ours, back = (decoder_of(open_trained(folder)) for folder in (run, tmp_path / "back"))
    assert back.path == str(tmp_path / "back" / "autoencoder")
    latents = np.random.default_rng(0).standard_normal((2, *open_trained(run).shape), dtype=np.float32)
    np.testing.assert_array_equal(ours(latents), back(latents))


@pytest.mark.slow
def test_a_program_of_latents_decodes_them(run, tmp_path):  # noqa: F811
    from jax import export

    from cmjax.generation.decoding import decoder_of
    from cmjax.runs.trained import open_trained

    exporting.run(run, "stablehlo", str(tmp_path / "x.stablehlo"), times="1")
    exporting.run(run, "stablehlo", str(tmp_path / "y.stablehlo"), times="1", autoencoder="none")
    images, latents = (export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes())) for name in "xy")
    noise = np.random.default_rng(0).standard_normal((2, *open_trained(run).shape), dtype=np.float32)
    label = np.array([1, 2], np.int32)
    decoded = decoder_of(open_trained(run))(np.asarray(latents.call(noise, label)))
    np.testing.assert_allclose(np.asarray(images.call(noise, label)), decoded, rtol=0, atol=1e-5)
    about = [json.loads((tmp_path / f"{name}.stablehlo.json").read_text())["output"]["name"] for name in "xy"]
    assert about == ["images", "latents"]
