"""Sources: what they hold, how they split, and what they say when they cannot."""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmjax.data.base import ArraySource, DataError, Source
from cmjax.data.decoding import decode_image
from cmjax.data.folder import read_image
from cmjax.data.on_demand import Damage, KeptSource, OnDemandSource
from cmjax.data.sources import arrays, digits, folder, tfds

SHARED = Path(os.environ.get("CMJAX_SHARED", "../shared")) / "data" / "tfds"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no prepared data sets in {SHARED}; set CMJAX_SHARED")


def everything(source: Source) -> dict[str, np.ndarray]:
    return source.gather(np.arange(len(source)))


def test_digits_are_split_and_scaled():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test), train.shape, train.num_classes) == (1500, 297, (8, 8, 1), 10)
    levels = np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    assert np.unique(train.images).tolist() == levels.tolist()
    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    whole = load_digits()
    both = rows(train.images, train.labels) + rows(test.images, test.labels)
    assert sorted(both) == rows(levels[whole.images.astype(int)], whole.target)
    assert set(test.labels.tolist()) == set(range(10))
    np.testing.assert_array_equal(digits("test").images, test.images)
    with pytest.raises(DataError, match="valid"):
        digits("valid")


def test_array_source_gathers_in_order_and_counts_classes():
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    source = ArraySource(images, np.array([0, 2, 1, 0, 1, 2]))
    assert isinstance(source, Source)
    batch = source.gather(np.array([4, 0, 4]))
    np.testing.assert_array_equal(batch["image"], images[[4, 0, 4]])
    assert (batch["label"].tolist(), batch["label"].dtype, source.num_classes) == ([1, 0, 1], np.int32, 3)
    assert ArraySource(images).num_classes is None


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), None, None, r"images must be \(n, h, w, c\)"),
        (np.zeros((2, 3, 3, 1)), None, None, "float64"),
        (np.zeros((0, 3, 3, 1), np.uint8), None, None, "at least one"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, int), None, "each of the 2 images"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2), None, "float64"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.array([0, -1]), None, r"-1\.\.0"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.array([0, 4]), 4, r"0\.\.3, got 0\.\.4"),
    ],
)
def test_array_source_refuses(images, labels, classes, message):
    with pytest.raises(DataError, match=message):
        ArraySource(images, labels, classes)


def save(path: Path, **contents) -> Path:
    np.savez(path, **contents)
    return path


def test_arrays_hold_out_a_tenth(tmp_path):
    images = np.random.default_rng(0).normal(size=(50, 2, 2, 4)).astype(np.float32)
    path = save(tmp_path / "latents.npz", images=images, labels=np.arange(50) % 3)
    train, test = arrays(path, "train"), arrays(path, "test")
    assert (len(train), len(test), train.num_classes, test.num_classes) == (45, 5, 3, 3)
    together = np.concatenate([train.images, test.images])
    assert together.dtype == np.float32
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in images)
    for source in (train, test):
        rows = [int(np.argmax((images == image).all((1, 2, 3)))) for image in source.images]
        assert source.labels.tolist() == [row % 3 for row in rows]


def test_arrays_with_a_test_set_of_their_own(tmp_path, caplog):
    path = save(
        tmp_path / "a.npz",
        images=np.zeros((3, 2, 2, 1), np.uint8), labels=np.array([0, 1, 0]),
        test_images=np.ones((2, 2, 2, 1), np.uint8), test_labels=np.array([2, 0]),
    )  # fmt: skip
    train, test = arrays(path, "train"), arrays(path, "test")
    assert (len(train), len(test)) == (3, 1)
    assert train.num_classes == test.num_classes == 2
    assert "left out, for there is nothing of these labels to train on: 2" in caplog.text
    assert (test.images == 1).all()


def test_arrays_errors_name_the_file_and_the_field(tmp_path):
    image = np.zeros((4, 2, 2, 1), np.uint8)
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "one.npy", image)
    whole = save(tmp_path / "whole.npz", images=image).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed.npz").write_bytes(whole.replace(bytes(image), bytes(image + 1)))
    cases = [
        (tmp_path / "missing.npz", "no such file"),
        (tmp_path / "text.npz", "is no .npz file"),
        (tmp_path / "one.npy", "is an .npy file, which holds one array"),
        (tmp_path / "half.npz", "only a part of it is here"),
        (tmp_path / "changed.npz", "is damaged"),
        (tmp_path, "is a folder"),
        (save(tmp_path / "object.npz", images=np.array([{}], object)), '"images" holds Python objects'),
        (save(tmp_path / "named.npz", pictures=image), '"images"; it has pictures'),
        (save(tmp_path / "rank.npz", images=image[0]), '"images"'),
        (save(tmp_path / "labels.npz", images=image, labels=np.zeros(3, int)), '"labels"'),
        (save(tmp_path / "pair.npz", images=image, labels=np.zeros(4, int), test_images=image), '"test_labels"'),
        (save(tmp_path / "sizes.npz", images=image, test_images=image[:, :1]), "differ"),
    ]
    for path, message in cases:
        for limit in (10**9, 0):
            if path.name != "changed.npz" or limit:  # its checksum is not read where it is mapped
                with pytest.raises(DataError, match=message) as error:
                    arrays(path, "train", memory_limit_bytes=limit)
                assert str(path) in str(error.value)
                assert "pickle" not in str(error.value)


