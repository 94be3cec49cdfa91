"""Captions of folders, data in zips and arrays as other programs write them: what is read, and what is refused."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from cmjax.config.data import read_data
from cmjax.config.fields import ConfigError, Fields
from cmjax.data.base import DataError, class_names
from cmjax.data.folder import check_folder, folder, image_sizes
from cmjax.data.sources import arrays
from cmjax.system.zips import ZipPath
from tests.test_tars import encoded, images

SIZE = {"image_size": 8, "max_corrupt": 2}


@pytest.fixture
def files():
    """Content by name: a folder of fifteen images."""
    return {f"pictures/{i:02d}.png": encoded(image) for i, image in enumerate(images(15, 0))}


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def zipped(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def metadata(files, **changes):
    lines = [{"file_name": name, "text": f"number {name[-6:-4]}"} for name in files]
    return "\n".join(changes.get(f"line_{i}") or json.dumps(line) for i, line in enumerate(lines, 1)) + "\n\n"


def number(name):
    return name[-6:-4]


@pytest.mark.parametrize("kind", ["txt", "metadata", "metadata in a subfolder", "zip"])
def test_captions_are_those_of_the_images(tmp_path, files, kind, caplog):
    described = {name.replace(".png", ".txt"): f" number {number(name)}\n" for name in files}
    if kind == "metadata":
        described = {"metadata.jsonl": metadata(files)}
    elif kind == "metadata in a subfolder":
        described = {"pictures/metadata.jsonl": metadata({name.split("/")[1]: None for name in files})}
    root = write(tmp_path / "a folder", files | described)
    if kind == "zip":
        root = zipped(tmp_path / "all.zip", files | described)
    sources = [folder(root, split, **SIZE, captions=True) for split in ("train", "test")]
    assert sum(map(len, sources)) == 15
    for source in sources:
        batch = source.gather(np.arange(len(source)))
        assert batch["caption"].tolist() == [f"number {number(file.name)}" for file in source.files]
        np.testing.assert_array_equal(batch["size"], [[20, 24]] * len(source))
    assert "not read" not in caplog.text
    assert folder(root, "train", **SIZE).gather(np.arange(3)).keys() == {"image", "label"}


def test_an_image_without_a_caption_is_replaced_and_counted(tmp_path, files, caplog):
    captions = {name.replace(".png", ".txt"): "" if i < 8 else "a text" for i, name in enumerate(files) if i != 9}
    root = write(tmp_path, files | captions)
    source = folder(root, "train", image_size=8, max_corrupt=9, captions=True)
    assert source.gather(np.arange(len(source)))["caption"].tolist() == ["a text"] * len(source)
    assert "its caption is empty" in caplog.text
    assert "pictures/09.png cannot be read (it has no caption)" in caplog.text
    with pytest.raises(DataError, match="examples cannot be read"):
        folder(root, "train", image_size=8, max_corrupt=2, captions=True).gather(np.arange(len(source)))


def test_captions_that_cannot_be_are_refused_in_one_line(tmp_path, files):
    root = write(tmp_path / "images", files)

    def refused(problem, lines=None, **options):
        if lines is not None:
            (root / "metadata.jsonl").write_text(lines)
        with pytest.raises(DataError, match=problem) as error:
            folder(root, "train", **SIZE, captions=True, **options)
        assert "\n" not in str(error.value)

    refused(r"its images have no captions: neither \.txt files beside them nor metadata\.jsonl")
    refused(r"metadata\.jsonl: line 3 is no JSON: '\{\"file", metadata(files, line_3='{"file'))
    refused(r"metadata\.jsonl: line 2 has no file_name", metadata(files, line_2='{"text": "x"}'))
    missing = json.dumps({"file_name": "pictures/99.png", "text": "x"})
    refused(r"metadata\.jsonl: line 4 names pictures/99\.png, and there is no such", metadata(files, line_4=missing))
    nameless = json.dumps({"file_name": "pictures/00.png", "title": "x"})
    refused(r"line 1 has no caption, 'text', .* it has file_name, title", metadata(files, line_1=nameless))
    refused(r"line 1 has no caption, 'alt'; it has file_name, text", metadata(files), caption_column="alt")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_dataset_tool_is_the_folder_of_its_files(tmp_path, compression):
    pictures = {f"{i // 10:05d}/img{i:08d}.png": encoded(image) for i, image in enumerate(images(30, 0))}
    labels = {"labels": [[name, i % 3] for i, name in enumerate(pictures)]}
    content = pictures | {"dataset.json": json.dumps(labels)}
    whole = write(tmp_path / "folder", content), zipped(tmp_path / "cifar10-32x32.zip", content, compression)
    check_folder(whole[1])
    assert image_sizes(whole[1]) == [(24, 20)] * 30
    for split in ("train", "test"):
        unpacked = folder(whole[0], split, **SIZE)
        packed = folder(whole[1], split, **SIZE, memory_limit_bytes=0)
        assert class_names(packed) == class_names(unpacked) == ("0", "1", "2")
        rows = np.arange(len(unpacked))
        expected, batch = unpacked.gather(rows), pickle.loads(pickle.dumps(packed)).gather(rows)
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], expected[name])
        assert packed.name(0).startswith("0000")


def test_a_damaged_zip_is_refused_and_a_damaged_file_replaced(tmp_path, files, caplog):
    path = zipped(tmp_path / "all.zip", files)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        damaged = archive.infolist()[4]
    content[damaged.header_offset + 30 + len(damaged.filename) + damaged.file_size // 2] ^= 255
    path.write_bytes(content)
    source = folder(path, "train", **SIZE, memory_limit_bytes=0)
    source.gather(np.arange(len(source)))
    assert f"{damaged.filename} cannot be read" in caplog.text
    other = tmp_path / "half.zip"
    other.write_bytes(content[:3000])
    cuts = ((other, "is no .zip file, or only a part of it is here"), (tmp_path / "x.zip", "no such folder"))
    for cut, problem in cuts:
        with pytest.raises(DataError, match=problem):
            folder(cut, "train", **SIZE)
    empty = zipped(tmp_path / "empty.zip", {"latents/0.npy": b"x"})
    with pytest.raises(DataError, match=r"holds no image files .* but 1 other file, latents/0\.npy"):
        folder(empty, "train", **SIZE)
    fields = {
        "name": "folder", "data_dir": str(other), "image_size": 8, "channels": 0, "memory_limit_gb": 4.0,
        "max_corrupt": 10,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"config\.data\.data_dir=.*half\.zip: is no \.zip file"):
        read_data(Fields(fields))


def test_paths_within_a_zip(tmp_path):
    root = ZipPath(zipped(tmp_path / "x.zip", {"a/b.txt": "é", "a/c/d.txt": "d", "../out.txt": "no"}))
    assert [str(path.relative_to(root)) for path in root.files()] == ["a/b.txt", "a/c/d.txt"]
    assert (root.is_dir(), (root / "a").is_dir(), (root / "a" / "b.txt").is_dir()) == (True, True, False)
    assert [path.name for path in (root / "a").iterdir()] == ["b.txt", "c"]
    assert (root / "a" / "b.txt").read_text() == "é"
    assert not (root / "x").exists()
    with pytest.raises(FileNotFoundError):
        (root / "x").read_bytes()
    with pytest.raises(FileNotFoundError):
        ZipPath(tmp_path / "none.zip").files()


def test_reference_batches_are_arrays(tmp_path):
    pixels, labels = images(20, 0), np.arange(20) % 4
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=labels, mu=np.zeros(3))
    np.savez(tmp_path / "plain.npz", arr_0=pixels)
    source = arrays(tmp_path / "labelled.npz", "train")
    assert (len(source), source.shape, source.num_classes) == (18, (20, 24, 3), 4)
    assert arrays(tmp_path / "plain.npz", "test").num_classes is None
    np.savez(tmp_path / "wrong.npz", arr_0=pixels, arr_1=labels / 2)
    with pytest.raises(DataError, match="labels must be one integer for each of the 20 images"):
        arrays(tmp_path / "wrong.npz", "train")
