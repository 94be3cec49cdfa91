"""The table of finished runs."""

import json

from benchmarks import results


def test_a_line_for_each_sampler_and_one_for_real_images(tmp_path):
    figures = dict.fromkeys(results.FIGURES, 0.5)
    for name, sampler in (("a", "heun-18"), ("b", "1-step")):
        (tmp_path / name).mkdir()
        summary = {"compile_seconds": 30, "train_seconds": 60, "figures": {sampler: figures, results.REAL: figures}}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    lines = results.table({name: tmp_path / name for name in "ab"})
    assert [line.split("|")[1:4] for line in lines[2:]] == [
        [" a ", " heun-18 ", " 1.5 "],
        ["  ", " training images ", "  "],
        [" b ", " 1-step ", " 1.5 "],
    ]