def write(path: Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def both_kinds(*args, **kwargs):
    """The same folder in memory and decoded on demand."""
    kinds = folder(*args, **kwargs), folder(*args, **kwargs, memory_limit_bytes=0)
    assert [isinstance(kind, KeptSource) for kind in kinds] == [True, False]
    return kinds


def test_folder_of_classes(tmp_path):
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(["ant", "bee"]):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", noise(6, 6, 3, seed=10 * label + i))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / "._0.png").write_text("a system's own file")
    for source in both_kinds(tmp_path, "train", image_size=6):
        assert (len(source), source.shape, source.num_classes) == (10, (6, 6, 3), 2)
        batch = source.gather(np.array([7, 0]))
        np.testing.assert_array_equal(batch["image"], [noise(6, 6, 3, seed=12), noise(6, 6, 3, seed=0)])
        assert (batch["label"].tolist(), batch["label"].dtype) == ([1, 0], np.int32)
    shutil.rmtree(tmp_path / "test" / "ant")
    test = everything(folder(tmp_path, "test", image_size=6))
    assert test["label"].tolist() == [1, 1]


def test_folder_holds_out_by_name(tmp_path):
    for i in range(60):
        write(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8))

    def levels(split):
        return set(everything(folder(tmp_path, split, image_size=2, channels=1))["image"][:, 0, 0, 0].tolist())

    train, test = levels("train"), levels("test")
    assert train | test == set(range(60))
    assert not train & test
    assert 1 <= len(test) <= 15
    for i in range(60, 120):
        write(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8))
    assert train < levels("train")
    assert test < levels("test")
    assert folder(tmp_path, "train", image_size=2).num_classes is None


def test_folder_resizes_the_short_side_and_crops_the_centre(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    write(tmp_path / "train" / "wide.PNG", wide)
    write(tmp_path / "train" / "tall.JPG", np.ascontiguousarray(wide.transpose(1, 0, 2)), format="jpeg", quality=100)
    write(tmp_path / "test" / "same.jpeg", noise(4, 4, 3))
    for source in both_kinds(tmp_path, "train", image_size=4):
        images = everything(source)["image"]
        assert images.shape == (2, 4, 4, 3)
        assert (abs(images.astype(int) - 200) < 25).all()  # Lanczos rings at the crop's border
        assert (abs(images[1, :, 1:3].astype(int) - 200) < 6).all()


def test_folder_converts_colours(tmp_path):
    rgb = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    alpha = np.concatenate([rgb, np.full((4, 4, 1), 255, np.uint8)], axis=2)
    write(tmp_path / "train" / "a.png", rgb)
    write(tmp_path / "train" / "b.png", alpha)
    write(tmp_path / "train" / "c.png", np.full((4, 4), 76, np.uint8))
    write(tmp_path / "train" / "d.png", np.full((4, 4), 76 * 256 + 9, np.uint16))
    Image.fromarray(rgb).quantize(4).save(tmp_path / "train" / "e.png", transparency=b"\xff\x00")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "train" / "f.jpg", quality=100)
    write(tmp_path / "test" / "a.png", rgb)
    grey = everything(folder(tmp_path, "train", image_size=4, channels=1))["image"]
    np.testing.assert_allclose(grey, 76, atol=1)  # a JPEG rounds
    colour = everything(folder(tmp_path, "train", image_size=4, channels=3))["image"]
    expected = [[255, 0, 0], [255, 0, 0], [76, 76, 76], [76, 76, 76], [255, 0, 0], [255, 0, 0]]
    np.testing.assert_allclose(colour[:, 0, 0], expected, atol=1)


