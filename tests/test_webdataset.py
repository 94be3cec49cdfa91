"""Tars of samples: images with labels or captions beside them, read by index; and what of them is refused."""

import json
import pickle
import shutil

import numpy as np
import pytest

from cmjax.config.data import read_data
from cmjax.config.fields import ConfigError, Fields
from cmjax.data import tar_index
from cmjax.data.base import DataError, class_names
from cmjax.data.tars import tars
from cmjax.data.webdataset import webdataset
from tests.test_tars import encoded, images, write_tar

SIZE = {"image_size": 8, "max_corrupt": 2}


def sample(i, image, **files):
    return {f"part/{i:04d}.png": encoded(image)} | {f"part/{i:04d}.{end}": text for end, text in files.items()}


def shard(path, numbers, **of_sample):
    """A tar of these samples, with the files that `of_sample` makes of their numbers."""
    files = {}
    for i, image in zip(numbers, images(len(numbers), numbers[0]), strict=True):
        files |= sample(i, image, **{end: make(i) for end, make in of_sample.items()})
    return write_tar(path, files)


@pytest.fixture
def labelled(tmp_path):
    for part in range(3):
        shard(tmp_path / f"{part:05d}.tar", range(20 * part, 20 * part + 20), cls=lambda i: str(i % 4).encode())
    return tmp_path


def test_samples_have_the_labels_of_their_files(labelled, monkeypatch):
    train, test = (webdataset(labelled, split, **SIZE) for split in ("train", "test"))
    assert len(train) + len(test) == 60
    assert 0 < len(test) < 20
    assert class_names(train) == ("0", "1", "2", "3")
    names = [int(train.source.members[i].name[5:9]) for i in range(len(train))]
    batch = train.gather(np.arange(len(train)))
    np.testing.assert_array_equal(batch["label"], np.array(names) % 4)
    assert batch.keys() == {"image", "label"}
    assert batch["image"].shape == (len(train), 8, 8, 3)
    assert {member.name for member in test.source.members}.isdisjoint(m.name for m in train.source.members)
    monkeypatch.setattr(tar_index, "_headers", None)  # labels come from the index as well
    again = webdataset(labelled, "train", **SIZE, memory_limit_bytes=0)
    np.testing.assert_array_equal(again.labels, batch["label"])
    copied = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(copied.gather(np.array([3]))["image"], batch["image"][[3]])


def test_splits_are_in_the_names_of_tars_or_folders(tmp_path):
    for number, layout in enumerate(
        (("train-0.tar", "val-0.tar"), ("train/0.tar", "val/0.tar"), ("0.tar", "test/0.tar"))
    ):
        root = tmp_path / str(number)
        for name, numbers in zip(layout, (range(5), range(5, 8)), strict=True):
            shard(root / name, numbers)
        assert [len(webdataset(root, split, **SIZE)) for split in ("train", "test")] == [5, 3]
    shard(tmp_path / "one.tar", range(30))
    assert sum(len(webdataset(tmp_path / "one.tar", split, **SIZE)) for split in ("train", "test")) == 30


def test_captions_are_those_of_the_image_that_is_read(tmp_path):
    with_json = {"json": lambda i: json.dumps({"caption": f"number  {i}", "url": "x"}).encode()}
    for name, of_sample in (("txt", {"txt": lambda i: f"number {i}\n".encode()}), ("json", with_json)):
        root = tmp_path / name
        shard(root / "0.tar", range(12), **of_sample)
        source = webdataset(root, "train", **SIZE, captions=True)
        batch = source.gather(np.arange(len(source)))
        assert batch["caption"].tolist() == [f"number {int(member.name[5:9])}" for member in source.members]
        np.testing.assert_array_equal(batch["size"], [[20, 24]] * len(source))


def test_a_sample_without_a_caption_is_replaced_and_counted(tmp_path, caplog):
    files = {}
    for i, image in enumerate(images(12, 0)):
        captions = {0: {}, 1: {"txt": b" \n"}, 2: {"txt": b"\xff\xfe"}}.get(i, {"txt": f"number {i}".encode()})
        files |= sample(i, image, **captions)
    write_tar(tmp_path / "0.tar", files)
    source = webdataset(tmp_path, "train", image_size=8, max_corrupt=3, captions=True)
    batch = source.gather(np.arange(len(source)))
    assert not {0, 1, 2} & {int(caption.split()[1]) for caption in batch["caption"]}
    for why in ("it has no caption", "its caption is empty", "its caption is no text in UTF-8"):
        assert why in caplog.text
    with pytest.raises(DataError, match="examples cannot be read; repair or remove them"):
        webdataset(tmp_path, "train", image_size=8, max_corrupt=1, captions=True).gather(np.arange(len(source)))


def test_what_holds_no_samples_is_refused_in_one_line(labelled, tmp_path):
    def refused(problem, path, **options):
        with pytest.raises(DataError, match=problem) as error:
            webdataset(path, "train", **SIZE, **options)
        assert "\n" not in str(error.value)

    refused(r"00000\.tar: holds no captions: no \.txt or \.json beside its images", labelled, captions=True)
    refused("no such folder; a folder of .tar files of samples", tmp_path / "nowhere")
    (tmp_path / "x.csv").touch()
    refused(r"x\.csv: is a file that does not end in \.tar; a folder of", tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    refused(r"has no \.tar files", tmp_path / "empty")
    other = write_tar(tmp_path / "other" / "0.tar", {"a.webp": b"x", "a.txt": b"a"})
    refused(r"0\.tar: holds no PNG or JPEG files; it has a\.webp", other)
    shard(tmp_path / "json" / "0.tar", range(4), json=lambda i: b'{"alt": "a"}')
    refused(r"has no caption, 'text', 'caption', 'txt' or 'prompt'; it has alt; config\.data\.caption_column names",
            tmp_path / "json", captions=True)  # fmt: skip
    assert len(webdataset(tmp_path / "json", "train", **SIZE, captions=True, caption_column="alt")) > 0
    shard(tmp_path / "broken" / "0.tar", range(4), json=lambda i: b"{")
    refused(r"0000\.json is no JSON", tmp_path / "broken", captions=True)
    shard(tmp_path / "words" / "0.tar", range(4), cls=lambda i: b"cat")
    refused(r"0000\.cls holds 'cat', and no whole number", tmp_path / "words")
    compressed = write_tar(tmp_path / "compressed" / "0.tar", {"a.png": b"x"}, "w:gz")
    refused("cannot be read as an uncompressed tar", compressed.parent)
    shutil.copy(labelled / "00000.tar", tmp_path / "words" / "train-0.tar")
    refused(r"train-0\.tar is of a split by its name, and 0\.tar of none", tmp_path / "words")
    with pytest.raises(DataError, match=r'which config\.data\.name="webdataset" reads'):
        tars(labelled, "train", **SIZE)


def test_the_configuration_asks_for_what_is_needed(labelled):
    fields = {
        "name": "webdataset", "data_dir": str(labelled), "image_size": 8, "channels": 0, "memory_limit_gb": 4.0,
        "max_corrupt": 10,
    }  # fmt: skip
    assert len(read_data(Fields(fields)).open("test")) > 0
    for change, problem in (
        ({"image_size": 0}, "image_size=0: must be given for images that may have any size"),
        ({"data_dir": str(labelled / "x")}, r"config\.data\.data_dir=.*no such folder"),
        ({"image_column": "jpg"}, "image_column='jpg': is of parquet, huggingface"),
    ):
        with pytest.raises(ConfigError, match=problem):
            read_data(Fields({**fields, **change}))
