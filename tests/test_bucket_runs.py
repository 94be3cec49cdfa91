"""A run whose folder is in a bucket: trained, killed, gone on with by two processes, sampled and loaded."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import cmjax
from cmjax.data import sources
from cmjax.data.base import DataError
from cmjax.system.files import to_path
from tests.compiling import on_devices
from tests.waiting import wait_for

pytest_plugins = ["tests.buckets"]

ROOT = Path(__file__).parents[1]
RECIPE = (
    "--config=configs/digits_ct.py",
    "--config.net.width=32",
    "--config.net.depth=1",
    "--config.steps=40",
    "--config.batch_size=16",
    "--config.metrics.num=0",
    "--config.samples.num=4",
    "--config.samples.every=0",
    "--config.samples.times=(80.0,)",
    "--config.report=False",
    "--config.checkpoint.save_every=10",
    "--config.log.every=1",
)
MAIN = (sys.executable, "-m", "cmjax.main")


@pytest.fixture
def here(bucket, monkeypatch):
    """The bucket, reached from the tests' own process."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return to_path(bucket.url)


@pytest.fixture
def start(bucket, tmp_path):
    def start(*command, devices=2):
        environment = bucket.environment | {
            "XLA_FLAGS": on_devices(devices),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            "PYTHON": sys.executable,
        }
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def end(process, code=0):
    said, wrong = process.communicate(timeout=180)
    assert process.returncode == code, wrong[-3000:]
    return said, wrong


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_goes_on(here, start, tmp_path):
    run = here / "runs" / "digits_ct"
    killed = start(*MAIN, *RECIPE, f"--workdir={run}")
    wait_for((run / "checkpoints" / "10" / "commit_success.txt").exists, killed, every_s=0.1)
    killed.kill()
    killed.communicate()
    end(start("bash", "launch/local.sh", "2", *RECIPE, f"--workdir={run}", devices=1))
    end(start(*MAIN, *RECIPE, f"--workdir={tmp_path / 'disk'}"))
    loaded = (jax.tree.leaves(cmjax.load(folder).params) for folder in (str(run), tmp_path / "disk"))
    for a, b in zip(*loaded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [20, 30, 40]
    end(start(*MAIN, "--mode=sample", f"--workdir={run}", "--num=4"))
    assert {path.name for path in (run / "samples").iterdir()} == {"0000040-1-step.png", "seed-0.png"}


def test_an_unknown_bucket_is_one_line_at_once(bucket, start):
    began = time.monotonic()
    _, said = end(start(*MAIN, *RECIPE, "--workdir=gs://no-such-bucket/run"), code=1)
    assert said.startswith("error: --workdir=gs://no-such-bucket/run cannot be reached")
    assert said.count("\n") == 1
    assert time.monotonic() - began < 30


def test_arrays_and_folders_of_pictures_are_read_from_a_bucket(here, tmp_path):
    images = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=images)
    (here / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert len(sources.arrays(str(here / "a.npz"), "train")) == 18
    from PIL import Image

    for split in ("train", "test"):
        for i in range(2):
            Image.fromarray(images[i]).save(tmp_path / "x.png")
            (here / "images" / split / f"{i}.png").write_bytes((tmp_path / "x.png").read_bytes())
    found = sources.folder(str(here / "images"), "train", image_size=4)
    np.testing.assert_array_equal(found.gather(np.array([0, 1]))["image"], images[:2])
    with pytest.raises(DataError, match="copy them to"):
        sources.tfds("cifar10", "train", data_dir=str(here / "data"))
