"""Images: every pixel where it belongs, and files that are whole or absent."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cmjax.plotting import plots
from cmjax.plotting.plots import BETWEEN_GROUPS, GREY, cell_size, image_grid, line_plot, save_png, sheet
from cmjax.runs import summary

ONE_PIXEL = np.zeros((1, 1, 3), np.uint8)


def _images(n, h, w, c, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_in_its_cell_and_all_else_is_grey(channels):
    images = _images(5, 4, 6, channels)
    grid = image_grid(images, columns=3, gap=2, min_side=7)  # enlarged by 2
    assert grid.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, 3)
    rest = np.full(grid.shape, GREY, np.uint8)
    for i, image in enumerate(images):
        top, left = 2 + (i // 3) * 10, 2 + (i % 3) * 14
        for dy in range(2):
            for dx in range(2):
                shown = grid[top + dy : top + 8 : 2, left + dx : left + 12 : 2]
                np.testing.assert_array_equal(shown, np.broadcast_to(image, (4, 6, 3)))
        rest[top : top + 8, left : left + 12] = grid[top : top + 8, left : left + 12]
    np.testing.assert_array_equal(grid, rest)


@pytest.mark.parametrize(
    ("n", "h", "w", "columns"), [(1, 8, 8, 1), (16, 8, 8, 4), (17, 8, 8, 5), (3, 8, 8, 2), (16, 8, 32, 2)]
)
def test_the_grid_is_near_square(n, h, w, columns):
    assert image_grid(_images(n, h, w, 1), gap=0, min_side=1).shape[1] == columns * w


def test_fewer_images_than_columns_leave_no_empty_cells():
    assert image_grid(_images(2, 8, 8, 1), columns=10, gap=0, min_side=8).shape == (8, 16, 3)


def test_large_images_keep_their_size():
    images = _images(1, 70, 80, 3)
    np.testing.assert_array_equal(image_grid(images, gap=0), images[0])


@pytest.mark.parametrize("channels", [2, 4])
def test_latents_are_scaled_channel_by_channel(channels):
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, channels)) * 10.0 ** np.arange(channels)
    grid = image_grid(latents, columns=3, gap=0, min_side=1)
    side_by_side = np.concatenate(list(latents), axis=1)
    for channel in range(min(channels, 3)):
        values = side_by_side[..., channel]
        expected = 255 * (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(grid[..., channel], expected, atol=0.501, rtol=0)
    assert channels > 2 or np.all(grid[..., 2] == 0)


def test_constant_latents_have_a_grid():
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


def test_a_sheet_has_headings_and_its_groups_lie_apart():
    rows = [_images(4, 64, 64, 1, seed=seed) for seed in range(2)]
    whole = sheet(rows, ["a", "two\nlines"], headings=("one", "other"), title="Of a run")
    grid = whole[58:, -(2 * (2 * 66 + 2) + BETWEEN_GROUPS) :]
    assert grid.shape[0] == 2 * 66 + 2
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = 2 + 66 * i, 2 + 66 * j + (j // 2) * (2 + BETWEEN_GROUPS)
            shown = grid[top : top + 64, left : left + 64]
            np.testing.assert_array_equal(shown, np.broadcast_to(image, (64, 64, 3)))
    assert (grid[:, 2 * 66 + 2 :][:, :BETWEEN_GROUPS] == GREY).all()
    dark = np.nonzero((whole[38:58] < 100).all(axis=2).any(axis=0))[0] - (whole.shape[1] - grid.shape[1])
    for middle in (35, 101, 35 + 148, 101 + 148):  # words around the middle of each column
        around = dark[abs(dark - middle) < 33]
        assert abs((around.min() + around.max()) / 2 - middle) < 2


def test_cells_are_as_large_as_said():
    assert image_grid(_images(6, 30, 40, 3), columns=3).shape[:2] == tuple(np.multiply(cell_size((30, 40)), (2, 3)) + 2)


def records(folder, *lines):
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 9, "lo')
    return folder


def test_the_losses_of_all_records_are_sampled(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(summary, "line_plot", lambda curves, **words: drawn.update(curves=curves, **words) or ONE_PIXEL)
    few = records(
        tmp_path, {"step": 1, "loss": 4.0}, {"step": 2}, {"step": 3, "loss": float("nan")}, {"step": 4, "loss": 2}
    )
    assert summary.losses_of(few, 4) == {"losses": str(tmp_path / "losses.png")}
    assert drawn["curves"] == {"recorded": ([1.0, 4.0], [4.0, 2.0])}
    assert drawn["log_y"]
    assert drawn["title"] == f"{tmp_path.name}, step 4: loss in training"
    many = records(tmp_path, *({"step": i, "loss": -float(i)} for i in range(1, 5001)))
    summary.losses_of(many, 5000)
    assert not drawn["log_y"]
    assert drawn["faint"] == ("recorded",)
    for name in ("recorded", "mean within 10%"):
        steps, losses = map(np.array, drawn["curves"][name])
        assert (steps[0], steps[-1]) == (1, 5000)
        assert 500 < len(steps) <= 1000
    inside = steps < 4500
    np.testing.assert_allclose(losses[inside], -(np.ceil(steps / 1.1) + np.floor(steps * 1.1))[inside] / 2, rtol=1e-3)


def test_a_run_without_losses_has_no_curve(tmp_path):
    assert summary.losses_of(tmp_path, 0) == {}
    assert summary.losses_of(records(tmp_path, {"step": 5}), 5) == {}
    assert not (tmp_path / "losses.png").exists()


WORDS = {"title": "", "x_label": "", "y_label": ""}


def of_colour(plot, colour):
    """The rows and columns of a colour's pixels, within the axes."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.nonzero((plot[48:-54, 81:720] == rgb).all(axis=2))


