"""Encoding of data sets: what is written, what is read and sampled, and what is refused; from the command line too."""

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cmjax.cli import encode
from cmjax.config.data import read_data
from cmjax.config.fields import ConfigError, Fields
from cmjax.data.base import DataError
from cmjax.data.batches import Batches
from cmjax.data.crops import adm
from cmjax.data.latents import latents, sample_latents
from cmjax.data.sources import digits, folder, tfds
from cmjax.generation import encoding, latent_shards
from cmjax.interop.autoencoder import load_autoencoder, write_autoencoder
from cmjax.interop.lightning_latents import lightning_latents
from cmjax.nets.latents import Autoencoder
from tests import by_hand
from tests.compiling import on_devices
from tests.in_process import do
from tests.test_autoencoder import tiny
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
SCALE, SHIFT = (0.5, 0.25, 1.0, 0.5), (0.1, 0.0, -0.2, 0.3)
DIGITS = {"data": {**encode.WITHOUT_RECIPE["data"], "name": "digits"}}
RECIPE = """
from configs import common

def get_config():
    config = common.base()
    config.steps, config.batch_size = 20, 16
    config.data.name = "latents"
    config.model = common.linear_model("linear", t_min=1e-3)
    config.net = common.network("dit", width=32, depth=1, heads=2, class_conditional=True)
    config.objective = common.ConfigDict({"name": "denoising", "times": "uniform(rho=1.0)", "weight": "uniform"})
    config.optimizer = common.optimizer("adam(b1=0.9, b2=0.99)", learning_rate=1e-3, averages=("ema(rate=0.9)",))
    config.metrics.num, config.report, config.log.tensorboard = 0, False, False
    config.log.every = 10
    config.samples = common.teacher_samples(every=0)
    config.samples.num, config.samples.solver_steps = 4, 2
    return config
"""


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae")
    write_autoencoder(path, tiny(channels=1))
    return path


@pytest.fixture(scope="module")
def encoded(vae, tmp_path_factory):
    """The digits' latents, to be read only."""
    out = tmp_path_factory.mktemp("encoded") / "latents"
    loaded = load_autoencoder(vae, scale=SCALE, shift=SHIFT)
    source = digits("train")
    encoding.encode_source(
        source, loaded, out / "train", about={"split": "train"}, mirrored=True, batch_size=100, shard_size=400
    )
    return out


def test_the_latents_of_an_image_are_the_autoencoder_s(vae, encoded):
    source, images = latents(encoded, "train"), digits("train")
    assert (len(source), source.shape, source.num_classes) == (1500, (4, 4, 4), 10)
    rows = np.array([1499, 0, 400, 399, 7])
    batch, expected = source.gather(rows), images.gather(rows)
    np.testing.assert_array_equal(batch["label"], expected["label"])
    autoencoder = load_autoencoder(vae, scale=SCALE, shift=SHIFT)
    encode_images = jax.jit(Autoencoder.encode)
    for side, mean_name, std_name in ((1, "image", "std"), (-1, "mirrored", "mirrored_std")):
        mean, logvar = encode_images(autoencoder, jnp.asarray(expected["image"], jnp.float32)[:, :, ::side] / 127.5 - 1)
        np.testing.assert_allclose(batch[mean_name], autoencoder.scaled(mean), rtol=1e-3, atol=4e-3)
        np.testing.assert_allclose(batch[std_name], jnp.exp(logvar / 2) * jnp.array(SCALE)[None, None, None], rtol=1e-3)
    assert not np.allclose(batch["image"], batch["mirrored"], atol=0.1)
    copied = pickle.loads(pickle.dumps(source)).gather(rows)  # as processes that read do
    np.testing.assert_array_equal(copied["image"], batch["image"])


