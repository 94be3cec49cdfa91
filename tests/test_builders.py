"""Preparing CIFAR-10 and MNIST from small archives of the official formats, and refusing what is not theirs."""

import gzip
import hashlib
import io
import logging
import pickle
import struct
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cmjax.data.base import DataError
from cmjax.data.sources import tfds

pytest.importorskip("tensorflow_datasets")

from tensorflow_datasets.core.download.checksums import UrlInfo

from cmjax.data.builders import cifar10, mnist, preparing
from cmjax.data.builders.cifar10 import Cifar10, read_batch
from cmjax.data.builders.mnist import Mnist, read_idx

PER_FILE = 12


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote for {"data": data, "labels": labels}: byte strings (U, T), numpy.core.multiarray."""

    def word(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n(" + word(b"u1") + b"K\x00K\x01tR(K\x03" + word(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb"
    )
    content = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + word(b"b") + b"tR(K\x01("
        + number(data.shape[0]) + number(data.shape[1]) + b"t" + dtype + b"I00\n"
        + b"T" + struct.pack("<i", len(content)) + content + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + word(b"data") + array + word(b"labels") + listed + b"u."


def cifar_files(seed: int = 0) -> dict[str, tuple[np.ndarray, list[int]]]:
    random = np.random.default_rng(seed)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {
        name: (random.integers(0, 256, (PER_FILE, 3072), np.uint8), random.integers(0, 10, PER_FILE).tolist())
        for name in names
    }


def cifar_archive(batches: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, contents in (batches | {"batches.meta": b"not read", "readme.html": b"not read"}).items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return archive.getvalue()


def place(data_dir: Path, url: str, contents: bytes) -> UrlInfo:
    """Put a file where a person puts what they downloaded, and return its checksum."""
    path = data_dir / "downloads" / "manual" / url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return UrlInfo(size=len(contents), checksum=hashlib.sha256(contents).hexdigest(), filename=path.name)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(preparing, "why_unreachable", lambda url, deadline_seconds: "no network in tests")


@pytest.fixture
def small_cifar(tmp_path, monkeypatch, no_network):
    contents = cifar_archive({name: python2_pickle(*batch) for name, batch in cifar_files().items()})
    monkeypatch.setattr(Cifar10, "url_infos", {cifar10.URL: place(tmp_path, cifar10.URL, contents)})
    return tmp_path


def images_of(names: list[str]) -> dict[bytes, int]:
    """Every image as its bytes in (h, w, c) order -> label."""
    return {
        np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).tobytes(): label
        for name in names
        for row, label in zip(*cifar_files()[name], strict=True)
    }


def test_cifar10_from_its_archive(small_cifar):
    expected = {"train": images_of([f"data_batch_{i}" for i in range(1, 6)]), "test": images_of(["test_batch"])}
    for split, examples in expected.items():
        source = tfds("cifar10", split, data_dir=small_cifar)
        assert (len(source), source.shape, source.num_classes) == (len(examples), (32, 32, 3), 10)
        batch = source.gather(np.arange(len(source)))
        found = {image.tobytes(): int(label) for image, label in zip(batch["image"], batch["label"], strict=True)}
        assert found == examples
    assert (small_cifar / "cifar10" / "3.0.2" / "dataset_info.json").is_file()
    assert "tensorflow" not in sys.modules


def test_prepared_once_it_needs_no_archive(small_cifar):
    before = tfds("cifar10", "test", data_dir=small_cifar).gather(np.arange(PER_FILE))
    (small_cifar / "downloads" / "manual" / "cifar-10-python.tar.gz").unlink()
    after = tfds("cifar10", "test", data_dir=small_cifar).gather(np.arange(PER_FILE))
    np.testing.assert_array_equal(before["image"], after["image"])


def test_wrong_checksum_is_refused(small_cifar):
    path = small_cifar / "downloads" / "manual" / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="wrong checksum") as error:
        tfds("cifar10", "train", data_dir=small_cifar)
    assert "Delete it" in str(error.value)
    assert not (small_cifar / "cifar10" / "3.0.2").exists()


def test_official_checksums_hold_by_default(tmp_path, no_network):
    assert Cifar10.url_infos[cifar10.URL].checksum == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert set(Mnist.URLS) < set(Mnist.url_infos)
    place(tmp_path, cifar10.URL, cifar_archive({name: python2_pickle(*batch) for name, batch in cifar_files().items()}))
    with pytest.raises(DataError, match="wrong checksum"):
        tfds("cifar10", "train", data_dir=tmp_path)


def test_archive_without_batches_is_refused_and_leaves_nothing(tmp_path, monkeypatch, no_network):
    monkeypatch.setattr(Cifar10, "url_infos", {cifar10.URL: place(tmp_path, cifar10.URL, cifar_archive({}))})
    with pytest.raises(DataError, match=r"holds no file data_batch_\*"):
        tfds("cifar10", "train", data_dir=tmp_path)
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


def test_two_processes_may_prepare_at_once(small_cifar, monkeypatch):
    generate = Cifar10._generate_examples

    def overtaken(self, archive, prefix, split):
        yield from generate(self, archive, prefix, split)
        if not (small_cifar / "cifar10" / "3.0.2").exists():
            monkeypatch.setattr(Cifar10, "_generate_examples", generate)
            preparing.prepare(Cifar10, small_cifar)

    monkeypatch.setattr(Cifar10, "_generate_examples", overtaken)
    assert len(tfds("cifar10", "train", data_dir=small_cifar)) == 5 * PER_FILE


@pytest.mark.parametrize(("name", "urls"), [("cifar10", Cifar10.URLS), ("mnist", Mnist.URLS)])
def test_without_network_each_file_and_its_place_are_named(tmp_path, no_network, name, urls):
    with pytest.raises(DataError, match="no network in tests") as error:
        tfds(name, "train", data_dir=tmp_path)
    for url in urls:
        assert f"{url} -> {tmp_path / 'downloads' / 'manual' / url.rsplit('/', 1)[1]}" in str(error.value)


def test_a_silent_server_does_not_keep_us_waiting(monkeypatch):
    released = threading.Event()

    def silent(*_, **__):
        released.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(preparing.urllib.request, "urlopen", silent)
    start = time.monotonic()
    assert preparing.why_unreachable("https://example.invalid/", deadline_seconds=0.2) == "no answer in 0.2 s"
    assert time.monotonic() - start < 2
    released.set()
    assert preparing.DEADLINE_SECONDS < 10


def test_a_refusing_server_is_unreachable():
    assert "refused" in str(preparing.why_unreachable("http://127.0.0.1:9/", deadline_seconds=5.0)).lower()


def test_pickles_of_python_3_are_read_too():
    data, labels = cifar_files()["test_batch"]
    for protocol in (2, 4):
        contents = pickle.dumps({b"data": data, b"labels": labels}, protocol=protocol)
        images, read = read_batch(io.BytesIO(contents), "test_batch")
        np.testing.assert_array_equal(images, data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert read == labels


class Marks:
    """Unpickled without care, this makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_an_archive_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    contents = pickle.dumps({b"data": Marks(mark), b"labels": []})
    pickle.loads(contents)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(DataError, match="nothing in it was executed"):
        read_batch(io.BytesIO(contents), "data_batch_1")
    assert not mark.exists()
    for call in (b"cbuiltins\neval\n(U\x011tR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x00\x85R."):
        with pytest.raises(DataError, match="nothing in it was executed"):
            read_batch(io.BytesIO(call), "data_batch_1")


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"junk",
        pickle.dumps([1]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.int16), b"labels": [0, 1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}),
    ],
)
def test_what_is_no_cifar_batch_is_named(contents):
    with pytest.raises(DataError, match="data_batch_3: not a CIFAR-10 batch"):
        read_batch(io.BytesIO(contents), "data_batch_3")