def test_a_faint_curve_lies_behind():
    words = WORDS | {"log_x": False, "log_y": False}
    plot = line_plot({"front": ([0, 1], [0, 1]), "back": ([0, 1], [0, 1])}, **words, faint=("back",))
    assert len(of_colour(plot, plots.COLOURS[0])[0])
    assert not len(of_colour(plot, plots.PALE)[0])


def test_curves_are_sampled_where_their_numbers_are():
    plot = line_plot({"a": ([1, 10, 100], [1, 10, 100]), "b": ([1, 100], [1, 1])}, **WORDS)
    assert plot.shape == (400, 960, 3)
    rows, columns = of_colour(plot, plots.COLOURS[0])
    # both axes logarithmic: a straight line from corner to corner
    np.testing.assert_allclose(columns / 640, 1 - rows / 298, atol=0.02)
    assert np.ptp(columns) > 0.9 * 640
    gaps = line_plot({"a": ([1, 2, 3, 4], [None, 1.0, np.nan, 2.0]), "b": ([5], [0.0])}, **WORDS, log_y=False)
    columns = of_colour(gaps, plots.COLOURS[0])[1]
    assert len(columns)
    assert (columns > 640 * (np.log(2) / np.log(5)) * 0.9).all()
    with pytest.raises(ValueError, match="no point"):
        line_plot({"a": ([1.0, 2.0], [None, 0.0])}, **WORDS)
    np.testing.assert_array_equal(line_plot({"a": ([1], [1])}, **WORDS), line_plot({"a": ([1], [1])}, **WORDS))


@pytest.mark.parametrize("log", [True, False])
def test_every_range_has_marks(log):
    for low, high in [(1e-9, 1e9), (0.002, 80), (1, 3), (2.0, 2.01), (5, 5), (1e-3, 1e-3 + 1e-12)]:
        axes = Figure().add_axes((0, 0, 1, 1))
        plots._set_axis(axes, "y", np.array([low, high]), log)
        start, end = axes.get_ylim()
        marks = [mark for mark in axes.get_yticks() if start <= mark <= end]
        assert 2 <= len(marks) <= 12
        assert start < low <= high < end
        assert not log or start > 0
        assert high > low * 1.001 or end - start > 1e-3 * abs(low)  # a constant is not blown up


def test_a_saved_grid_reads_back(tmp_path):
    grid = image_grid(_images(6, 8, 8, 3))
    path = tmp_path / "new" / "folder" / "grid.png"
    save_png(path, grid)
    save_png(path, grid)
    with Image.open(path) as file:
        assert file.format == "PNG"
        np.testing.assert_array_equal(np.asarray(file), grid)
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
