"""Pictures: every pixel where it belongs, and files that are whole or absent."""

import numpy as np
import pytest
from PIL import Image

from cmjax.evaluation.plots import GREY, image_grid, save_png


def _images(n, h, w, c, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_in_its_cell_and_all_else_is_grey(channels):
    images = _images(5, 4, 6, channels)
    picture = image_grid(images, columns=3, gap=2, min_side=7)  # enlarged by 2
    assert picture.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, 3)
    rest = np.full(picture.shape, GREY, np.uint8)
    for i, image in enumerate(images):
        top, left = 2 + (i // 3) * 10, 2 + (i % 3) * 14
        for dy in range(2):
            for dx in range(2):
                shown = picture[top + dy : top + 8 : 2, left + dx : left + 12 : 2]
                np.testing.assert_array_equal(shown, np.broadcast_to(image, (4, 6, 3)))
        rest[top : top + 8, left : left + 12] = picture[top : top + 8, left : left + 12]
    np.testing.assert_array_equal(picture, rest)


@pytest.mark.parametrize(
    ("n", "h", "w", "columns"), [(1, 8, 8, 1), (16, 8, 8, 4), (17, 8, 8, 5), (3, 8, 8, 2), (16, 8, 32, 2)]
)
def test_the_picture_is_near_square(n, h, w, columns):
    assert image_grid(_images(n, h, w, 1), gap=0, min_side=1).shape[1] == columns * w


def test_fewer_images_than_columns_leave_no_empty_cells():
    assert image_grid(_images(2, 8, 8, 1), columns=10, gap=0, min_side=8).shape == (8, 16, 3)


def test_large_images_keep_their_size():
    images = _images(1, 70, 80, 3)
    np.testing.assert_array_equal(image_grid(images, gap=0), images[0])


@pytest.mark.parametrize("channels", [2, 4])
def test_latents_are_scaled_channel_by_channel(channels):
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, channels)) * 10.0 ** np.arange(channels)
    picture = image_grid(latents, columns=3, gap=0, min_side=1)
    side_by_side = np.concatenate(list(latents), axis=1)
    for channel in range(min(channels, 3)):
        values = side_by_side[..., channel]
        expected = 255 * (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(picture[..., channel], expected, atol=0.501, rtol=0)
    assert channels > 2 or np.all(picture[..., 2] == 0)


def test_constant_latents_have_a_picture():
    assert np.all(image_grid(np.full((1, 2, 2, 4), 3.0), gap=0) == 0)


@pytest.mark.parametrize(
    ("images", "knobs", "message"),
    [
        (_images(2, 4, 4, 1), {"columns": 0}, "columns must be at least 1, got 0"),
        (_images(2, 4, 4, 1), {"gap": -1}, "gap must be at least 0, got -1"),
        (_images(2, 4, 4, 1), {"min_side": 0}, "min_side must be at least 1, got 0"),
        (_images(0, 4, 4, 1), {}, r"n >= 1, got shape \(0, 4, 4, 1\)"),
        (_images(2, 4, 4, 3) / 255, {}, "must be uint8, got float64"),
        (np.full((2, 4, 4, 4), np.nan), {}, "images must be finite, got 96"),
    ],
)
def test_a_wrong_argument_is_named(images, knobs, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, **knobs)


def test_a_saved_picture_reads_back(tmp_path):
    picture = image_grid(_images(6, 8, 8, 3))
    path = tmp_path / "new" / "folder" / "grid.png"
    save_png(path, picture)
    save_png(path, picture)
    with Image.open(path) as file:
        assert file.format == "PNG"
        np.testing.assert_array_equal(np.asarray(file), picture)
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
