"""`--profile`: the steps that it traces, of a real run; and the speeds that the run records."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cmjax.training.profiling import read_steps
from tests.compiling import on_devices

ROOT = Path(__file__).parents[1]
TINY = ("--config.net.width=8", "--config.net.depth=1", "--config.batch_size=8", "--config.log.every=2",
        "--config.log.tensorboard=False", "--config.metrics.num=0", "--config.samples.num=1",
        "--config.samples.times=(80.0,)", "--config.report=False")  # fmt: skip


def command_line(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cmjax.main", "--config=configs/digits_ct.py", "--config.steps=5", *TINY, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": on_devices(2),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_traces_its_steps_and_records_its_speed(tmp_path):
    done = command_line(f"--workdir={tmp_path}", "--profile=2:4")
    assert done.returncode == 0, done.stderr
    assert f"traced steps 2 to 4: xprof --logdir={tmp_path}/profile\n" in done.stderr
    traced = re.search(r"or open (\S+) in https://ui.perfetto.dev", done.stderr).group(1)
    events = json.loads(gzip.decompress(Path(traced).read_bytes()))["traceEvents"]
    assert [event["args"]["step_num"] for event in events if event.get("name") == "train"] == ["2", "3"]
    assert (Path(traced).parent / "process-0.xplane.pb").stat().st_size
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((tmp_path / "summary.json").read_text())
    for speeds in (record, summary):
        assert speeds["images_per_second_per_chip"] == pytest.approx(speeds["images_per_second"] / 2, abs=0.01)
        assert "peak_fraction" not in speeds  # nobody publishes a CPU's
    assert "images_per_second_per_chip" in done.stdout


def test_bad_steps_are_one_line_before_anything_is_made(tmp_path):
    done = command_line(f"--workdir={tmp_path / 'x'}", "--profile=4:6")
    assert (done.returncode, done.stderr) == (1, "error: --profile=4:6: the run has 5 steps\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["5", "5:", "5:4", "4:4", "-1:2", "a:b", "1:2:3", "0:" + "9" * 30])
def test_what_names_no_steps_is_refused(text):
    with pytest.raises(ValueError, match=r"step|must be"):
        read_steps(text, 10)
