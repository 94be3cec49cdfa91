"""What a user is told of data that cannot be trained on: one line, before a device is asked or a file read whole."""

import importlib
import logging
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.base import ArraySource, DataError
from cmjax.data.checks import check_source
from cmjax.data.on_demand import Damage, KeptSource, OnDemandSource
from cmjax.data.values import LARGEST_LATENT, fitting
from cmjax.generation import search
from cmjax.metrics.comparison import can_compare, compare, metric_against, why_not_compared
from cmjax.runs.setup import set_up

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
FLOATS = (PIXELS / 127.5 - 1).astype(np.float32)
LATENTS = RANDOM.normal(size=(60, 4, 4, 4)).astype(np.float32)
FIRST = np.tile(PIXELS, (1, 2, 2, 1)).transpose(0, 3, 1, 2)
RGBA = RANDOM.integers(0, 256, (60, 4, 4, 4)).astype(np.uint8)


def with_one(images, place, value):
    changed = images.copy()
    changed[place, 1, 2, 0] = value
    return changed


def config_of(**fields):
    config = importlib.import_module("configs.digits_ct").get_config()
    config.net.width, config.net.depth, config.batch_size = 8, 1, 8
    with config.ignore_type():  # as the command line does
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config.to_dict()


def save(path, arrays):
    np.savez(path, **arrays)


def data_of(name, data_dir, **fields):
    return config_of(data__name=name, data__data_dir=str(data_dir), **fields)


