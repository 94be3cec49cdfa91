"""`cmjax.train`, and what a notebook shows of it."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.system.progress import progress


def test_a_recipe_is_trained_from_python_in_one_line(tmp_path, monkeypatch, capsys):
    changes = {"steps": 4, "batch_size": 8, "net__width": 16, "metrics__num": 0, "samples__times": (80.0, 0.8)}
    changes |= {"report": False, "log__tensorboard": False}
    summary = cmjax.train("digits_ct", tmp_path / "x", **changes)
    assert summary["steps"] == 4
    assert set(summary["samples"]) == {"1-step", "2-step"}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["recipe"] == "digits_ct"
    with pytest.raises(ConfigError, match=r"--config\.net\.widht: config\.net has no field widht \(did you mean width"):
        cmjax.train("digits_ct", tmp_path / "y", net__widht=16)

    shown = []
    kernel = SimpleNamespace(get_ipython=lambda: object())
    display = SimpleNamespace(Image=lambda filename: filename, display=shown.append)
    for name, module in {"ipykernel": kernel, "IPython": kernel, "IPython.display": display}.items():
        monkeypatch.setitem(sys.modules, name, module)
    summary = cmjax.train("digits_ct", tmp_path / "x", **changes)  # all steps are done
    assert shown == list(summary["samples"].values())
    with progress("training", 10) as update:
        time.sleep(1.05)
        update(5, "loss 1")
    assert "\rtraining 5/10 (50%), 0:00:01 elapsed, 0:00:01 left  loss 1\n" in capsys.readouterr().err
