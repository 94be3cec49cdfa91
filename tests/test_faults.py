"""What goes wrong in a long run, done to a real one: signals at any moment, a second run, a full disk, numbers that are
not finite, and kills."""

import importlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import cmjax
from cmjax.cli import sample, train
from cmjax.config.fields import ConfigError
from cmjax.data.batches import batch_indices
from cmjax.runs.record import write_record
from cmjax.system.lock import MARK
from cmjax.training.checkpoint import UNFINISHED
from cmjax.training.logging import MetricsWriter
from cmjax.training.loop import NonFiniteLoss
from tests.compiling import on_devices
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
SMALL = {
    "net.width": 16,
    "net.depth": 1,
    "batch_size": 16,
    "metrics.num": 0,
    "samples.num": 4,
    "samples.every": 0,
    "samples.times": (80.0,),
    "log.every": 1,
    "log.tensorboard": False,
    "report": False,
}
FOREVER = 10**7


def config_of(name="digits_ct", **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return config.to_dict()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {
        **os.environ,
        "XLA_FLAGS": on_devices(1),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def start(environment):
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "cmjax.main", *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def options(workdir, steps, **changes):
    given = SMALL | {"steps": steps} | {key.replace("__", "."): value for key, value in changes.items()}
    return ("--config=configs/digits_ct.py", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items()))


def end(process, code, within_s=20):
    _, said = process.communicate(timeout=within_s)
    assert process.returncode == code, said
    return said


def has_records(workdir):
    path = workdir / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") > 5


@pytest.mark.slow
def test_signals_while_compiling_a_second_run_and_a_dead_ones_mark(start, tmp_path, caplog):
    workdir = tmp_path / "run"
    compiling = start(*options(workdir, FOREVER))
    while "compiling the train step" not in compiling.stderr.readline():
        assert compiling.poll() is None
    compiling.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM; the same command starts again" in end(compiling, 0, within_s=5)
    assert not (workdir / MARK).exists()

    running = start(*options(workdir, FOREVER, checkpoint__save_every=20))
    wait_for(has_records(workdir), running)
    mark = json.loads((workdir / MARK).read_text())
    assert mark["pid"] == running.pid
    with pytest.raises(ConfigError) as refused:
        train.run(config_of(steps=5), workdir)
    assert f"process {running.pid} on {mark['host']} runs there since {mark['started']}" in str(refused.value)
    assert json.loads((workdir / MARK).read_text()) == mark
    wait_for((workdir / "checkpoints" / "40").exists, running)
    running.kill()
    end(running, -signal.SIGKILL)

    reached = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    with caplog.at_level("INFO"):
        train.run(config_of(steps=reached + 2), workdir)
    assert f"process {running.pid} on {mark['host']} is dead; going on" in caplog.text
    assert f"going on from step {reached}" in caplog.text
    assert not (workdir / MARK).exists()


def listens(process):
    """Whether a process has a handler of SIGTERM, which Python itself has not."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(caught[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.slow
def test_ctrl_c_while_importing_and_while_drawing_twice(start, tmp_path):
    importing = start(*options(tmp_path / "a", 3))
    wait_for(lambda: listens(importing), importing)
    importing.send_signal(signal.SIGINT)
    assert end(importing, 130, within_s=10) == "stopped by SIGINT; nothing was begun\n"

    drawing = start(*options(tmp_path / "b", 3, metrics__num=1500))
    while "sampling" not in (line := drawing.stderr.readline()):
        assert drawing.poll() is None, line
    drawing.send_signal(signal.SIGINT)
    time.sleep(0.05)
    drawing.send_signal(signal.SIGINT)
    said = end(drawing, 130, within_s=10)
    assert said.splitlines()[-1].startswith("stopped by SIGINT"), said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "b").rglob("*") if UNFINISHED in path.name or path.name == MARK]


def test_a_second_sigterm_leaves_at_once():
    program = """
import time
import cmjax.main as main
from cmjax.cli.command_line import parse
from cmjax.system.signals import stop_requests
_, options = parse(["--mode=train"])
main.exit_on_signals(main.partial(main._exit_now, options))
with stop_requests() as stop_requested:
    print("ready", flush=True)
    while not stop_requested():
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for word in ("ready\n", "noted\n"):
        assert process.stdout.readline() == word
        process.send_signal(signal.SIGTERM)
    assert "left at once by a second SIGTERM" in end(process, 128 + signal.SIGTERM, within_s=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.run(config_of(steps=4), workdir)
    return workdir


@pytest.mark.slow
def test_a_large_draw_that_sigterm_stopped_goes_on(start, trained, tmp_path):
    out, num = tmp_path / "x.npz", 40 * 1024
    drawing = start("--mode=sample", f"--workdir={trained}", f"--num={num}", f"--out={out}")
    parts = tmp_path / "x.npz.parts"
    wait_for((parts / "00001024.npy").exists, drawing)
    drawing.send_signal(signal.SIGTERM)
    said = end(drawing, 128 + signal.SIGTERM, within_s=5)
    assert "stopped by SIGTERM; the same command goes on with what is missing" in said
    kept = {int(path.stem): np.load(path) for path in parts.glob("0*.npy")}
    assert 2 <= len(kept) < 40
    given = dict.fromkeys(("times", "solver", "steps", "label", "guidance"))
    sample.run(trained, out=str(out), num=num, seed=0, **given)
    images = np.load(out)["images"]
    assert images.shape == (num, 8, 8, 1)
    for first, part in kept.items():
        np.testing.assert_array_equal(images[first : first + 1024], part)
    assert not parts.exists()


@pytest.fixture
def spoilt(tmp_path):
    """Latents, one of which overflows in the loss: every epoch of four steps has it once."""
    latents = np.random.default_rng(0).normal(size=(64, 4, 4, 4)).astype(np.float32)
    latents[batch_indices(2, seed=0, batch_size=16, num_examples=64)[5], 2, 2, 0] = np.finfo(np.float32).max
    np.savez(tmp_path / "latents.npz", images=latents, test_images=latents[:4])
    return {"data__name": "arrays", "data__data_dir": str(tmp_path / "latents.npz"), "steps": 12}


def test_a_batch_that_is_not_finite_stops_the_run_or_is_skipped(spoilt, tmp_path, caplog):
    workdir = tmp_path / "run"
    every = {"checkpoint__save_every": 1}
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 2\..*optimizer.skip_nonfinite=10") as first:
        train.run(config_of(**spoilt, **every), workdir)
    assert "goes on from step 2;" in str(first.value)
    for step in (2, 1):  # what led to it is put aside, and then what led to that
        with pytest.raises(NonFiniteLoss, match=f"put aside as ruined-{step}") as again:
            train.run(config_of(**spoilt), workdir)
        assert (workdir / "checkpoints" / f"ruined-{step}").is_dir()
        assert again.value.step == 2
    caplog.clear()
    with pytest.raises(NonFiniteLoss, match="after 1 steps that were skipped") as second:
        train.run(config_of(**spoilt, optimizer__skip_nonfinite=1), workdir)
    assert 4 <= second.value.step < 8
    train.run(config_of(**spoilt, optimizer__skip_nonfinite=3), workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert sum("loss" in record for record in records) == 9
    assert records[-1]["skipped"] == 3
    assert caplog.text.count("is skipped") == 4  # the first of them twice
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cmjax.load(workdir).params))


def test_a_run_goes_on_with_another_dtype_and_dropout(trained, caplog):
    train.run(config_of(steps=6, net__dtype="bfloat16", net__dropout=0.1), trained)
    assert "net.dtype: 'float32' -> 'bfloat16'" in caplog.text
    assert (trained / "checkpoints" / "6").is_dir()


def test_what_a_run_may_change_of_its_network(tmp_path):
    config = importlib.import_module("configs.cifar_ct").get_config("tiny").to_dict()
    write_record(tmp_path, config, (32, 32, 3), 10)
    free = {"remat": True, "attention": "cudnn", "dropout": 0.2, "dtype": "bfloat16"}
    changed = write_record(tmp_path, config | {"net": config["net"] | free}, (32, 32, 3), 10)
    assert {change.split(":")[0] for change in changed} >= {"net.remat", "net.attention", "net.dropout"}
    with pytest.raises(ConfigError, match=r"net\.blocks"):
        write_record(tmp_path, config | {"net": config["net"] | {"blocks": 2}}, (32, 32, 3), 10)
    another_rate = {"target": "ema(rate=0.5)"}
    changed = write_record(tmp_path, config | {"objective": config["objective"] | another_rate}, (32, 32, 3), 10)
    assert "objective.target: 'scheduled_ema(mu0=0.9, ema_uses_intervals=True)' -> 'ema(rate=0.5)'" in changed
    none = config["objective"] | {"target": "stop_gradient"}
    with pytest.raises(ConfigError, match=r"objective\.target: .* -> 'stop_gradient'"):
        write_record(tmp_path, config | {"objective": none}, (32, 32, 3), 10)


def test_records_wait_for_room_on_a_full_disk(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    writer = MetricsWriter(tmp_path, resume_step=0, tensorboard=True, wandb=False, config={})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        for step in range(100):
            writer.write(step, {"loss": 1.0, "speed": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.write(100, {"loss": 1.0})
    writer.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [*range(101)]
    assert caplog.text.count("the records wait until it can") == 1


@pytest.mark.slow
def test_thirty_kills_in_a_row_change_nothing(start, tmp_path):
    steps, rng = 6000, random.Random(0)
    often, seldom = ({"checkpoint__save_every": every, "log__every": 50} for every in (20, steps))
    end(start(*options(tmp_path / "whole", steps, **seldom)), 0, within_s=600)
    command, reached = options(tmp_path / "killed", steps, **often), 0
    checkpoints = tmp_path / "killed" / "checkpoints"

    def newest():
        found = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        return max(found, default=0)

    torn = 0
    for _ in range(30):
        process = start(*command)
        wait_for(lambda reached=reached: newest() > reached, process, timeout_s=120)
        time.sleep(rng.uniform(0, 0.4))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.communicate()
        torn += any(path.name.endswith(UNFINISHED) for path in checkpoints.iterdir())
        reached = newest()
    assert torn > 5, f"{torn} kills of 30 were in the middle of a save"
    print(f"{torn} of 30 kills were in the middle of a save, the last after step {reached}")
    end(start(*options(tmp_path / "killed", steps, **seldom)), 0, within_s=600)
    whole, killed = (jax.tree.leaves(cmjax.load(tmp_path / name).params) for name in ("whole", "killed"))
    for a, b in zip(whole, killed, strict=True):
        np.testing.assert_array_equal(a, b)
    records = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert records == list(range(50, steps + 1, 50))