def said(config):
    """What opening the data of a configuration ends with, which must be one line."""
    with pytest.raises((ConfigError, DataError)) as caught:
        read_run(config).open_source("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": with_one(FLOATS, 41, np.nan)}, '"images"[41] holds NaN or infinity'),
        ({"images": with_one(LATENTS, 7, -np.inf)}, '"images"[7] holds NaN or infinity'),
        ({"images": LATENTS, "test_images": with_one(LATENTS, 3, np.inf)}, '"test_images"[3] holds NaN or infinity'),
        (
            {"images": with_one(PIXELS, 5, 255).astype(np.float32).clip(0, 255)},
            "reaches 255 and no image has a value",
        ),
        ({"images": with_one((FLOATS + 1) / 2, 5, 1.5)}, '"images"[5] reaches 1.5 and no image has a value below 0'),
        ({"images": with_one(FLOATS, 9, -LARGEST_LATENT - 1)}, '"images"[9] reaches -31, which is neither an image'),
        ({"images": PIXELS * 0 + 7}, "every pixel of all 54 images is 7"),
        ({"images": PIXELS[:1].repeat(60, axis=0)}, "all 54 images are the same"),
        ({"images": PIXELS[:1]}, '"images" holds one image'),
        ({"images": PIXELS[:1], "test_images": PIXELS}, "holds one image to train on"),
        ({"images": PIXELS, "labels": np.arange(60) - 1}, "labels must be numbered from 0, got -1..58"),
        ({"images": PIXELS > 127}, "got bool; save images.astype(np.uint8) * 255"),
        ({"images": PIXELS.astype(complex)}, "images must be uint8 or float32, got complex128"),
        ({"images": PIXELS[..., 0]}, "got shape (60, 4, 4); save images[..., None]"),
        ({"images": PIXELS[0]}, "got shape (4, 4, 3); save images[None], if it is one image"),
        ({"images": PIXELS.reshape(60, -1)}, "got shape (60, 48); save images.reshape(-1, height, width, channels)"),
        ({"images": FIRST}, "(60, 3, 8, 8) have channels first; save images.transpose(0, 2, 3, 1)"),
        ({"images": FIRST[..., :6]}, "(60, 3, 8, 6) have channels first"),
        ({"images": FIRST / 127.5 - 1}, "(60, 3, 8, 8) have channels first"),
        ({"images": PIXELS.astype(np.int16) - 128}, "has the value -128; images are uint8 from 0 to 255"),
        ({"images": PIXELS.astype(np.uint16) * 257}, "by np.rint(images * (255 / 65535)).astype(np.uint8)"),
        ({"images": PIXELS.astype(np.uint16) * 16}, "values of 12 bits, 0 to 4095, become images by np.rint("),
        ({"images": PIXELS.astype(np.float32) * 257}, "by np.rint(images * (255 / 65535)).astype(np.uint8)"),
        (
            {"images": PIXELS.astype(np.float16)},
            "values of 8 bits, 0 to 255, become images by np.rint(images).astype",
        ),
        (
            {"images": PIXELS // 128},
            "all 54 images are nearly black: no pixel is above 1 of 255",
        ),
        ({"images": PIXELS.astype(int) // 17}, "all 54 images are nearly black: no pixel is above 15 of 255"),
        ({"images": RGBA.astype(float)}, "whole numbers from 0 to 255, as pixels are, in 4 channels"),
        ({"images": LATENTS[0, 0]}, "got shape (4, 4); save"),
    ],
)
def test_arrays_that_cannot_be_trained_on(tmp_path, arrays, line):
    np.savez(tmp_path / "x.npz", **arrays)
    message = said(data_of("arrays", tmp_path / "x.npz"))
    assert line in message
    assert str(tmp_path / "x.npz") in message


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (PIXELS, ""),
        (FLOATS, ""),
        (FLOATS * (1 + 1e-6), ""),
        (PIXELS.astype(np.int64), ""),
        (FLOATS.astype(np.float64), ""),
        (FLOATS.astype(np.float16), ""),
        (LATENTS / 3, ""),
        (abs(LATENTS), ""),
        (20 * LATENTS, "std 20 and mean 0.0531, where config.model.sigma_data expects about 0.5 and 0: is a scaling"),
        (LATENTS / 20, "floats of std 0.05"),
        (LATENTS + 3, "mean 3"),
        (FLOATS / 127, "floats of std 0.00"),
        (np.where(np.arange(4) == 2, 0.1, LATENTS).astype(np.float32), "channel 2 of 4 is constant"),
        (2 * FLOATS, "values from -2 to 2 leave [-1, 1]: they are taken as latents"),
        ((FLOATS + 1) / 2, "all values lie in [0, 1], so the dark half is missing"),
        (np.tile(LATENTS, (1, 2, 2, 1)).transpose(0, 3, 1, 2), "has (60, 4, 8, 8) channels first? They must be last"),
        (RGBA, "4 channels, as of images with alpha, are taken as latents"),
        (PIXELS // 5, "all 60 images are nearly black: no pixel is above 51 of 255"),
    ],
)
def test_arrays_that_look_wrong_are_a_warning_once(tmp_path, caplog, images, line):
    np.savez(tmp_path / "x.npz", images=images, test_images=images)
    run = read_run(data_of("arrays", tmp_path / "x.npz"))
    for split in ("train", "test"):
        assert len(run.open_source(split)) == 60
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(line)
    assert line in "".join(messages)


def test_an_array_that_stays_in_its_file_is_checked_by_some_of_its_images(tmp_path):
    images = np.zeros((1000, 4, 4, 4), np.float32) + np.arange(1000, dtype=np.float32)[:, None, None, None]
    for place, value, line in ((0, np.nan, "[0] holds NaN"), (999, np.inf, "[999] holds NaN")):
        np.savez(tmp_path / "x.npz", images=with_one(images, place, value))
        assert line in said(data_of("arrays", tmp_path / "x.npz", data__memory_limit_gb=1e-9))
    for arrays in ({"images": images * 0}, {"images": images * 0, "test_images": images}):
        save(tmp_path / "x.npz", {name: array / 100 for name, array in arrays.items()})
        message = said(data_of("arrays", tmp_path / "x.npz", data__memory_limit_gb=1e-9))
        assert "every pixel of the 16 images looked at is 0.0" in message


