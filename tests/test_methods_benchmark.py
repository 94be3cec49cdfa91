"""The comparison of the methods: what it changes of their recipes, and its table."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods
from cmjax.config.run import read_run


@pytest.mark.parametrize("data", ["digits", "oracle"])
@pytest.mark.parametrize("name", [*methods.TEACHERS, *methods.METHODS])
def test_a_recipe_keeps_everything_but_its_length_and_folders(name, data):
    out = Path("somewhere")
    config = methods.recipe(name, out, steps=50, data=data)
    assert read_run(config, data_there=False).steps == 50
    earlier = [config["init_from"], config["objective"].get("teacher"), config["objective"].get("first_stage")]
    trained_before = {str(out / f"digits_{n}") for n in (*methods.TEACHERS, *methods.METHODS)}
    assert {folder for folder in earlier if folder} <= trained_before


def test_the_table_has_a_line_for_each_method_and_a_dash_for_what_it_lacks():
    rows = [{"method": "a", "fd_1": 1.234, "fd_2": 0.5, "recall_1": 0.1}, {"method": "b", "fd_1": 2.0}]
    assert methods.table(rows).splitlines()[2:] == ["| a | 1.23 | 0.5 |", "| b | 2 | – |"]


def test_the_oracles_points_are_the_mixtures(tmp_path):
    methods.points(tmp_path / "points.npz")
    images = np.load(tmp_path / "points.npz")["images"]
    assert images.shape == (60_000, 1, 1, 2)
    np.testing.assert_allclose(images.std(), 0.5, rtol=0.01)
