"""Data sets with damaged examples, data sets larger than memory, and processes that decode."""

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.base import DataError
from cmjax.data.batches import Batches
from cmjax.data.on_demand import Damage
from cmjax.data.sources import arrays, digits, folder, tfds
from cmjax.system.mesh import batch_sharding, make_mesh
from configs import digits_ct

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CMJAX_SHARED", "../shared")) / "data" / "tfds"


@pytest.fixture
def pictures(tmp_path):
    for split, number in (("train", 12), ("test", 2)):
        (tmp_path / split).mkdir()
        for i in range(number):
            Image.fromarray(np.full((4, 4, 3), 10 * i + 5, np.uint8)).save(tmp_path / split / f"{i:02d}.png")
    return tmp_path


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no prepared data sets in {SHARED}; set CMJAX_SHARED")
def test_a_damaged_record_is_named_counted_and_replaced_up_to_a_limit(tmp_path, caplog):
    shutil.copytree(SHARED / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    os.chmod(tmp_path / "mnist" / "3.0.1", 0o755)
    (file,) = tmp_path.glob("mnist/3.0.1/*test.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 40] ^= 0xFF  # a record among the first 500
    file.write_bytes(content)
    whole = tfds("mnist", "test[:500]", data_dir=SHARED).gather(np.arange(500))
    for limit in (0, 10**9):
        source = tfds("mnist", "test[:500]", data_dir=tmp_path, memory_limit_bytes=limit, max_corrupt=1)
        batch = source.gather(np.arange(500))
        (place,) = np.flatnonzero((batch["image"] != whole["image"]).any(axis=(1, 2, 3)))
        np.testing.assert_array_equal(batch["image"][place], whole["image"][place + 1])
        assert batch["label"][place] == whole["label"][place + 1]
        assert f"record {place} cannot be read" in caplog.text
    with pytest.raises(DataError, match=r"1 examples cannot be read.*max_corrupt, which is 0"):
        tfds("mnist", "test[:500]", data_dir=tmp_path, max_corrupt=0).gather(np.arange(500))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_damaged_files_of_a_folder_have_the_same_limit(pictures, limit):
    for i in range(2):
        (pictures / "train" / f"{i:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = {"image_size": 4, "memory_limit_bytes": limit}
    assert len(folder(pictures, "train", **options, max_corrupt=2)) == 12
    with pytest.raises(DataError, match=r"2 examples cannot be read.*which is 1. The last: train/00.png: .*01.png: "):
        folder(pictures, "train", **options, max_corrupt=1).gather(np.arange(12))


def test_images_that_do_not_fit_into_free_memory_are_refused(pictures, monkeypatch):
    monkeypatch.setattr("cmjax.data.on_demand.free_on_host", lambda: 100)
    with pytest.raises(DataError, match=r"0\.0 GiB of memory are free; lower config\.data\.memory_limit_gb"):
        folder(pictures, "train", image_size=4)
    assert len(folder(pictures, "train", image_size=4, memory_limit_bytes=0)) == 12


def test_what_is_over_the_limit_is_so_the_next_time_too():
    damage = Damage("x", 0)
    for _ in range(2):
        with pytest.raises(DataError, match="1 examples cannot be read"):
            damage.note("a", "why")


def test_a_lack_of_memory_is_no_damage(pictures, monkeypatch):
    def no_memory(file, shape, **options):
        raise MemoryError

    monkeypatch.setattr("cmjax.data.folder.read_image", no_memory)
    with pytest.raises(MemoryError):
        folder(pictures, "train", image_size=4)


@pytest.mark.slow
def test_processes_decode_the_same_batches_and_one_that_dies_ends_the_run(pictures, caplog):
    (pictures / "train" / "03.png").write_bytes(b"")
    sharding = batch_sharding(make_mesh())
    options = {"image_size": 4, "memory_limit_bytes": 0, "max_corrupt": 1}
    alone = Batches(folder(pictures, "train", **options), 12, seed=3, sharding=sharding)
    expected = [alone.at(step) for step in range(5, 9)]
    caplog.clear()
    source = folder(pictures, "train", **options)
    stream = Batches(source, 12, seed=3, sharding=sharding, workers=2).stream(5)
    for batch, wanted in zip(stream, expected, strict=False):
        np.testing.assert_array_equal(batch["image"], wanted["image"])
        assert batch["image"].sharding == sharding
    assert caplog.text.count("train/03.png cannot be read") == 1
    processes = [child for child in multiprocessing.active_children() if "grain" in child.name]
    assert len(processes) == 2
    processes[0].kill()
    with pytest.raises(DataError, match=r"config.data.workers=2: a process that decodes ended with code -9"):
        list(stream)
    assert not [child for child in processes if child.is_alive()]


def test_arrays_are_not_sent_to_processes(caplog):
    batches = Batches(digits("train"), 8, seed=0, workers=2)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(next(batches.stream(3))["image"], batches.at(3)["image"])
    assert "config.data.workers=2: these data are kept in memory" in caplog.text


def test_without_grain_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("cmjax.system.libraries.find_spec", lambda name: None)
    config = digits_ct.get_config()
    config.data.workers = 2
    with pytest.raises(ConfigError, match=r"config.data.workers=2: needs grain: pip install 'cmjax\[large\]'"):
        read_run(config.to_dict())


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_beyond_the_limit_stay_in_their_file(tmp_path, split, caplog):
    images = np.random.default_rng(0).standard_normal((20, 4, 4, 2)).astype(np.float32)
    labels = np.arange(20) % 5
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez_compressed(tmp_path / "small.npz", images=images, labels=labels)
    read = arrays(tmp_path / "a.npz", split)
    for mapped in (arrays(tmp_path / name, split, memory_limit_bytes=0) for name in ("a.npz", "small.npz")):
        assert (len(mapped), mapped.shape, mapped.num_classes) == (len(read), read.shape, read.num_classes)
        indices = np.arange(len(read))[::-1]
        for name, values in read.gather(indices).items():
            np.testing.assert_array_equal(mapped.gather(indices)[name], values)
    assert "compressed" in caplog.text


LIMITED = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))
from cmjax.data.batches import Batches
from cmjax.data.sources import arrays, folder
if __name__ == "__main__":
    path, limit, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if path.endswith(".npz"):
        source = arrays(path, "train", memory_limit_bytes=limit)
    else:
        source = folder(path, "train", image_size=1024, memory_limit_bytes=limit)
    sizes = [batch["image"].shape for batch in Batches(source, 4, seed=0, workers=workers).stream(0, 5)]
    print(len(source), sizes[-1])
"""


@pytest.mark.slow
def test_a_data_set_larger_than_memory_is_read_within_it(tmp_path):
    """1,600 images of 1024x1024, 4.7 GiB decoded, and as much in an array, in a process that may hold 4 GiB."""
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "test").mkdir()
    first = tmp_path / "images" / "train" / "0.png"
    Image.fromarray(np.full((1024, 1024, 3), 7, np.uint8)).save(first)
    os.link(first, tmp_path / "images" / "test" / "0.png")
    for i in range(1, 1600):
        os.link(first, first.with_name(f"{i}.png"))
    shape = (1200, 1024, 1024, 1)
    scattered = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.float32, shape)
    del scattered  # a file with a hole
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.write(tmp_path / "images.npy", "images.npy")
    (tmp_path / "limited.py").write_text(LIMITED)
    cases = [(name, 10**9, workers) for name in ("images", "a.npz") for workers in (0, 2)]
    cases += [("images", 10**10, 0), ("a.npz", 10**10, 0)]
    for name, limit, processes in cases:
        command = [sys.executable, str(tmp_path / "limited.py"), str(tmp_path / name), str(limit), str(processes)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (limit == 10**9), (name, limit, done.stderr[-2000:])
        if limit == 10**10:
            assert "lower config.data.memory_limit_gb" in done.stderr, done.stderr[-2000:]