def test_one_image_that_differs_is_found_anywhere():
    images = np.zeros((3000, 40, 40, 1), np.uint8)
    with pytest.raises(DataError, match="every pixel of all 3000 images is 0"):
        check_source(ArraySource(images), "x")
    images[2891, 39, 39] = 255
    check_source(ArraySource(images), "x")


def test_one_image_of_many_files_that_differs_is_found(tmp_path):
    images = np.zeros((100, 2, 2, 1), np.uint8)

    class Images(OnDemandSource):
        def gather(self, indices):
            return {"image": images[indices]}

    source = KeptSource(Images(shape=(2, 2, 1), length=100, damage=Damage("x", 0)))
    with pytest.raises(DataError, match="every pixel of all 100 images is 0"):
        check_source(source, "x")
    images[71, 1, 1] = 255
    check_source(KeptSource(source.source), "x")


def test_the_checks_take_one_pass():
    images = np.tile(FLOATS, (2000, 1, 1, 1))
    began = time.process_time()
    copied = images.copy()
    one_copy = time.process_time() - began
    began = time.process_time()
    fitting(copied, "x")
    assert time.process_time() - began < 20 * one_copy + 0.5


def picture(path: Path, width=8, height=8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes, and beside them what no image is."""
    for i in range(20):
        for name in ("cats", "dogs"):
            picture(tmp_path / "two" / name / f"{i}.png")
    (tmp_path / "two" / "emus").mkdir()
    (tmp_path / "two" / "notes.txt").write_text("x")
    (tmp_path / "two" / "dogs" / "a.webp").write_text("x")
    return tmp_path


def test_a_wrong_folder_is_the_first_that_is_logged(pictures):
    (pictures / "nothing").mkdir()
    (pictures / "webp").mkdir()
    (pictures / "webp" / "a.webp").write_text("x")
    wrong = {"data__channels": 2, "data__label_dropout": 7.0, "steps": 0}
    for name, line in (
        ("missing", "missing: no such folder; a folder of PNG or JPEG files is needed"),
        ("nothing", "nothing: holds no image files (.png, .jpg, .jpeg); put images"),
        ("webp", "webp: holds no image files (.png, .jpg, .jpeg), but 1 other file, a.webp; convert"),
        ("two/notes.txt", "notes.txt: is a file, and a folder of PNG or JPEG files is needed"),
    ):
        message = said(data_of("folder", pictures / name, **wrong))
        assert message.startswith(f"config.data.data_dir={pictures}")
        assert line in message
    assert "is a folder; give the path of an .npz" in said(data_of("arrays", pictures, **wrong))
    assert "no.npz: no such file" in said(data_of("arrays", pictures / "no.npz", **wrong))


def test_a_size_is_suggested_from_the_images(tmp_path):
    folders = {
        "large": ([(160, 120), (320, 240)], "; the images are 160x120 to 320x240; 64 is a usual choice"),
        "small": ([(28, 28)], "; the images are 28x28; 28 is a usual choice"),
        "tiny": ([(5, 6)], "; the images are 5x6; 5 is a usual choice"),
    }
    for name, (sizes, suggestion) in folders.items():
        for i, size in enumerate(sizes):
            picture(tmp_path / name / f"{i:02d}.png", *size)
        for i in range(len(sizes), 60):
            (tmp_path / name / f"{i:02d}.png").symlink_to(tmp_path / name / f"{i % len(sizes):02d}.png")
        (tmp_path / name / "99.png").write_bytes(b"damaged")
        message = said(data_of("folder", tmp_path / name))
        assert message == f"config.data.image_size=0: must be given for a folder of images, in pixels{suggestion}"


def test_what_of_a_folder_is_not_read_is_logged_once(pictures, caplog):
    run = read_run(data_of("folder", pictures / "two", data__image_size=8))
    for split in ("train", "test"):
        assert run.open_source(split).num_classes == 2
    top = pictures / "two"
    assert [record.getMessage() for record in caplog.records] == [
        f"{top}: 2 other files, such as dogs/a.webp, not read: neither PNG nor JPEG",
        f"{top / 'emus'}: holds no image files, and is no class",
    ]


def test_a_single_class_is_logged(tmp_path, caplog):
    for i in range(20):
        picture(tmp_path / "cats" / f"{i}.png")
    read_run(data_of("folder", tmp_path, data__image_size=8)).open_source("train")
    assert caplog.messages == [f'{tmp_path}: has one class subfolder, "cats"; its label says nothing']


def test_a_folder_that_may_not_be_read(pictures, caplog, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("emus", "locked"))
    (pictures / "locked").mkdir()
    assert "locked: cannot be read: permission denied" in said(data_of("folder", pictures / "locked"))
    read_run(data_of("folder", pictures / "two", data__image_size=8)).open_source("train")
    assert f"{pictures / 'two' / 'emus'}: cannot be read: permission denied, and is no class" in caplog.messages

    def refuse(folder, skip):
        raise PermissionError(13, "Permission denied", str(folder / "cats"))

    monkeypatch.setattr("cmjax.data.layout.files_below", refuse)
    assert "cats: cannot be read: permission denied" in said(data_of("folder", pictures / "two"))


@pytest.mark.parametrize("limit_gb", [1.0, 1e-9])
def test_images_of_a_folder_that_are_all_the_same(tmp_path, limit_gb):
    for i in range(30):
        picture(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.png").write_bytes((tmp_path / "0.png").read_bytes())
    config = data_of("folder", tmp_path, data__image_size=8, data__memory_limit_gb=limit_gb)
    assert "are the same; there is nothing to learn" in said(config)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cifr10", "(did you mean cifar10?)"),
        ("aray", "(did you mean arrays?)"),
        (
            "celebrities",
            "must be one of digits, arrays, signals, points, folder, tars, webdataset, parquet, "
            "huggingface, latents, cifar10, mnist, or a TFDS data set "
            "prepared in",
        ),
    ],
)
def test_a_name_that_is_none_is_logged_before_its_folder_is_asked_for(name, line):
    message = said(data_of(name, ""))
    assert message.startswith(f"config.data.name={name!r}: must be one of")
    assert line in message


def test_names_are_those_of_the_folder_too(tmp_path):
    (tmp_path / "my_pictures" / "1.0.0").mkdir(parents=True)
    (tmp_path / "my_pictures" / "1.0.0" / "dataset_info.json").write_text("{}")
    message = said(data_of("my_picture", tmp_path))
    assert "(did you mean my_pictures?)" in message
    assert message.endswith(f"prepared in config.data.data_dir='{tmp_path}', which has my_pictures")
    assert read_run(data_of("my_pictures", tmp_path)).data.name == "my_pictures"
    assert said(data_of("cifar100", "")).startswith("config.data.data_dir='': must be given")


def set_up_of(tmp_path, images, **fields):
    np.savez(tmp_path / "x.npz", images=images)
    run = read_run(data_of("arrays", tmp_path / "x.npz", **fields))
    return set_up(run, run.open_source)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config.batch_size=56: the data have 54 images to train on; set it to at"):
        set_up_of(tmp_path, PIXELS, batch_size=56)
    assert len(set_up_of(tmp_path, PIXELS, batch_size=52).source) == 54


@pytest.mark.parametrize(
    ("images", "fields", "line"),
    [
        (PIXELS, {}, ""),
        (PIXELS[:50], {}, "metrics need at least 6 held-out images, and there are 5"),
        (PIXELS, {"metrics__num": 3, "samples__num": 4}, "metrics need at least 6 samples, and there are 3"),
        (FLOATS, {}, "metrics are of uint8 images, and the data are floats"),
        (PIXELS[:50], {"metrics__num": 0}, ""),
        (LATENTS[:20], {}, ""),
    ],
)
def test_metrics_that_cannot_be_computed_are_logged_at_the_start(tmp_path, caplog, images, fields, line):
    set_up_of(tmp_path, images, **fields).warn()
    assert len(caplog.messages) == bool(line)
    if line:
        assert caplog.messages == [
            f"the run will end without metrics: {line}; set config.metrics.num=0 if none are wanted"
        ]


def test_metrics_that_cannot_be_computed_are_logged_at_the_end(caplog):
    def none():
        raise DataError("x.npz: nothing held out")

    train, few = ArraySource(PIXELS), ArraySource(PIXELS[:5])
    with caplog.at_level(logging.INFO):
        assert can_compare({"1-step": PIXELS}, train, lambda: few) is None
        assert can_compare({"1-step": PIXELS[:5]}, train, lambda: train) is None
        assert can_compare({"1-step": PIXELS}, ArraySource(LATENTS), none) is None
        assert can_compare({"1-step": PIXELS}, train, none) is None
        assert can_compare({"1-step": PIXELS}, train, lambda: train) is train
    assert caplog.messages == [
        "no metrics: metrics need at least 6 held-out images, and there are 5",
        "no metrics: metrics need at least 6 samples, and there are 5",
        "no metrics: metrics are of images, and the data have 4 channels",
        "no metrics: there are no held-out images (x.npz: nothing held out)",
    ]


def test_the_fewest_images_that_have_metrics(tmp_path):
    """So many images have metrics, also where all are of one class, of which no classifier can be made."""
    train = ArraySource(PIXELS[:6], np.zeros(6, int))
    assert why_not_compared(train, num=6, held_out=6) == ""
    table = compare({"1-step": PIXELS[:6]}, train, ArraySource(PIXELS[6:12]), cache_dir=tmp_path)
    assert table["1-step"]["fd"] is None
    assert table["1-step"]["recall_pixels"] is not None
    assert np.isfinite(metric_against(train, train, "fd", cache_dir=tmp_path)(PIXELS[:6]))


def test_a_search_says_that_too_few_images_are_held_out(tmp_path):
    np.savez(tmp_path / "x.npz", images=PIXELS[:50])
    run = read_run(data_of("arrays", tmp_path / "x.npz"))
    trained: Any = SimpleNamespace(
        open_images=run.open_source, recorded=SimpleNamespace(has_data=True), folder=tmp_path, of_latents=False
    )
    flow_map: Any = SimpleNamespace(shape=(4, 4, 3))
    with pytest.raises(ConfigError, match="metrics need at least 6 held-out images, and there are 5; name them"):
        search.score_along(trained, flow_map, "fd")


def test_files_that_hold_12_bits_are_refused(tmp_path):
    for i in range(30):
        levels = RANDOM.integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    line = said(data_of("folder", tmp_path, data__image_size=8, data__channels=1))
    assert re.search(
        r"nearly black: no pixel is above 15 of 255\. .*10 or 12 bits in files of 16, look so: scale", line
    )


@pytest.mark.parametrize("size", [(8, 12), [8, 12]])
def test_images_that_are_not_square(tmp_path, size):
    for i in range(20):
        picture(tmp_path / f"{i}.png", width=30 + i, height=20)
    run = read_run(data_of("folder", tmp_path, data__image_size=size))
    assert run.open_source("train").shape == (8, 12, 3)
    np.savez(tmp_path / "x.npz", images=PIXELS[:, :3])
    assert read_run(data_of("arrays", tmp_path / "x.npz", data__image_size=(3, 4))).open_source("train").shape[:2] == (
        3,
        4,
    )
    for wrong in (4, (4, 3)):
        assert "the images of arrays are (3, 4, 3)" in said(
            data_of("arrays", tmp_path / "x.npz", data__image_size=wrong)
        )


@pytest.mark.parametrize("size", [(8,), (8, 0), (8, 12, 3), (8.5, 12), "x"])
def test_sizes_that_are_none(size):
    assert said(data_of("digits", "", data__image_size=size)).startswith(f"config.data.image_size={size!r}: must be")
