"""Large arrays of samples: the same array however often they are stopped, and no part drawn twice."""

import numpy as np
import pytest

from cmjax.config.fields import ConfigError
from cmjax.generation import files


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(files, "PART", 4)


def drawer(stops_at=None):
    drawn = []

    def draw(start, stop):
        if start == stops_at:
            raise Killed
        drawn.append((start, stop))
        return np.arange(start, stop)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)

    return draw, drawn


@pytest.mark.parametrize("num", [3, 4, 10, 12])
def test_a_draw_that_was_stopped_goes_on(tmp_path, num):
    path, settings = tmp_path / "x.npz", {"seed": 0}
    parts = list(range(0, num, 4)) if num > 4 else [0]
    drawn_before = []
    for stops_at in (*parts, None):
        draw, drawn = drawer(stops_at)
        if stops_at is None:
            files.write_array(path, num, draw, settings=settings)
        else:
            with pytest.raises(Killed):
                files.write_array(path, num, draw, settings=settings)
            assert not path.exists()
        drawn_before += drawn
    assert [start for start, _ in drawn_before] == parts
    with np.load(path) as file:
        np.testing.assert_array_equal(file["images"][:, 0, 0, 0], np.arange(num))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("num", [10, 3])
def test_parts_of_another_draw_are_named_and_removed(tmp_path, caplog, num):
    path, other = tmp_path / "x.npz", drawer(stops_at=4)[0]
    with pytest.raises(Killed):
        files.write_array(path, 10, other, settings={"seed": 0})
    draw, drawn = drawer()
    files.write_array(path, num, draw, settings={"seed": 1})
    assert "seed 0 -> 1" in caplog.text
    assert drawn[0] == (0, min(num, 4))
    assert list(tmp_path.iterdir()) == [path]


def test_parts_without_their_settings_are_not_taken(tmp_path):
    path, other = tmp_path / "x.npz", drawer(stops_at=4)[0]
    with pytest.raises(Killed):
        files.write_array(path, 10, other, settings={"seed": 0})
    (tmp_path / "x.npz.parts" / "settings.json").unlink()  # a removal was cut short
    draw, drawn = drawer()
    files.write_array(path, 10, draw, settings={"seed": 0})
    assert drawn == [(0, 4), (4, 8), (8, 10)]


def test_parts_that_cannot_be_removed_are_an_error(tmp_path, monkeypatch):
    path, other = tmp_path / "x.npz", drawer(stops_at=4)[0]
    with pytest.raises(Killed):
        files.write_array(path, 10, other, settings={"seed": 0})
    monkeypatch.setattr(files, "remove_folder", lambda folder: None)
    with pytest.raises(ConfigError, match=r"seed 0 -> 1.*cannot be removed"):
        files.write_array(path, 10, drawer()[0], settings={"seed": 1})


def test_a_damaged_part_is_named(tmp_path):
    draw, _ = drawer(stops_at=8)
    with pytest.raises(Killed):
        files.write_array(tmp_path / "x.npz", 10, draw, settings={"seed": 0})
    part = tmp_path / "x.npz.parts" / "00000004.npy"
    part.write_bytes(b"not an array")
    with pytest.raises(ConfigError, match=f"{part} is damaged: remove it"):
        files.write_array(tmp_path / "x.npz", 10, drawer()[0], settings={"seed": 0})
    part.unlink()
    files.write_array(tmp_path / "x.npz", 10, drawer()[0], settings={"seed": 0})