def compressed(content):
    """The same bytes at any time: tests are named by them, and pytest's workers must agree on the names."""
    return gzip.compress(content, mtime=0)


def idx(array: np.ndarray) -> bytes:
    return compressed(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes())


def test_mnist_from_its_files(tmp_path, monkeypatch, no_network, caplog):
    caplog.set_level(logging.INFO)
    random = np.random.default_rng(0)
    infos, expected = {}, {}
    for split, count in (("train", 30), ("test", 9)):
        images, labels = (
            random.integers(0, 256, (count, 28, 28), np.uint8),
            random.integers(0, 10, count).astype(np.uint8),
        )
        expected[split] = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
        for url, array in zip(mnist.FILES[split], (images, labels), strict=True):
            infos[url] = place(tmp_path, url, idx(array))
    monkeypatch.setattr(Mnist, "url_infos", infos)
    for split, examples in expected.items():
        source = tfds("mnist", split, data_dir=tmp_path)
        assert (source.shape, source.num_classes) == ((28, 28, 1), 10)
        batch = source.gather(np.arange(len(source)))
        found = {image.tobytes(): int(label) for image, label in zip(batch["image"], batch["label"], strict=True)}
        assert found == examples
    assert caplog.text.count("preparing mnist in") == 1


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"junk", "cannot be unpacked"),
        (compressed(bytes(100))[:-12], "cannot be unpacked"),
        (idx(np.zeros(4, np.uint8)), "not an idx file of rank 3: it begins with 00000801"),
        (compressed(b"\0\0\x08\x03\0"), "not an idx file of rank 3"),
        (compressed(gzip.decompress(idx(np.zeros((2, 28, 28), np.uint8)))[:-1]), "1567 values follow"),
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path, contents, message):
    path = tmp_path / "images.gz"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, rank=3)
    assert str(path) in str(error.value)
