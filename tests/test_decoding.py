"""Latents decoded as images: by the autoencoder that a run knows or that is named, in every mode, and what is
refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.cli import evaluate, report, train
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.batches import to_uint8
from cmjax.data.sources import digits
from cmjax.evaluation.results import read_rows
from cmjax.evaluation.sweep import samples_key
from cmjax.generation.decoding import decoder_of
from cmjax.interop.autoencoder import load_autoencoder, write_autoencoder
from cmjax.nets.latents import Autoencoder
from cmjax.plotting.plots import image_grid
from cmjax.runs.trained import open_trained
from configs import common, digits_cd, digits_edm
from tests.in_process import do
from tests.test_autoencoder import tiny

SCALE = (0.5, 0.25, 1.0, 0.5)


def recipe(data_dir, **data):
    config = common.base()
    config.steps, config.batch_size = 4, 16
    config.data.update({"name": "latents", "data_dir": str(data_dir), **data})
    config.model = common.linear_model("linear_flow")
    config.net = common.network("dit", width=32, depth=1, heads=2, class_conditional=True, two_times=True)
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "sorted(apart=0.5)",
            "distance": "l2",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.optimizer = common.optimizer("adam", learning_rate=1e-3, averages=("ema(rate=0.9)",))
    config.metrics.num, config.report, config.log.tensorboard = 40, False, False
    config.log.every, config.checkpoint.save_every = 2, 4
    config.evaluate.update({"every": 4, "num": 40, "metrics": ("fd",)})
    config.samples = common.flow_map_samples(every=2, times=(1.0, 0.5))
    config.samples.num = 4
    return config.to_dict()


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae")
    write_autoencoder(path, tiny(channels=1, out_channels=1))
    return path


@pytest.fixture(scope="module")
def out(vae, tmp_path_factory):
    """The digits' latents."""
    out = tmp_path_factory.mktemp("encoded") / "latents"
    for split in ("train", "test"):
        flags = ["--batch_size=100", f"--scale={','.join(map(str, SCALE))}", f"--split={split}"]
        do("encode", "--config.data.name=digits", f"--autoencoder={vae}", f"--out={out}", *flags)
    return out


@pytest.fixture(scope="module")
def run(out, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "meanflow"
    train.run(recipe(out), workdir)
    return workdir


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """An autoencoder of other weights."""
    path, one = tmp_path_factory.mktemp("other"), tiny(channels=1, out_channels=1)
    write_autoencoder(path, replace(one, params=jax.tree.map(lambda leaf: leaf * 1.01, one.params)))
    return path


def sampled(path, run, *flags):
    do("sample", f"--workdir={run}", "--num=5", "--seed=3", f"--out={path}", *flags)
    return np.load(path)["images"]


def test_decoded_latents_are_the_autoencoder_s_images(run, vae, tmp_path):
    z = sampled(tmp_path / "latents.npz", run, "--autoencoder=none")
    assert (z.dtype, z.shape) == (np.float32, (5, 4, 4, 4))
    autoencoder = load_autoencoder(vae, scale=SCALE)
    expected = to_uint8(jax.jit(Autoencoder.decode)(autoencoder, z / np.array(SCALE, np.float32)))
    for flags in ([], [f"--autoencoder={vae}"]):
        images = sampled(tmp_path / "images.npz", run, *flags)
        assert (images.dtype, images.shape) == (np.uint8, (5, 8, 8, 1))
        assert np.abs(images.astype(int) - expected).max() <= 1
    assert images.std() > 1


def test_a_decoder_gives_the_same_for_any_number_of_images_at_once(run, monkeypatch):
    decoder = decoder_of(open_trained(run))
    latents = np.random.default_rng(0).normal(size=(11, 4, 4, 4)).astype(np.float32)
    at_once = decoder(latents)
    monkeypatch.setattr("cmjax.generation.decoding.PIXELS_AT_ONCE", 1)
    np.testing.assert_allclose(decoder(latents), at_once, atol=1e-5)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(decoder.autoencoder))