def test_what_is_transparent_is_laid_over_the_background(tmp_path):
    rgb, half = np.full((4, 4, 3), (200, 0, 0), np.uint8), np.full((4, 4, 1), 255, np.uint8)
    half[:, :2] = 0
    for name, alpha in (("clear", half), ("pale", 0 * half + 51)):
        write(tmp_path / f"{name}.png", np.concatenate([rgb, alpha], axis=2))
    write(tmp_path / "la.png", np.concatenate([rgb[..., :1], half], axis=2))
    Image.fromarray(rgb).quantize(4).save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=(200, 0, 0))
    expected = {
        "clear": 255,
        "pale": 255 - 0.2 * 55,
        "la": 255,
        "palette": 255,
        "key": 255,
    }  # of red, the first channel
    for name, level in expected.items():
        assert read_image(tmp_path / f"{name}.png", (4, 4, 3))[0][0, 0, 0] == level, name
    assert read_image(tmp_path / "clear.png", (4, 4, 3))[0][0, 3].tolist() == [200, 0, 0]
    assert read_image(tmp_path / "clear.png", (4, 4, 1), background="black")[0][0, 0] == 0


def test_what_is_no_image_is_logged_in_one_line(tmp_path):
    def said(name):
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name, (4, 4, 3))
        return str(caught.value)

    frames = [Image.fromarray(noise(4, 4, 3, seed=seed)) for seed in range(3)]
    for name in ("a.gif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert said(name).startswith("it is an animation of 3 images")
    (tmp_path / "text.png").write_text("hello")
    assert said("text.png") == "it is no image, or of a kind that is not known here"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    assert said("float.tiff").startswith("its pixels are floating-point numbers")
    frames[0].save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=frames[1:], quality=100)
    picture, size = read_image(tmp_path / "camera.jpg", (4, 4, 3))
    assert (picture.shape, size) == ((4, 4, 3), (4, 4))


