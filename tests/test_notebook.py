"""`cmjax.train` and `cmjax.image_grid`, and what a notebook shows of them."""

import json
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.system.progress import progress


def test_a_recipe_is_trained_from_python_in_one_line(tmp_path):
    changes = {"steps": 4, "batch_size": 8, "net__width": 16, "metrics__num": 0, "samples__times": (80.0, 0.8)}
    changes |= {"report": False, "log__tensorboard": False}
    summary = cmjax.train("digits_ct", tmp_path / "x", **changes)
    assert summary["steps"] == 4
    assert set(summary["samples"]) == {"1-step", "2-step"}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["recipe"] == "digits_ct"
    with pytest.raises(ConfigError, match=r"--config\.net\.widht: config\.net has no field widht \(did you mean width"):
        cmjax.train("digits_ct", tmp_path / "y", net__widht=16)


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows: images, and the lines that took each other's place."""
    shown = []

    class Handle:
        def update(self, data, raw):
            shown[-1] = [*shown[-1], data["text/plain"]]

    def display(what, raw=False, display_id=False):
        shown.append([what["text/plain"]] if raw else what)
        return Handle() if display_id else None

    kernel = SimpleNamespace(get_ipython=lambda: object(), version_info=(9, 0))
    modules = {"ipykernel": kernel, "IPython": kernel}
    modules["IPython.display"] = SimpleNamespace(Image=lambda filename: filename, display=display)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return shown


def test_a_notebook_shows_losses_and_samples(tmp_path, shown):
    changes = {"steps": 4, "batch_size": 8, "net__width": 16, "metrics__num": 0, "log__every": 1, "report": False}
    summary = cmjax.train("digits_ct", tmp_path / "x", **changes)
    images = [one for one in shown if isinstance(one, str)]
    assert images == [str(tmp_path / "x" / "losses.png"), *summary["samples"].values()]


def test_progress_in_a_notebook_is_one_line_that_ends_at_the_end(shown):
    with progress("training", 10) as update:
        update(1, "")
        for done in (5, 6):
            time.sleep(1.05)
            update(done, "loss 1")
        update(10, "loss 0.5")
    (lines,) = shown
    assert lines[0] == "training 5/10 (50%), 0:00:01 elapsed, 0:00:01 left  loss 1"
    assert lines[2] == "training 10/10 (100%), 0:00:02 elapsed  loss 0.5"
    assert len(lines) == 3
    with progress("training", 10) as update:
        update(10, "")
    assert len(shown) == 1  # what is done within a second needs no line


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_of_samples_is_an_image(channels):
    images = np.full((6, 8, 8, channels), -1.0, np.float32)
    images[1], images[2] = 1.0, 5.0
    grid = cmjax.image_grid(jnp.asarray(images), columns=3)
    assert grid.size == (3 * 66 + 2, 2 * 66 + 2)
    values = [grid.getpixel((2 + 66 * column, 2)) for column in range(3)]
    assert values == [(0, 0, 0), (255, 255, 255), (255, 255, 255)]
    with pytest.raises(ValueError, match="images must be"):
        cmjax.image_grid(images[0])
