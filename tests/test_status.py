"""`--mode=status` of folders in every state: it reads files and starts nothing."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cmjax.cli import status
from cmjax.config.fields import ConfigError
from cmjax.runs.record import write_record
from cmjax.system.lock import MARK, this_process
from cmjax.training.loop import Speed

ROOT = Path(__file__).parents[1]
CONFIG = {
    "objective": {"name": "cd", "teacher": "runs/digits_edm"},
    "net": {"name": "mlp"},
    "data": {"name": "digits", "data_dir": ""},
    "batch_size": 64,
    "steps": 4000,
}


def folder(path, *, steps=(), saved=(), ended=None, **record):
    """A run's folder with records of `steps`, checkpoints of `saved`, and the summary of the step `ended`."""
    write_record(path, CONFIG, (8, 8, 1), 10, **record)
    speed = Speed(batch_size=64, chips=4, chip_flops=1e9, peak_flops=1e12).at(0.01)
    records = [json.dumps({"step": step, "loss": 0.25, "step_seconds": 0.01, **speed}) for step in steps]
    if records:
        (path / "metrics.jsonl").write_text("\n".join(records) + '\n{"step": 99999, "lo')
    for step in saved:
        (path / "checkpoints" / str(step)).mkdir(parents=True)
        (path / "checkpoints" / str(step) / "array").write_bytes(bytes(2048))
    if ended is not None:
        figures = {"1-step": {"fd": 2.5, "recall": None}}
        ends = {"steps": ended, "parameters": 14_688, "figures": figures}  # the key of earlier versions
        (path / "summary.json").write_text(json.dumps(ends))
    return path


def mark(path, **changes):
    """What a process leaves in the folder where it runs."""
    started = datetime.fromtimestamp(time.time() - 7260, UTC).isoformat(timespec="seconds")
    (path / MARK).write_text(json.dumps({**this_process(), "started": started, "token": "x", **changes}))


def silent(path, seconds):
    for written in path.iterdir():
        os.utime(written, (time.time() - seconds,) * 2)


@pytest.fixture
def said(capsys):
    def said(path):
        status.run(path)
        return capsys.readouterr().out

    return said


def test_the_command_of_a_running_run_neither_joins_processes_nor_starts_a_device(tmp_path):
    run = folder(tmp_path / "x", steps=(100, 200), saved=(200,), recipe="digits_cd")
    mark(run)
    done = subprocess.run(
        [sys.executable, "-m", "cmjax.main", "--mode=status", f"--workdir={run}"], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "none", "JAX_NUM_PROCESSES": "2"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(" "))
    assert rows["run"] == "digits_cd: cd, network mlp"
    assert rows["data"] == "digits, 8x8x1, 10 classes"
    assert rows["teacher"] == "runs/digits_edm"
    assert rows["state"].startswith(f"running for 2 h 1 min: process {os.getpid()} on {socket.gethostname()}; it")
    assert rows["step"] == "200 of 4,000 (5.0%), 12,800 images"
    assert rows["speed"] == "6,400 images/s, 100 steps/s; 1,600 images/s for each of 4 chips, 10.0% of the chip's peak"
    assert rows["time"].split() == ["left", "38", "s"]
    assert rows["loss"] == "0.25 at step 200"
    assert "checkpoint 200: 2.0 KiB" in done.stdout
    assert rows["versions"].startswith("cmjax 0.1.0")


def test_a_stopped_run_tells_where_it_would_go_on_and_a_killed_one_who_it_was(tmp_path, said):
    run = folder(tmp_path / "stopped", steps=(100, 200, 300), saved=(100, 200))
    silent(run, 7260)
    assert "stopped: it wrote 2 h 1 min ago, and the same command goes on from step 200" in said(run)
    mark(run, process_start=-1)
    silent(run, 20)
    assert f"stopped: process {os.getpid()} on {socket.gethostname()} is gone; it wrote 20 s ago" in said(run)
    unsaved = folder(tmp_path / "unsaved", steps=(100,))
    assert "the same command starts again from step 0" in said(unsaved)


def test_a_process_on_another_machine_is_there_while_it_gives_signs(tmp_path, said):
    run = folder(tmp_path / "x", steps=(100,))
    mark(run, host="far", pid=7, place=["far"])
    silent(run, 20)
    assert "process 7 on far; it wrote 20 s ago" in said(run)
    silent(run, 40)
    assert "stopped: process 7 on far is gone" in said(run)


def test_a_finished_run_shows_its_metrics_and_one_that_was_lengthened_their_step(tmp_path, said):
    finished = said(folder(tmp_path / "finished", steps=(4000,), saved=(4000,), ended=4000))
    assert "14,688 parameters" in finished
    assert "finished 0 s ago" in finished
    assert "time left" not in finished
    assert finished.endswith("metrics at step 4,000\n           fd  recall_pixels\n1-step  2.500              -\n")
    longer = said(folder(tmp_path / "longer", steps=(2000, 2100), saved=(2000,), ended=2000))
    assert "2,100 of 4,000" in longer
    assert "metrics at step 2,000" in longer
    drawing = said(folder(tmp_path / "drawing", steps=(4000,), saved=(4000,)))
    assert "trained to the end; the last images and the summary are missing" in drawing


def test_a_fresh_folder_and_one_of_imported_weights(tmp_path, said):
    fresh = said(folder(tmp_path / "fresh"))
    assert "fresh: cd" in fresh
    assert "none of 4,000 recorded" in fresh
    source = {"from": "edm.pkl", "format": "edm", "licence": "CC BY-NC-SA 4.0"}
    imported = said(folder(tmp_path / "imported", saved=(0,), imported=source))
    assert "from edm.pkl (licence: CC BY-NC-SA 4.0); no training here" in imported
    assert "state" not in imported


def test_what_is_on_disk_is_told_in_bytes_and_only_the_newest_checkpoints_one_by_one(tmp_path, said):
    run = folder(tmp_path / "x", saved=range(100, 900, 100))
    (run / "checkpoints" / "damaged-50").mkdir()
    (run / "samples").mkdir()
    (run / "samples" / "a.png").write_bytes(bytes(1 << 20))
    text = said(run)
    assert "checkpoint 800: 2.0 KiB" in text
    assert "checkpoint 300" not in text
    assert "3 older ones: 6.0 KiB" in text
    assert "damaged-50: 0 B, renamed" in text
    assert "samples: 1 files, 1.0 MiB" in text


def test_what_is_no_runs_folder_is_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is not a run's folder"):
        status.run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unet"}')
    with pytest.raises(ConfigError, match=r"is not a run's folder: its config.json is of another program"):
        status.run(tmp_path)
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        status.run(tmp_path)