def test_folder_turns_photographs_upright(tmp_path):
    image = noise(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    write(tmp_path / "train" / "a.png", image, exif=exif)
    write(tmp_path / "test" / "a.png", image)
    np.testing.assert_array_equal(everything(folder(tmp_path, "train", image_size=4))["image"][0], np.rot90(image, -1))


def test_a_damaged_file_is_named_once_and_the_next_one_stands_in_for_it(tmp_path, caplog):
    """Whether headers or pixels are damaged, in memory or on demand: a batch does not depend on the memory limit."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write(tmp_path / "train" / name / "0.png", noise(16, 16, 3, seed=seed))
    write(tmp_path / "test" / "a" / "0.png", noise(16, 16, 3))
    damaged = tmp_path / "train" / "b" / "0.png"
    (tmp_path / "train" / "c" / "1.jpg").write_bytes(b"not a JPEG file")
    damaged.write_bytes(damaged.read_bytes()[:300])
    with caplog.at_level(logging.WARNING):
        for source in both_kinds(tmp_path, "train", image_size=16):
            for _ in range(2):
                batch = everything(source)
                assert batch["label"].tolist() == [0, 2, 2, 0]
                for place, seed in enumerate((0, 2, 2, 0)):
                    np.testing.assert_array_equal(batch["image"][place], noise(16, 16, 3, seed=seed))
    messages = sorted(record.getMessage() for record in caplog.records)
    names = ["b/0.png", "b/0.png", "c/1.jpg", "c/1.jpg"]
    assert ["train/" + name in message for name, message in zip(names, messages, strict=True)] == [True] * 4


def test_folder_errors_say_what_is_wrong(tmp_path):
    def error(path: Path, split: str = "train", **options) -> str:
        with pytest.raises(DataError) as caught:
            folder(path, split, **({"image_size": 4} | options))
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "no such folder" in error(tmp_path / "missing")
    assert "holds no image files" in error(tmp_path / "empty")
    write(tmp_path / "mixed" / "a" / "0.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "0.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "1.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "2.png", noise(4, 4, 3))
    assert "beside class subfolders" in error(tmp_path / "mixed")
    (tmp_path / "bad" / "train").mkdir(parents=True)
    (tmp_path / "bad" / "test").mkdir()
    (tmp_path / "bad" / "train" / "0.png").write_bytes(b"nothing")
    for limit in (10**9, 0):
        message = error(tmp_path / "bad", memory_limit_bytes=limit)
        assert "not one of its 1 examples can be read" in message
        assert "0.png" in message
    assert "holds no image files" in error(tmp_path / "bad", "test")
    write(tmp_path / "one" / "0.png", noise(4, 4, 3))
    held_out = {"train": "test", "test": "train"}
    alone = [split for split in held_out if 'into split "' in _try(tmp_path / "one", split)]
    assert len(alone) == 1
    assert "channels" in error(tmp_path / "one", channels=2)
    assert "image_size" in error(tmp_path / "one", image_size=0)
    assert '"valid"' in error(tmp_path / "one", "valid")


def _try(path: Path, split: str) -> str:
    try:
        folder(path, split, image_size=4)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("png", "L", {}),
        ("png", "RGB", {}),
        ("png", "RGBA", {}),
        ("jpeg", "L", {}),
        ("jpeg", "RGB", {}),
        ("jpeg", "RGB", {"progressive": True}),
        ("webp", "RGB", {}),
    ],
)
def test_decoding_equals_pillows(tmp_path, kind, mode, options):
    path = tmp_path / "image"
    Image.fromarray(noise(9, 5, 3)).convert(mode).save(path, kind, **options)
    with Image.open(path) as image:
        expected = np.asarray(image).reshape(9, 5, len(mode))
    np.testing.assert_array_equal(decode_image(path.read_bytes(), (9, 5, len(mode))), expected)
    with pytest.raises(ValueError, match="reshape"):
        decode_image(path.read_bytes(), (9, 6, len(mode)))
    with pytest.raises((OSError, ValueError)):
        decode_image(path.read_bytes()[:-40], (9, 5, len(mode)))


@needs_shared
def test_tfds_reads_what_is_prepared():
    source = tfds("mnist", "test", data_dir=SHARED)
    assert (len(source), source.shape, source.num_classes) == (10_000, (28, 28, 1), 10)
    batch = everything(source)
    assert np.bincount(batch["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert 0.13 < batch["image"].mean() / 255 < 0.14


def test_what_is_kept_is_right_in_many_threads_and_not_decoded_again():
    asked = []

    class Asked(OnDemandSource):
        def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            asked.extend(indices.tolist())
            images = np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 1))
            return {"image": images, "label": indices % 3}

    source = KeptSource(Asked(shape=(2, 2, 1), length=100, damage=Damage("x", 0), class_names=("0", "1", "2")))
    first = source.gather(np.array([7, 3, 7]))
    assert sorted(asked) == [3, 7]
    assert (first["image"][:, 0, 0, 0].tolist(), first["label"].tolist()) == ([7, 3, 7], [1, 0, 1])
    rows = np.random.default_rng(0).integers(0, 100, (40, 20))
    with ThreadPoolExecutor(4) as pool:
        for chosen, batch in zip(rows, pool.map(source.gather, rows), strict=True):
            np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], chosen)
            np.testing.assert_array_equal(batch["label"], chosen % 3)
    before = len(asked)
    source.gather(rows.ravel())
    assert len(asked) == before


@needs_shared
def test_tfds_on_demand_equals_in_memory():
    kinds = [tfds("cifar10_jpeg", "test[:300]", data_dir=SHARED, memory_limit_bytes=limit) for limit in (10**9, 0)]
    assert [isinstance(kind, KeptSource) for kind in kinds] == [True, False]
    rows = np.array([299, 3, 3, 0, 150])
    in_memory, on_demand = (kind.gather(rows) for kind in kinds)
    assert in_memory["image"].shape == (5, 32, 32, 3)
    for name in ("image", "label"):
        np.testing.assert_array_equal(in_memory[name], on_demand[name])


@needs_shared
def test_tfds_on_threads_equals_one_thread(monkeypatch):
    one = everything(tfds("mnist", "test[:300]", data_dir=SHARED))
    monkeypatch.setattr("cmjax.data.tfds.SMALL_PIXELS", 0)
    many = everything(tfds("mnist", "test[:300]", data_dir=SHARED))
    for name in ("image", "label"):
        np.testing.assert_array_equal(one[name], many[name])


@needs_shared
def test_tfds_equals_its_own_decoding():
    import tensorflow_datasets

    ours = everything(tfds("cifar10_jpeg/1.0.0", "test[:50]", data_dir=SHARED))
    theirs = tensorflow_datasets.data_source("cifar10_jpeg", split="test[:50]", data_dir=SHARED)
    for image, label, record in zip(ours["image"], ours["label"], theirs, strict=True):
        np.testing.assert_array_equal(image, record["image"])
        assert label == record["label"]


@needs_shared
def test_tfds_errors_list_what_there_is():
    with pytest.raises(DataError, match="it has train, test"):
        tfds("mnist", "valid", data_dir=SHARED)
    with pytest.raises(DataError, match=r"cifar10_jpeg, mnist; can be downloaded: cifar10, mnist"):
        tfds("nothing", "train", data_dir=SHARED)


def test_tfds_takes_the_newest_complete_version(tmp_path):
    from cmjax.data.tfds import _prepared

    assert _prepared(tmp_path, "x") is None
    for version in ("1.9.0", "1.10.0", "1.11.0", "2.0.0.incomplete"):
        (tmp_path / "x" / version).mkdir(parents=True)
        if version != "1.11.0":
            (tmp_path / "x" / version / "dataset_info.json").write_text("{}")
    assert _prepared(tmp_path, "x") == tmp_path / "x" / "1.10.0"
