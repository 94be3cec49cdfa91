"""The comparison of the methods: what it changes of their recipes, and its table."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods
from cmjax.config.run import read_run
from cmjax.runs.record import write_record

TEACHERS = sorted({before for name in methods.METHODS for before in methods.predecessors(name)} - {*methods.METHODS})


@pytest.mark.parametrize("data", ["digits", "oracle"])
@pytest.mark.parametrize("name", [*TEACHERS, *methods.METHODS])
def test_a_recipe_keeps_everything_but_its_length_and_folders(name, data):
    out = Path("somewhere")
    config = methods.recipe(name, out, steps=50, data=data)
    assert read_run(config, data_there=False).steps == 50
    earlier = [config["init_from"], config["objective"].get("teacher"), config["objective"].get("first_stage")]
    trained_before = {str(out / f"digits_{n}") for n in (*TEACHERS, *methods.METHODS)}
    assert {folder for folder in earlier if folder not in ("", None, "teacher")} <= trained_before


def test_what_a_method_starts_from_is_trained_before_it_and_once(tmp_path, monkeypatch):
    called = []

    def run(config, workdir):
        called.append((workdir.name, config["seed"]))
        write_record(workdir, config, (8, 8, 1), None)
        (workdir / "summary.json").write_text('{"steps": 50}')

    monkeypatch.setattr(methods.train, "run", run)
    for _ in range(2):
        assert methods.trained("tcm", tmp_path, steps=50, seed=2)["minutes"] >= 0
    assert called == [("digits_edm", 2), ("digits_ect", 2), ("digits_tcm", 2)]


def test_a_run_of_another_length_is_trained_again(tmp_path, monkeypatch):
    workdir, called = tmp_path / "digits_ct", []
    workdir.mkdir()
    (workdir / "summary.json").write_text('{"steps": 40}')
    monkeypatch.setattr(methods.train, "run", lambda config, workdir: called.append(config["steps"]))
    methods.trained("ct", tmp_path, steps=50)
    assert called == [50]


def test_the_table_has_a_line_for_each_method_and_a_dash_for_what_it_lacks():
    rows = {
        "a": methods.mean_and_spread(
            [{"fd_1": 1.0, "fd_2": 0.5, "minutes": 2}, {"fd_1": 2.0, "fd_2": 0.5, "minutes": 4}]
        )
    }
    rows["b"] = methods.mean_and_spread([{"fd_1": 2.0, "minutes": 1}])
    assert methods.table(rows).splitlines()[2:] == ["| `a` | 1.5 ± 0.71 | 0.5 ± 0 | 3 |", "| `b` | 2 | – | 1 |"]


def test_the_plot_has_a_part_for_each_family_of_several_evaluations():
    rows = {"ct": {"fd_1": 1.0, "fd_2": 0.5}, "meanflow": {"fd_1": 1.0, "fd_8": 0.5}, "pd": {"fd_1": 1.0}}
    assert methods.evaluations_plot(rows).shape[0] == 2 * 300


def test_the_oracles_points_are_the_mixtures(tmp_path):
    methods.points(tmp_path / "points.npz")
    images = np.load(tmp_path / "points.npz")["images"]
    assert images.shape == (60_000, 1, 1, 2)
    np.testing.assert_allclose(images.std(), 0.5, rtol=0.01)
