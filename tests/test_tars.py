"""Tars of images, a tar for each class: read in place, as a folder of the same images is."""

import io
import logging
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from cmjax.cli import encode
from cmjax.config.data import images_of
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data import tar_index
from cmjax.data.base import DataError, class_names
from cmjax.data.folder import folder
from cmjax.data.latents import latents
from cmjax.data.tars import tars
from cmjax.interop.autoencoder import write_autoencoder
from configs import digits_ct
from tests.test_autoencoder import tiny


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 24, 3), np.uint8)


def encoded(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def classes(tmp_path):
    """The same images as tars and as a folder of class folders."""
    for seed, name in enumerate(("cat", "dog", "owl")):
        files = {f"{name}_{i}.png": encoded(image) for i, image in enumerate(images(12, seed))}
        write_tar(tmp_path / "tars" / f"{name}.tar", files)
        (tmp_path / "folder" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "folder" / name / file).write_bytes(content)
    return tmp_path


def rows(source):
    """Each example's label and image, sorted."""
    batch = source.gather(np.arange(len(source)))
    return sorted((int(label), image.tobytes()) for label, image in zip(batch["label"], batch["image"], strict=True))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("crop", ["lanczos", "adm"])
def test_tars_are_the_folder_of_their_images(classes, split, crop):
    """The same examples, labels and names of classes, and the same tenth held out."""
    unpacked, packed = (
        open_source(classes / name, split, image_size=8, crop=crop)
        for open_source, name in ((folder, "folder"), (tars, "tars"))
    )
    assert packed.shape == unpacked.shape == (8, 8, 3)
    assert class_names(packed) == class_names(unpacked) == ("cat", "dog", "owl")
    assert len(packed) > 0
    assert rows(packed) == rows(unpacked)


def test_a_folder_of_held_out_tars_is_the_test_split(tmp_path):
    for place, count in (("train", 5), ("val", 2)):
        for name in ("a", "b"):
            write_tar(
                tmp_path / place / f"{name}.tar", {f"x/{i}.png": encoded(x) for i, x in enumerate(images(count, 0))}
            )
    assert [len(tars(tmp_path, split, image_size=8)) for split in ("train", "test")] == [10, 4]


def test_a_damaged_image_is_replaced_and_named(classes, caplog):
    write_tar(classes / "tars" / "cat.tar", {"bad.png": b"no image", "good.png": encoded(images(1, 0)[0])})
    source = tars(classes / "tars", "train", image_size=8, max_corrupt=1)
    assert len(source.gather(np.arange(len(source)))["image"]) == len(source)
    assert "cat.tar: bad.png cannot be read" in caplog.text


def test_what_is_no_folder_of_tars_is_refused_in_one_line(tmp_path):
    image = {"0.png": encoded(images(1, 0)[0])}

    def refused(match, where=tmp_path):
        with pytest.raises(DataError, match=match):
            tars(where, "train", image_size=8)

    refused("no such folder", tmp_path / "gone")
    refused(r"has no \.tar files")
    write_tar(tmp_path / "a.tar", image)
    refused("is the only tar; unpack it once")
    second = write_tar(tmp_path / "b.tar", {"0.txt": b"a caption", **image})
    refused("b.tar: has 0.txt beside images: it is a shard of samples")
    write_tar(second, {"notes.md": b"none"})
    refused("b.tar: holds no PNG or JPEG files")
    write_tar(second, image, "w:gz")
    refused("b.tar: cannot be read as an uncompressed tar")
    second.write_bytes(second.read_bytes()[:100])
    refused("b.tar: cannot be read")


@pytest.fixture
def opened(monkeypatch):
    """The names of the tars whose headers are read."""
    names, headers = [], tar_index._headers
    monkeypatch.setattr(tar_index, "_headers", lambda tar: names.append(tar.name) or headers(tar))
    return names


def test_headers_are_read_once(classes, opened):
    """Until a tar changes, and then of that one alone."""

    def members():
        return tars(classes / "tars", "train", image_size=8, memory_limit_bytes=1).members

    first = members()
    assert opened == ["cat.tar", "dog.tar", "owl.tar"]
    assert members() == first
    assert len(opened) == 3
    write_tar(classes / "tars" / "dog.tar", {"new.png": encoded(images(1, 5)[0])})
    assert [member.name for member in members() if member.tar.stem == "dog"] == ["new.png"]
    assert opened[3:] == ["dog.tar"]
    os.utime(classes / "tars" / "cat.tar", (0, 0))
    members()
    assert opened[4:] == ["cat.tar"]


def test_an_index_has_every_file_of_a_tar(tmp_path):
    """Captions too, for other readers of shards; folders and links are no files."""
    content = {"0.txt": b"a caption", "0.jpg": b"bytes"}
    shard = write_tar(tmp_path / "shard.tar", content)
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
    for _ in range(2):
        (members,) = tar_index.members_of([shard]).values()
        raw = shard.read_bytes()
        assert {name: raw[offset : offset + size] for _, name, offset, size, _ in members} == content


@pytest.mark.parametrize("damage", [b"", b"no JSON\n", b'{"tar": "cat.tar"}\n', b"\xff\xfe\n", None])
def test_a_damaged_index_is_made_anew(classes, opened, damage):
    index = classes / "tars" / tar_index.INDEX
    tars(classes / "tars", "train", image_size=8)
    whole = index.read_bytes()
    index.write_bytes(whole[:-40] if damage is None else damage)
    tars(classes / "tars", "train", image_size=8)
    assert len(opened) == (4 if damage is None else 6)
    assert index.read_bytes() == whole


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(classes, opened, monkeypatch, caplog):
    def write(path, content, refused=(classes / "tars",)):
        if any(path.is_relative_to(folder) for folder in refused):
            raise PermissionError(13, "Permission denied")
        return written(path, content)

    written = tar_index.write_atomically
    monkeypatch.setattr(tar_index, "write_atomically", write)
    monkeypatch.setenv("XDG_CACHE_HOME", str(classes / "cache"))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            tars(classes / "tars", "train", image_size=8)
    assert len(opened) == 3
    (index,) = (classes / "cache" / "cmjax" / "tars").iterdir()
    assert [record.getMessage() for record in caplog.records] == [
        f"{classes / 'tars'} cannot be written; the index of its tars is in {index}"
    ]
    index.unlink()
    caplog.clear()
    monkeypatch.setattr(tar_index, "write_atomically", lambda *args: write(*args, refused=(classes,)))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            tars(classes / "tars", "train", image_size=8)
    assert len(opened) == 9
    assert len(caplog.records) == 2
    assert "cannot be kept" in caplog.text


def test_a_run_takes_tars(classes, tmp_path):
    config = digits_ct.get_config()
    config.data.update({"name": "tars", "data_dir": str(classes / "tars"), "image_size": 8})
    assert read_run(config.to_dict()).open_source("train").num_classes == 3
    config.data.image_size = 0
    with pytest.raises(ConfigError, match=r"config\.data\.image_size=0: must be given"):
        read_run(config.to_dict())
    config.data.update({"data_dir": str(tmp_path / "folder"), "image_size": 8})
    with pytest.raises(ConfigError, match=r"config\.data\.data_dir=.*has no \.tar files"):
        read_run(config.to_dict())


@pytest.mark.parametrize("name", ["tars", "folder"])
def test_the_crop_of_encoded_images_is_recorded_and_used_again(classes, name):
    """The images that samples are compared with are cut as those that were encoded."""
    write_autoencoder(classes / "vae", tiny(channels=3))
    data = {**encode.WITHOUT_RECIPE["data"], "name": name, "data_dir": str(classes / name), "image_size": 8}
    encode.run(
        {"data": data}, autoencoder=str(classes / "vae"), out=str(classes / "latents"), scale=[1.0], batch_size=8
    )
    encoding = latents(classes / "latents", "train").encoding
    assert encoding["images"]["crop"] == "adm"
    again, wanted = images_of(encoding).open("train"), tars(classes / "tars", "train", image_size=8, crop="adm")
    assert rows(again) == rows(wanted)