def test_statistics_are_those_of_samples(encoded):
    manifest = json.loads((encoded / "train" / "manifest.json").read_text())
    batch = latents(encoded, "train").gather(np.arange(1500))
    means, stds = (manifest["statistics"][name] for name in ("mean", "std"))
    mean = batch["image"] / np.array(SCALE) + np.array(SHIFT)
    variance = mean.var((0, 1, 2)) + ((batch["std"] / np.array(SCALE)) ** 2).mean((0, 1, 2))
    np.testing.assert_allclose(means, mean.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stds, variance**0.5, rtol=1e-4)


def test_each_step_samples_anew_and_a_step_again_alike():
    mean, std = jnp.full((64, 8, 8, 2), 3.0), jnp.full((64, 8, 8, 2), 0.5)
    batch = {"image": mean, "std": std, "label": jnp.arange(64)}
    first, again, other = (sample_latents(batch, jax.random.key(seed))["image"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any(axis=(1, 2, 3)).all()
    noise = np.stack([first, other]) - 3
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    sides = sample_latents({**batch, "mirrored": -mean, "mirrored_std": 0 * std}, jax.random.key(0))["image"]
    mirrored = np.asarray(sides[:, 0, 0, 0] < 0)
    assert 16 < mirrored.sum() < 48
    np.testing.assert_array_equal(sides[mirrored], -3.0)
    images = {"image": mean, "label": jnp.arange(64)}
    np.testing.assert_array_equal(sample_latents(images, jax.random.key(0))["image"], mean)


def test_batches_carry_means_and_deviations_over_all_devices(encoded, mesh):
    source, sharding = latents(encoded, "train"), jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    for steps, leading in ((1, (8,)), (2, (2, 8))):
        batch = Batches(source, 8, 0, sharding=sharding, steps_per_call=steps).at(3)
        assert set(batch) == {"image", "std", "mirrored", "mirrored_std", "label"}
        assert batch["std"].shape == (*leading, 4, 4, 4)
    alone = Batches(source, 8, 0).at(3)
    np.testing.assert_array_equal(batch["mirrored_std"][0], alone["mirrored_std"])


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def manifest_of(out, split="train"):
    return json.loads((out / split / "manifest.json").read_text())


def test_a_killed_encoding_goes_on_with_the_shards_that_are_missing(vae, encoded, tmp_path):
    out = tmp_path / "latents"
    command = [sys.executable, "-m", "cmjax.main", "--mode=encode", "--config.data.name=digits", f"--out={out}"]
    command += [f"--autoencoder={vae}", "--shard_size=12", "--batch_size=12"]
    environment = {**os.environ, "XLA_FLAGS": on_devices(4), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    wait_for(lambda: len(list(out.glob("train/latents-*.array_record"))) > 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = {path: path.stat().st_mtime_ns for path in out.glob("train/latents-*.array_record")}
    assert 2 < len(whole) < 125
    (out / "train" / ".latents-00009-of-00125.array_record.left").write_bytes(b"a part")
    with pytest.raises(DataError, match="its encoding is not complete; the same command"):
        latents(out, "train")
    encode.run(DIGITS, autoencoder=vae, out=out, batch_size=12, shard_size=12)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not [path for path in (out / "train").iterdir() if path.name.startswith((".", "running"))]
    rows, scale, shift = np.arange(1500), np.array(SCALE), np.array(SHIFT)
    resumed, at_once = (latents(path, "train").gather(rows) for path in (out, encoded))
    np.testing.assert_allclose(resumed["image"] / 0.5, at_once["image"] / scale + shift, rtol=2e-3, atol=4e-3)
    np.testing.assert_allclose(resumed["std"] / 0.5, at_once["std"] / scale, rtol=2e-3)
    np.testing.assert_array_equal(resumed["label"], at_once["label"])


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk, files cannot grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_part_of_a_shard(vae, tmp_path, monkeypatch):
    out = tmp_path / "latents"
    with files_of_at_most(100_000), pytest.raises(ConfigError, match=r"00000.*cannot be written: .*make room") as error:
        encode.run(DIGITS, autoencoder=vae, out=out, batch_size=100)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (out / "train").iterdir()) == ["manifest.json"]
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ConfigError, match=r"takes 0\.\d\d GB more, and 0\.00 GB are free"):
        encode.run(DIGITS, autoencoder=vae, out=out)
    monkeypatch.undo()
    encode.run(DIGITS, autoencoder=vae, out=out, batch_size=100)
    assert len(latents(out, "train")) == 1500


@pytest.fixture
def copied(encoded, tmp_path):
    return Path(shutil.copytree(encoded, tmp_path / "copied"))


def test_files_that_are_not_whole_are_refused_in_one_line(copied):
    train = copied / "train"

    def refused(problem, split="train"):
        with pytest.raises(DataError, match=problem) as error:
            latents(copied, split)
        assert "\n" not in str(error.value)

    refused("no latents of the split", split="test")
    shard, manifest = train / "latents-00001-of-00004.array_record", train / "manifest.json"
    content, described = shard.read_bytes(), json.loads(manifest.read_text())
    shard.write_bytes(content[:-10])
    refused("has 327670 bytes of 327680")
    shard.unlink()
    refused("00001-of-00004.array_record: is missing")
    shard.write_bytes(bytes(len(content)))
    refused("a shard cannot be read|hold 1100 examples")
    shard.write_bytes(content)
    for changed, problem in (
        ({"count": 1501}, "hold 1500 examples, and manifest.json says 1501"),
        ({"format": 2}, "has format 2, and format 1"),
        ({"statistics": None}, "is not complete"),
        ({"bytes": [1]}, "does not have the bytes and keys of its 4 shards"),
        ({"scale": [np.nan] * 4}, "holds NaN or infinity"),
    ):
        manifest.write_text(json.dumps(described | changed))
        refused(problem)
    manifest.write_text(json.dumps({"format": 1}))
    refused("is no manifest of latents: it has no split")
    manifest.write_text("{")
    refused("cannot be read")


def test_a_damaged_record_is_replaced_up_to_the_limit(copied, encoded):
    shard = copied / "train" / "latents-00001-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    rows = np.arange(1500)
    damaged, whole = (latents(path, "train", max_corrupt=400).gather(rows)["image"] for path in (copied, encoded))
    replaced = np.flatnonzero((damaged != whole).any(axis=(1, 2, 3)))
    assert 0 < len(replaced) <= 400
    np.testing.assert_array_equal(damaged[replaced[-1]], whole[replaced[-1] + 1])
    with pytest.raises(DataError, match=r"examples cannot be read"):
        latents(copied, "train", max_corrupt=0).gather(rows)


def test_what_does_not_fit_is_refused_in_one_line(vae, encoded, tmp_path):
    def refused(problem, **arguments):
        out = tmp_path / "refused"
        with pytest.raises((ConfigError, DataError), match=problem) as error:
            encode.run(**{"config": DIGITS, "autoencoder": vae, "out": out, "batch_size": 100} | arguments)
        assert "\n" not in str(error.value)
        assert not out.exists()

    other, arrays = tmp_path / "other", {**DIGITS["data"], "name": "arrays", "data_dir": str(tmp_path / "images.npz")}
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    refused("--autoencoder=.*UNet2DModel", autoencoder=other)
    refused("--autoencoder=.*does not exist", autoencoder=tmp_path / "nowhere")
    for shape, problem in (
        ((9, 9, 1), r"9x9, and height and width must be multiples of its factor 2; set config\.data\.image_size=8"),
        ((8, 8, 3), r"have 3 channels, and it encodes 1; set config\.data\.channels=1"),
    ):
        np.savez(arrays["data_dir"], images=np.random.default_rng(0).integers(0, 256, (20, *shape)).astype(np.uint8))
        refused(problem, config={"data": arrays})
    refused("--autoencoder is missing", autoencoder=None)
    refused("--out is missing", out=None)
    refused("--scale=", scale="much")
    refused("written to a disk", out="gs://bucket/latents")
    refused("must be a multiple of the devices of a process, 4", batch_size=6)
    written = {"data": {**DIGITS["data"], "name": "latents", "data_dir": str(encoded)}}
    refused("these are encoded already", config=written)
    refused("config.data.data_dir=.*no such folder", config={"data": {**written["data"], "data_dir": "nowhere"}})


def test_a_folder_that_was_begun_goes_on_as_it_was_begun(vae, tmp_path):
    out, begun = tmp_path / "latents", {"autoencoder": vae, "out": tmp_path / "latents", "batch_size": 100}
    first = encode.run(DIGITS, split="test", **begun)
    assert encode.run(DIGITS, split="test", **begun) == first
    weights = tmp_path / "weights"
    autoencoder = tiny(channels=1)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, autoencoder.params)
    write_autoencoder(weights, autoencoder.__class__(changed, autoencoder.module, (0.5,) * 4, (0.0,) * 4, 32))
    for change, problem in (
        ({"autoencoder": weights}, "was begun with an autoencoder of other weights"),
        ({"mirrored": True}, "was begun with another mirrored, False, and this is True"),
        ({"tile": 3}, "was begun with another tile, None, and this is 3"),
        ({"shard_size": 100}, "another shard_size"),
        ({"scale": 3.0}, "has the scale"),
    ):
        with pytest.raises(ConfigError, match=problem):
            encode.run(DIGITS, split="test", **begun | change)
    assert manifest_of(out, "test") == first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train").mkdir()
    (tmp_path / "mine" / "train" / "photo.png").touch()
    with pytest.raises(ConfigError, match=r"holds photo\.png and no manifest\.json"):
        encode.run(DIGITS, **begun | {"out": tmp_path / "mine"})


def test_latents_whose_scale_is_open_are_scaled_to_one(vae, tmp_path):
    copied = Path(shutil.copytree(vae, tmp_path / "open"))
    (copied / "config.json").unlink()
    autoencoder = load_autoencoder(vae)
    autoencoder = autoencoder.__class__(autoencoder.params, autoencoder.module, None, None, 32)
    encoding.encode_source(
        digits("test"), autoencoder, tmp_path / "z" / "test", about={"split": "test"}, batch_size=100
    )
    batch = latents(tmp_path / "z", "test").gather(np.arange(297))
    sampled = np.asarray(sample_latents(batch, jax.random.key(0))["image"])
    np.testing.assert_allclose(sampled.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(sampled.std((0, 1, 2)), 1, rtol=0.05)


def test_values_beyond_half_precision_are_refused(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "LARGEST", 1.0)
    with pytest.raises(DataError, match="example 0: its latents are not finite, or beyond float16"):
        encode.run(DIGITS, autoencoder=vae, out=tmp_path / "latents", batch_size=100)
    assert latent_shards.facts_of(tmp_path / "latents" / "train" / "latents-00000-of-00001.array_record") is None


def test_adm_s_crop_halves_by_boxes_and_keeps_the_centre(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 16, (64, 96, 3)).astype(np.uint8) * 16  # each mean is whole
    boxes = pixels.astype(float).reshape(16, 4, 24, 4, 3).mean((1, 3))[:, 4:20]
    cropped = np.asarray(adm(Image.fromarray(pixels), 16, 16)).astype(float)
    np.testing.assert_array_equal(cropped, boxes)
    with pytest.raises(DataError, match="is a square, and 16x8"):
        adm(Image.fromarray(pixels), 16, 8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        Image.fromarray(pixels[::-1]).save(tmp_path / name / "1.png")
    source = folder(tmp_path, "train", image_size=16, crop="adm")
    assert any((image == cropped).all() for image in source.gather(np.arange(len(source)))["image"])


def test_tfds_images_of_several_sizes_are_cropped(tmp_path):
    import tensorflow_datasets

    from cmjax.data.builders.preparing import prepare

    class Sizes(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION, URLS, url_infos = "sizes", tensorflow_datasets.core.Version("1.0.0"), (), {}

        def _info(self):
            features = {"image": tensorflow_datasets.features.Image(shape=(None, None, 3))}
            features["label"] = tensorflow_datasets.features.ClassLabel(num_classes=2)
            features = tensorflow_datasets.features.FeaturesDict(features)
            return tensorflow_datasets.core.DatasetInfo(builder=self, description="two sizes", features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, size in enumerate(((40, 64), (96, 32), (32, 32), (70, 33))):
                file = io.BytesIO()
                Image.new("RGB", size, (i, 100, 200)).save(file, "png")
                yield i, {"image": io.BytesIO(file.getvalue()), "label": i % 2}

    prepare(Sizes, tmp_path)
    with pytest.raises(DataError, match=r"cropped to config\.data\.image_size"):
        tfds("sizes", "train", data_dir=tmp_path)
    source = tfds("sizes", "train", data_dir=tmp_path, image_size=(16, 16), crop="adm")
    images = source.gather(np.arange(4))["image"]
    assert (source.shape, images.shape) == ((16, 16, 3), (4, 16, 16, 3))
    assert sorted(images[:, 8, 8].tolist()) == [[i, 100, 200] for i in range(4)]


def write_statistics(path, mean, std):
    """A file of PyTorch's: {"mean": (1, c, 1, 1), "std": (1, c, 1, 1)}."""
    channels = len(mean)
    shape, store = ((1, channels, 1, 1), (channels, 1, 1, 1)), by_hand.storage(2 * channels)
    content = pickle.EMPTY_DICT + pickle.MARK
    for place, name in enumerate(("mean", "std")):
        content += by_hand.value(name) + by_hand.tensor(place * channels, *shape, store=store)
    data = np.array([*mean, *std], "<f4").tobytes()
    by_hand.write_zip(path, by_hand.whole(content + pickle.SETITEMS), data=data)


@pytest.fixture
def lightning(tmp_path):
    random = np.random.default_rng(0)
    mean, std = np.array([1.0, -2.0, 0.0]), np.array([2.0, 0.5, 3.0])
    standard = random.normal(size=(2, 10, 3, 4, 4))
    stored = (standard * std[:, None, None] + mean[:, None, None]).astype(np.float32)
    for i in range(2):
        flipped = np.ascontiguousarray(stored[i, ..., ::-1])
        arrays = {"latents": stored[i], "latents_flip": flipped, "labels": np.arange(10, dtype=np.int64) + i}
        save_file(arrays, tmp_path / f"latents_rank0{i}_shard000.safetensors")
    write_statistics(tmp_path / "latents_stats.pt", mean, std)
    return tmp_path, standard.reshape(20, 3, 4, 4).transpose(0, 2, 3, 1)


def test_lightningdit_s_files_are_read_by_index(lightning):
    path, standard = lightning
    data = read_data(Fields({**DIGITS["data"], "name": "latents", "data_dir": str(path)}, "data"))
    source = data.open("train")
    assert (len(source), source.shape, source.num_classes) == (20, (4, 4, 3), 11)
    batch = source.gather(np.array([12, 0, 9, 10]))
    np.testing.assert_allclose(batch["image"], standard[[12, 0, 9, 10]], atol=1e-5)
    np.testing.assert_allclose(batch["mirrored"], standard[[12, 0, 9, 10], :, ::-1], atol=1e-5)
    np.testing.assert_array_equal(batch["label"], [3, 0, 9, 1])
    assert "std" not in batch
    with pytest.raises(DataError, match="no latents of the split"):
        data.open("test")


def test_files_like_lightningdit_s_that_cannot_be_right_are_refused(lightning):
    path, _ = lightning
    file, statistics = path / "latents_rank01_shard000.safetensors", path / "latents_stats.pt"
    content = file.read_bytes()

    def refused(problem):
        with pytest.raises(DataError, match=problem) as error:
            lightning_latents(path)
        assert "\n" not in str(error.value)

    file.write_bytes(content[:-7])
    os.utime(file, (0, 0))
    refused("is no whole safetensors file")
    last = {"latents": np.zeros((5, 4, 4, 3), np.float32)}
    save_file({**last, "latents_flip": last["latents"], "labels": np.zeros(5, np.int64)}, file)
    refused("its channels are last, and must be first")
    save_file({"latents": np.ones((5, 3, 4, 4), np.float32)}, file)
    refused('"latents_flip" must have the shape')
    file.unlink()
    write_statistics(statistics, [0.0] * 3, [0.01] * 3)
    refused("and not about 1: it is of others")
    write_statistics(statistics, [0.0] * 4, [1.0] * 4)
    refused("is of 4 channels")
    statistics.unlink()
    refused(r"has no latents_stats\.pt")


@pytest.fixture(scope="module")
def run(vae, tmp_path_factory):
    """A teacher of 20 steps on latents, all from the command line."""
    here = tmp_path_factory.mktemp("run")
    recipe, out, run = here / "tiny_dit.py", here / "latents", here / "teacher"
    recipe.write_text(RECIPE)
    do("encode", "--config.data.name=digits", f"--autoencoder={vae}", f"--out={out}", "--mirrored", "--batch_size=100")
    do(f"--config={recipe}", f"--config.data.data_dir={out}", f"--workdir={run}")
    return recipe, out, run


def test_the_command_line_encodes_trains_and_samples(run, vae, tmp_path):
    recipe, out, workdir = run
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 20
    record = json.loads((workdir / "config.json").read_text())
    assert record["autoencoder"] == load_autoencoder(vae).weights_key
    do("sample", f"--workdir={workdir}", "--num=3", f"--out={tmp_path / 'samples.npz'}", "--steps=2")
    samples = np.load(tmp_path / "samples.npz")["images"]
    assert (samples.shape, samples.dtype) == ((3, 8, 8, 3), np.uint8)
    for field in ("horizontal_flip=True", "augment=edm(0.1)"):
        with pytest.raises(ConfigError, match="latents cannot be changed as the image"):
            do(
                f"--config={recipe}",
                f"--config.data.data_dir={out}",
                f"--config.data.{field}",
                f"--workdir={tmp_path / 'x'}",
            )


def test_a_run_does_not_go_on_with_latents_of_another_autoencoder(run, tmp_path):
    recipe, out, workdir = run
    other = Path(shutil.copytree(out, tmp_path / "other"))
    manifest = manifest_of(other)
    (other / "train" / "manifest.json").write_text(json.dumps(manifest | {"autoencoder": "0" * 16}))
    config = [f"--config={recipe}", f"--config.data.data_dir={other}", "--config.steps=30"]
    with pytest.raises(ConfigError, match="was trained on latents of an autoencoder whose weights have the key"):
        do(*config, f"--workdir={workdir}")
    with pytest.raises(ConfigError, match=r"config\.init_from=.* was trained on latents of an autoencoder"):
        do(*config, f"--config.init_from={workdir}", f"--workdir={tmp_path / 'new'}")


@pytest.mark.slow
def test_two_processes_encode_what_one_does(vae, tmp_path):
    flags = [
        "--mode=encode",
        "--config.data.name=digits",
        f"--autoencoder={vae}",
        "--batch_size=100",
        "--shard_size=100",
    ]
    environment = {**os.environ, "XLA_FLAGS": on_devices(2), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["PYTHON"] = sys.executable
    command = ["bash", "launch/local.sh", "2", *flags, f"--out={tmp_path / 'two'}"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    do(*flags, f"--out={tmp_path / 'one'}")
    two, one = (latents(tmp_path / name, "train").gather(np.arange(1500)) for name in ("two", "one"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=2e-3)
