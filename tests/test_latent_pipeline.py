"""A latent model from images to images: the example that trains an autoencoder, and the commands of its page, run on
scikit-learn's digits."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.data.batches import to_uint8
from cmjax.data.sources import digits
from cmjax.interop.autoencoder import load_autoencoder
from cmjax.nets.latents import Autoencoder
from examples import train_autoencoder
from tests.in_process import do

ROOT = Path(__file__).parents[1]
SMALL = ("--name=digits", "--steps=3", "--batch_size=16", "--widths=8,8")
BRIEF = ("--config.steps=3", "--config.batch_size=16", "--config.net.width=16", "--config.net.depth=1")
BRIEF += ("--config.samples.num=4", "--config.metrics.num=0", "--config.report=False", "--config.log.tensorboard=False")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder that the example writes after three updates."""
    out = tmp_path_factory.mktemp("trained") / "autoencoder"
    train_autoencoder.main([*SMALL, f"--out={out}"])
    return out


def test_the_folder_holds_the_autoencoder_and_what_it_makes_of_images(autoencoder):
    loaded, images = load_autoencoder(autoencoder), digits("train").images
    latents = train_autoencoder.latents_of(loaded, images[:100], jax.random.key(0))
    assert latents.shape == (100, 4, 4, 4)
    decoded = to_uint8(jax.jit(Autoencoder.decode)(loaded, latents))
    with np.load(autoencoder / "reconstructions.npz") as arrays:
        kept = arrays["images"]
    assert (kept.shape, kept.dtype) == (images.shape, np.uint8)
    assert np.abs(decoded.astype(int) - kept[:100]).max() <= 1
    with Image.open(autoencoder / "reconstructions.png") as picture:
        assert picture.size == (15 * 34 + 2, 8 * 34 + 2)  # of 8×8, enlarged four times, and gaps of 2


def test_its_latents_are_scaled_to_mean_0_and_std_1(autoencoder):
    loaded, images = load_autoencoder(autoencoder), digits("train").images
    latents = loaded.scaled(train_autoencoder.latents_of(loaded, images, jax.random.key(1)))
    np.testing.assert_allclose(np.mean(latents, (0, 1, 2)), 0, atol=0.03)
    np.testing.assert_allclose(np.std(latents, (0, 1, 2)), 1, rtol=0.03)


def test_the_loss_is_the_absolute_difference_and_the_divergence(autoencoder):
    loaded = load_autoencoder(autoencoder)
    images = jnp.asarray(digits("test").images[:16], jnp.float32) / 127.5 - 1
    choices = {"module": loaded.module, "kl_weight": 0.1}
    total, parts = train_autoencoder.loss(loaded.params, images, jax.random.key(0), **choices)
    mean, logvar = loaded.encode(images)
    std = jnp.exp(logvar / 2)
    z = mean + std * jax.random.normal(jax.random.key(0), mean.shape)
    l1 = jnp.mean(jnp.abs(loaded.decode(z) - images))
    kl = jnp.mean((mean**2 + std**2 - 1) / 2 - jnp.log(std))
    np.testing.assert_allclose([parts["l1"], parts["kl"], total], [l1, kl, l1 + 0.1 * kl], rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of the page have been run: the digits for MNIST, three updates each."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "configs").symlink_to(ROOT / "configs")
    page = (ROOT / "docs" / "howto" / "latents.md").read_text()
    for line in re.search(r"```sh\n(.*?)```", page, flags=re.DOTALL)[1].replace("\\\n", "").splitlines():
        _python, *arguments = shlex.split(line)
        arguments = [a.replace("name=mnist", "name=digits") for a in arguments if "tensorflow_datasets" not in a]
        with contextlib.chdir(folder):
            if arguments[0] == "examples/train_autoencoder.py":
                train_autoencoder.main([*arguments[1:], *SMALL])
            else:
                do(*arguments[2:], *(BRIEF if "--config=" in line else ()))
    return folder


@pytest.mark.slow
def test_the_page_s_commands_make_latents_models_and_images(folder):
    manifest = json.loads((folder / "latents" / "train" / "manifest.json").read_text())
    assert manifest["autoencoder"] == load_autoencoder(folder / "autoencoder").weights_key
    for name in ("sit", "scm_cd", "ect", "meanflow"):
        record = json.loads((folder / "runs" / f"mnist_latents_{name}" / "config.json").read_text())
        assert record["autoencoder"] == manifest["autoencoder"]
    with Image.open(folder / "digits.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (10 * 66 + 2, 10 * 66 + 2, 3)
    np.testing.assert_array_equal(pixels, np.repeat(pixels[..., :1], 3, axis=2))  # latents would be in colours


@pytest.mark.slow
def test_its_samples_are_measured_against_the_images(folder, monkeypatch):
    monkeypatch.chdir(folder)
    do("evaluate", "--workdir=runs/mnist_latents_scm_cd", "--times=1", "--num=40", "--metrics=fd")
    row = json.loads((folder / "runs" / "mnist_latents_scm_cd" / "evaluation.jsonl").read_text())
    assert row["metrics"]["fd"] > row["real"]["fd"] > 0


@pytest.mark.slow
def test_reconstructions_come_near_the_images(tmp_path):
    train_autoencoder.main(["--name=digits", "--steps=200", "--widths=16,32", f"--out={tmp_path}"])
    images = digits("train").images.astype(float)
    with np.load(tmp_path / "reconstructions.npz") as arrays:
        difference = np.abs(arrays["images"] - images).mean()
    assert difference < 0.25 * np.abs(images - images.mean(axis=0)).mean()