def test_decoding_in_bfloat16_and_in_tiles(run, vae, tmp_path):
    """Near what float32 gives of the whole latents, and not the same; results are kept apart by the key."""
    whole = sampled(tmp_path / "x.npz", run).astype(float)
    exact = decoder_of(open_trained(run))
    # of random weights the group norms of tiles differ much
    for flag, options, near in (
        ("--decode_dtype=bfloat16", {"dtype": "bfloat16"}, 0.1),
        ("--decode_tile=3", {"tile": 3}, 0.5),
    ):
        images = sampled(tmp_path / "x.npz", run, flag)
        assert 0 < np.abs(images - whole).mean() < near * whole.std()
        decoder = decoder_of(open_trained(run), **options)
        assert decoder.key not in (exact.key, decoder_of(open_trained(run), dtype="float32", tile=0).key)
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    autoencoder = load_autoencoder(vae, scale=SCALE)
    tiled = jax.jit(lambda autoencoder, z: autoencoder.decode_tiled(autoencoder.unscaled(z), tile=3))
    np.testing.assert_allclose(decoder(latents), tiled(autoencoder, latents), atol=1e-5)
    assert np.abs(decoder(latents) - exact(latents)).max() > 1e-3
    pixels = digits("test").images[:3]
    assert np.abs(decoder.encode(pixels) - exact.encode(pixels)).max() > 0
    for options in ({"dtype": "float16"}, {"tile": -1}):
        with pytest.raises(ConfigError, match=f"--decode_{next(iter(options))}="):
            decoder_of(open_trained(run), **options)


