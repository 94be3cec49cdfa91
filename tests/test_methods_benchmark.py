"""The comparison of the methods: what it changes of their recipes, and its table."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods
from cmjax.config.run import read_run
from cmjax.runs.record import write_record

TEACHERS = sorted(set(map(methods.teacher_of, methods.METHODS)) - {""})


@pytest.mark.parametrize("data", ["digits", "oracle"])
@pytest.mark.parametrize("name", [*TEACHERS, *methods.METHODS])
def test_a_recipe_keeps_everything_but_its_length_and_folders(name, data):
    out = Path("somewhere")
    config = methods.recipe(name, out, steps=50, data=data)
    assert read_run(config, data_there=False).steps == 50
    earlier = [config["init_from"], config["objective"].get("teacher"), config["objective"].get("first_stage")]
    trained_before = {str(out / f"digits_{n}") for n in (*TEACHERS, *methods.METHODS)}
    assert {folder for folder in earlier if folder not in ("", None, "teacher")} <= trained_before


@pytest.mark.parametrize(("sampler", "again"), [("multistep", True), ("chain(gamma=0.0)", False)])
def test_a_run_that_was_sampled_otherwise_is_sampled_as_its_recipe_says(tmp_path, monkeypatch, sampler, again):
    config = methods.recipe("meanflow", tmp_path, steps=50, data="digits")
    workdir, called = tmp_path / "digits_meanflow", []
    write_record(workdir, {**config, "samples": {**config["samples"], "sampler": sampler}}, (8, 8, 1), None)
    (workdir / "summary.json").write_text('{"steps": 50}')
    monkeypatch.setattr(methods.train, "run", lambda config, workdir: called.append(config["samples"]["sampler"]))
    methods.trained("meanflow", tmp_path, steps=50, data="digits")
    assert called == ["chain(gamma=0.0)"] * again


def test_the_table_has_a_line_for_each_method_and_a_dash_for_what_it_lacks():
    rows = [{"method": "a", "fd_1": 1.234, "fd_2": 0.5, "recall_1": 0.1}, {"method": "b", "fd_1": 2.0}]
    assert methods.table(rows).splitlines()[2:] == ["| a | 1.23 | 0.5 |", "| b | 2 | – |"]


def test_the_oracles_points_are_the_mixtures(tmp_path):
    methods.points(tmp_path / "points.npz")
    images = np.load(tmp_path / "points.npz")["images"]
    assert images.shape == (60_000, 1, 1, 2)
    np.testing.assert_allclose(images.std(), 0.5, rtol=0.01)
