"""Images of other programs, as --images takes them: read as what they are, or refused with what to do."""

import logging

import numpy as np
import pytest
from PIL import Image

from cmjax.config.fields import ConfigError
from cmjax.data.batches import to_uint8
from cmjax.evaluation.image_files import images_in
from cmjax.generation.arguments import read_images

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 8, 3), np.uint8)
FLOATS = (PIXELS / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("limit", [2**30, 0])
@pytest.mark.parametrize("images", [PIXELS, PIXELS.astype(np.int64), FLOATS, FLOATS.astype(float), 1.2 * FLOATS])
def test_what_can_be_read_is_read(tmp_path, monkeypatch, images, limit):
    monkeypatch.setattr("cmjax.evaluation.image_files.LARGEST_IN_MEMORY", limit)
    np.savez(tmp_path / "x.npz", images=images)
    found = images_in(str(tmp_path / "x.npz"), (6, 8, 3), to_uint8)
    expected = to_uint8(images) if images.dtype.kind == "f" else PIXELS
    assert (found.num, found.shape) == (20, (6, 8, 3))
    np.testing.assert_array_equal(found.of(5, 20), expected[5:])


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (PIXELS / 255, r"all values lie in \[0, 1\], and floats are expected in \[-1, 1\]: save 2 \* images - 1"),
        ((PIXELS > 127).astype(np.float32), r"all values lie in \[0, 1\]"),
        (PIXELS.astype(np.float32), r"reaches 255 and no image has a value below 0.*np.rint\(images\).astype"),
        (PIXELS.astype(np.uint16) * 257, r"reaches 65535; values of 16 bits.*np.rint\(images \* \(255 / 65535\)\)"),
        (PIXELS.astype(np.uint16) * 4, r"reaches 1020; values of 10 bits, 0 to 1023"),
        (PIXELS > 127, r"got bool; save images.astype\(np.uint8\) \* 255"),
        (PIXELS.astype(np.int16) - 128, "has the value -128; images are uint8 from 0 to 255"),
        (3 * FLOATS, r"floats must be in \[-1, 1\], got -3 to 3"),
        (np.where(PIXELS > 250, np.nan, FLOATS), "holds NaN or infinity"),
        (PIXELS[..., 0], r"got shape \(20, 6, 8\); save images\[..., None\]"),
        (PIXELS.transpose(0, 3, 1, 2), r"have channels first; save images.transpose\(0, 2, 3, 1\)"),
        (PIXELS.transpose(0, 2, 1, 3), r"the images are \(8, 6, 3\); those of the data \(6, 8, 3\)"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, images, line):
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.raises(ConfigError, match=line) as caught:
        images_in(str(tmp_path / "x.npz"), (6, 8, 3), to_uint8)
    assert str(caught.value).startswith(f"--images={tmp_path / 'x.npz'}")
    assert "\n" not in str(caught.value)


def test_the_advice_for_16_bits_keeps_the_image():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    np.testing.assert_array_equal(np.rint(ramp * (255 / 65535)).astype(np.uint8), np.arange(256))


def test_files_that_hold_12_bits_are_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / ".cache").mkdir()
    for i in range(3):
        Image.fromarray(PIXELS[i, ..., 0].astype(np.uint16) * 16).save(tmp_path / f"{i}.png")
        Image.fromarray(PIXELS[i]).save(tmp_path / ".cache" / f"{i}.png")
    found = images_in(str(tmp_path), None, to_uint8)
    assert (found.num, found.shape) == (3, (6, 8, 3))
    read_images([str(tmp_path / "0.png")], (6, 8, 3), 1)
    said = [message for message in caplog.messages if "10 or 12 bits in a file of 16 look so" in message]
    assert len(said) == 2
    assert said[0].startswith(f"--images={tmp_path}: is nearly black: no pixel is above 15 of 255")


def test_a_folder_without_images_is_logged(tmp_path):
    (tmp_path / "a.webp").touch()
    with pytest.raises(ConfigError, match=r"--images=.*: holds no image files .*, but 1 other file, a.webp; convert"):
        images_in(str(tmp_path), None, to_uint8)