def test_a_recipe_says_how_its_samples_are_decoded(run, out, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    record = json.loads((copied / "config.json").read_text())
    record["config"]["data"].update({"decode_dtype": "bfloat16", "decode_tile": 3})
    (copied / "config.json").write_text(json.dumps(record))
    decoder = decoder_of(open_trained(copied))
    assert (decoder.autoencoder.module.dtype, decoder.tile) == (jnp.bfloat16, 3)
    assert decoder_of(open_trained(copied), dtype="float32", tile=0).key == decoder_of(open_trained(run)).key
    for name, value in (("decode_dtype", "bfloat16"), ("decode_tile", 3)):
        config = recipe(out, **{name: value})
        read_run(config)
        config["data"].update({"name": "digits", "data_dir": ""})
        with pytest.raises(ConfigError, match=rf"config\.data\.{name}=.*is of latents, and the data 'digits'"):
            read_run(config)
    with pytest.raises(ConfigError, match=r"config\.data\.decode_dtype='float16': must be one of float32, bfloat16"):
        read_run(recipe(out, decode_dtype="float16"))


def test_grids_and_metrics_of_a_run_are_of_decoded_images(run):
    for step in (2, 4):
        for name in ("1-step-chain", "2-step-chain"):
            grid = np.asarray(Image.open(run / "samples" / f"{step:07d}-{name}.png"))
            assert grid.shape == image_grid(np.zeros((4, 8, 8, 1), np.uint8)).shape
    summary = json.loads((run / "summary.json").read_text())
    assert {"1-step-chain", "training images", "fitted Gaussian"} <= summary["metrics"].keys()
    assert summary["metrics"]["training images"]["fd"] < summary["metrics"]["1-step-chain"]["fd"]
    record = json.loads((run / "config.json").read_text())
    assert record["encoding"]["images"] == {"name": "digits", "data_dir": "", "crop": "none", "shape": [8, 8, 1]}
    assert record["encoding"]["scale"] == list(SCALE)
    (row,) = [row for row in read_rows(run / "evaluation.jsonl") if row["sampler"] == "1-step-chain"]
    assert row["protocol"]["metrics"]["fd"]["reference"] == "297 test images of digits"


def test_evaluation_compares_decoded_images_with_those_that_were_encoded(run, vae, tmp_path):
    decoder = decoder_of(open_trained(run))
    samples = sampled(tmp_path / "images.npz", run)
    assert decoder.shape == samples.shape[1:]
    (row,) = evaluate.run(run, metrics=["fd"], num=40, times=["1"])
    assert row["protocol"]["metrics"]["fd"]["reference"] == "297 test images of digits"
    do("sample", f"--workdir={run}", "--num=40", "--times=1", f"--out={tmp_path / 'forty.npz'}")
    of_file = evaluate.run(run, metrics=["fd"], images=str(tmp_path / "forty.npz"))
    assert of_file[0]["metrics"]["fd"] == pytest.approx(row["metrics"]["fd"], rel=1e-5)
    flow_map = open_trained(run).load()
    assert len({samples_key(flow_map, one) for one in (None, decoder, replace(decoder, key="another"))}) == 3


def moved(run, tmp_path):
    """The run, whose autoencoder is no longer where it was."""
    copied = Path(shutil.copytree(run, tmp_path / "moved"))
    record = json.loads((copied / "config.json").read_text())
    record["encoding"]["autoencoder"] = str(tmp_path / "gone")
    (copied / "config.json").write_text(json.dumps(record))
    return copied


def test_without_an_autoencoder_samples_are_latents(run, vae, tmp_path, caplog, capsys):
    copied = moved(run, tmp_path)
    images = sampled(tmp_path / "x.npz", copied)
    assert images.dtype == np.float32
    assert "gone does not exist" in caplog.text
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "5 latents of" in said
    assert "as --autoencoder=FOLDER" in said
    with pytest.raises(ConfigError, match=r"samples latents .* name what decodes them, as --autoencoder=FOLDER"):
        evaluate.run(copied, metrics=["fd"], num=40)
    assert sampled(tmp_path / "x.npz", copied, f"--autoencoder={vae}").dtype == np.uint8
    do("sample", f"--workdir={copied}", "--num=4", f"--out={tmp_path / 'x.png'}", "--autoencoder=none")
    assert "4 latents" in capsys.readouterr().out


def test_an_autoencoder_of_other_weights_is_refused_in_one_line(run, out, other, tmp_path):
    def refused(problem, action):
        with pytest.raises(ConfigError, match=problem) as error:
            action()
        assert "\n" not in str(error.value)

    problem = "autoencoder=.*: its weights have the key .*, and the run's latents are of those with the key"
    refused(f"--{problem}", lambda: sampled(tmp_path / "x.npz", run, f"--autoencoder={other}"))
    refused(f"--{problem}", lambda: evaluate.run(run, metrics=["fd"], num=40, autoencoder=str(other)))
    config = recipe(out, autoencoder=str(other))
    refused(rf"config\.data\.{problem}", lambda: train.run(config, tmp_path / "new"))
    assert not list((tmp_path / "new").glob("checkpoints/*"))
    refused("--autoencoder=nowhere: does not exist|nowhere does not", lambda: decoder_of(open_trained(run), "nowhere"))
    config["data"].update({"name": "digits", "data_dir": ""})
    refused("decodes latents, and the data 'digits' are images", lambda: train.run(config, tmp_path / "new"))
    narrow = tmp_path / "narrow"
    write_autoencoder(narrow, tiny(scale=(1.0,) * 2, shift=(0.0,) * 2, channels=1, latent_channels=2))
    record = json.loads((run / "config.json").read_text())
    unknown = replace(open_trained(run), record=open_trained(run).record | {"autoencoder": None, "encoding": {}})
    assert record["autoencoder"]
    refused("decodes latents of 2 channels", lambda: decoder_of(unknown, str(narrow)))


def test_a_teacher_of_another_autoencoder_s_latents_is_refused(run, out, tmp_path):
    manifests = Path(shutil.copytree(out, tmp_path / "others"))
    for split in ("train", "test"):
        path = manifests / split / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"autoencoder": "0" * 16}))

    def of_latents(config, data_dir):
        config.steps, config.batch_size, config.metrics.num, config.report = 1, 8, 0, False
        config.data.name, config.data.data_dir, config.samples.every = "latents", str(data_dir), 0
        config.samples.num = config.samples.solver_steps = 2
        return config.to_dict()

    train.run(of_latents(digits_edm.get_config(), out), tmp_path / "teacher")
    student = digits_cd.get_config()
    student.samples.solver_steps, student.objective.teacher = 2, str(tmp_path / "teacher")
    config = of_latents(student, manifests)
    del config["samples"]["solver_steps"]
    with pytest.raises(ConfigError, match=r"config\.objective\.teacher=.* was trained on latents of an autoencoder"):
        train.run(config, tmp_path / "student")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image")
    Image.fromarray(digits("test").gather(np.array([0]))["image"][0, ..., 0]).save(path / "0.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[1:3, 5:7] = 0  # of latents, places (0, 2), (0, 3), (1, 2) and (1, 3) lose a pixel
    Image.fromarray(mask).save(path / "mask.png")
    return path


def test_an_edit_is_of_latents_and_its_images_are_decoded(run, image, tmp_path, vae):
    out = tmp_path / "edit.png"
    flags = [f"--workdir={run}", "--task=inpainting", f"--image={image / '0.png'}", "--times=1,0.5", "--label=3"]
    do("edit", *flags, f"--mask={image / 'mask.png'}", f"--out={out}")
    result = np.asarray(Image.open(tmp_path / "edit-result.png"))[..., 0]
    assert result.shape == (8, 8)
    decoder = decoder_of(open_trained(run))
    pixels = digits("test").gather(np.array([0]))["image"]
    latents = decoder.encode(pixels)
    mean, _ = jax.jit(Autoencoder.encode)(load_autoencoder(vae), jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
    np.testing.assert_allclose(latents, mean * np.array(SCALE, np.float32)[None, None, None], rtol=1e-3, atol=1e-3)
    mask = (np.asarray(Image.open(image / "mask.png")) >= 128)[None, ..., None].astype(np.float32)
    known = np.ones((4, 4))
    known[0:2, 2:4] = 0
    np.testing.assert_array_equal(decoder.of_latents(mask)[0, ..., 0], known)
    kept = to_uint8(decoder(latents))[0, ..., 0]
    # The autoencoder's convolutions and norms reach further than the mask; latents that are kept stay.
    assert not np.array_equal(result, kept)
    for task in ("colorization", "super_resolution", "outpainting"):
        with pytest.raises(ConfigError, match=rf"--task={task}: is of pixels, and --workdir=.* samples latents"):
            do("edit", f"--workdir={run}", f"--task={task}", f"--image={image / '0.png'}", f"--out={out}")
    with pytest.raises(ConfigError, match=r"samples latents .* name what decodes them, as --autoencoder=FOLDER"):
        do("edit", *flags, f"--mask={image / 'mask.png'}", f"--out={out}", "--autoencoder=none")
    with pytest.raises(ConfigError, match="no square of 2x2 pixels"):
        decoder.of_latents(np.zeros((1, 8, 8, 1)))


def test_interpolation_and_the_gallery_show_decoded_images(run, tmp_path, caplog):
    caplog.set_level("INFO")
    do("edit", f"--workdir={run}", "--task=interpolation", "--num=3", "--label=3", f"--out={tmp_path / 'way.png'}")
    assert np.asarray(Image.open(tmp_path / "way-result-2.png")).shape == (8, 8, 3)
    do("gallery", f"--workdir={run}", "--times=1,0.5", f"--out={tmp_path / 'gallery.png'}")
    assert np.asarray(Image.open(tmp_path / "gallery.png")).shape[1] > 3 * 4 * 64
    for task in ("outpainting", "colorization", "super_resolution"):
        assert f"{task}: left out, it is of pixels" in caplog.text


def test_a_report_s_extra_grids_are_decoded(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    report._save_grid(open_trained(copied), 3)
    grid = np.asarray(Image.open(copied / "samples" / "0000004-3-step-chain.png"))
    assert grid.shape == image_grid(np.zeros((4, 8, 8, 1), np.uint8)).shape
