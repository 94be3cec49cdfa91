"""Several processes are one machine: started by the launcher, they train, resume, stop and draw as one process does."""

import importlib
import json
import os
import shutil
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
from cmjax.evaluation.results import read_rows
from tests.compiling import on_devices
from tests.in_process import do
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
STEPS = 40
CHANGES = {
    "steps": STEPS,
    "batch_size": 16,
    "net.width": 256,  # the largest leaves are then split by fsdp
    "net.depth": 1,
    "metrics.num": 0,
    "samples.num": 4,
    "samples.every": 0,
    "checkpoint.save_every": 1000,
    "log.every": 1,
    "log.tensorboard": False,
    "report": False,
}
ONE_EVALUATION = {"samples.times": (80.0,)}
FAST = {
    "digits_ct": ONE_EVALUATION,
    "digits_cd": ONE_EVALUATION,
    "digits_scm_cd": {"samples.times": (1.5,)},
    "digits_edm": {"samples.solver_steps": 2},
    "digits_trig": {"samples.solver_steps": 2},
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a process with two devices; all find each other's compiled programs."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        **os.environ,
        "XLA_FLAGS": on_devices(2),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
    }


@pytest.fixture(scope="module")
def start(environment):
    """Starts `processes` processes by the launcher; `devices` each."""

    def start(processes, *arguments, devices=2):
        here = {**environment, "XLA_FLAGS": on_devices(devices)}
        command = ["bash", "launch/local.sh", str(processes), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=here, **pipes)

    return start


def end(process, code=0):
    said, wrong = process.communicate(timeout=180)
    assert process.returncode == code, wrong[-3000:]
    return said, wrong


def options(name, workdir, **changes):
    given = CHANGES | FAST[name] | {key.replace("__", "."): value for key, value in changes.items()}
    given = [f"--config.{field}={value}" for field, value in given.items()]
    return (f"--config=configs/{name}.py", f"--workdir={workdir}", *given)


def in_this_process(name, workdir, **changes):
    """The same run by the four devices of the tests' own process."""
    config = importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            CHANGES | FAST[name] | {key.replace("__", "."): value for key, value in changes.items()}
        )
    train.run(config.to_dict(), workdir)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a, b, steps=STEPS):
    first, second = records(a), records(b)
    assert [record["step"] for record in first] == list(range(1, steps + 1))
    for name in ("step", "loss", "grad_norm"):
        np.testing.assert_allclose(
            [record[name] for record in first], [record[name] for record in second], rtol=1e-5, atol=1e-6
        )
    for x, y in zip(*(jax.tree.leaves(cmjax.load(folder).params) for folder in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process makes: CT, the teacher and CD from it, the TrigFlow teacher and sCD from it."""
    runs = tmp_path_factory.mktemp("one")
    in_this_process("digits_ct", runs / "ct")
    in_this_process("digits_edm", runs / "edm", steps=8)
    in_this_process("digits_cd", runs / "cd", steps=8, objective__teacher=str(runs / "edm"), init_from="")
    in_this_process("digits_trig", runs / "trig", steps=8)
    in_this_process("digits_scm_cd", runs / "scm_cd", steps=8, objective__teacher=str(runs / "trig"), init_from="")
    return runs


def workers(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "cmjax.main" in Path(f"/proc/{pid}/cmdline").read_text()]


def has_steps(workdir, number):
    path = workdir / "metrics.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= number


def test_reading_a_recipe_starts_no_backend():
    program = """
import importlib, pathlib
from jax._src import xla_bridge
from cmjax.config.run import read_run
for path in sorted(pathlib.Path("configs").glob("*_*.py")):
    if path.stem != "__init__":
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        config.data.data_dir = "" if config.data.name == "digits" else "somewhere"
        read_run(config.to_dict(), data_there=False)
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sigterm_to_one_process_saves_in_all_and_four_go_on(start, runs, tmp_path):
    first = start(2, *options("digits_ct", tmp_path / "ct"))
    wait_for(lambda: has_steps(tmp_path / "ct", 3), first)
    os.kill(workers(first)[1], signal.SIGTERM)
    _, said = end(first)
    (step,) = [int(p.name) for p in (tmp_path / "ct" / "checkpoints").iterdir() if p.name.isdigit()]
    assert step < STEPS
    assert said.count(f"stopped at step {step}, saved") == 2
    end(start(4, *options("digits_ct", tmp_path / "ct", mesh__fsdp=4), devices=1))
    assert_same_run(tmp_path / "ct", runs / "ct")


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_one_process_goes_on(start, runs, tmp_path):
    killed = start(2, *options("digits_ct", tmp_path / "ct", mesh__fsdp=2, checkpoint__save_every=20))
    wait_for((tmp_path / "ct" / "checkpoints" / "20").exists, killed)
    os.kill(workers(killed)[1], signal.SIGKILL)
    began = time.monotonic()
    killed.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert killed.returncode != 0
    in_this_process("digits_ct", tmp_path / "ct", mesh__fsdp=2)
    assert_same_run(tmp_path / "ct", runs / "ct")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param("edm", {"mesh__fsdp": 4}, marks=pytest.mark.slow),
        ("cd", {"mesh__fsdp": 2, "objective__teacher": "edm", "init_from": ""}),
        pytest.param(
            "scm_cd", {"mesh__fsdp": 1, "objective__teacher": "trig", "init_from": ""}, marks=pytest.mark.slow
        ),
    ],
)
def test_other_methods_train_as_in_one_process(start, runs, tmp_path, recipe, changes):
    if "objective__teacher" in changes:
        changes = changes | {"objective__teacher": str(runs / changes["objective__teacher"])}
    end(start(2, *options(f"digits_{recipe}", tmp_path / "run", steps=8, **changes)))
    assert_same_run(tmp_path / "run", runs / recipe, 8)


@pytest.mark.slow
def test_a_large_draw_is_that_of_one_process(start, runs, tmp_path):
    said, _ = end(start(2, "--mode=sample", f"--workdir={runs / 'ct'}", "--num=1100", f"--out={tmp_path / 'two.npz'}"))
    assert said.count("1100 images") == 1
    given = dict.fromkeys(("times", "solver", "steps", "label", "guidance"))
    sample.run(runs / "ct", out=str(tmp_path / "one.npz"), num=1100, seed=0, **given)
    one, two = (np.load(tmp_path / f"{name}.npz")["images"].astype(int) for name in ("one", "two"))
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() < 1e-3


@pytest.mark.slow
def test_an_evaluation_is_that_of_one_process(start, runs, tmp_path):
    found = []
    for name in ("one", "two"):
        shutil.copytree(runs / "ct", tmp_path / name / "ct")
        asked = ["evaluate", f"--workdir={tmp_path / name / 'ct'}", "--metrics=fd,kid", "--num=600", "--times=80"]
        if name == "two":
            said, _ = end(start(2, *asked))
            assert said.count("real images") == 1
        else:
            do(*asked)
        found += read_rows(tmp_path / name / "ct" / "evaluation.jsonl")
    one, two = found
    assert one["metrics"].keys() == two["metrics"].keys()
    for metric, value in one["metrics"].items():
        assert two["metrics"][metric] == pytest.approx(value, rel=1e-2), metric  # some pixels round otherwise
    assert one["protocol"] == two["protocol"]


def test_a_mode_of_one_process_and_a_wrong_environment_are_refused(start, environment, runs, tmp_path):
    _, said = end(start(2, "--mode=export", f"--workdir={runs / 'ct'}"), code=1)
    assert "--mode=export: it runs in one process, and there are 2" in said
    wrong = {**environment, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "one"}
    command = [sys.executable, "-m", "cmjax.main", *options("digits_ct", tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, env=wrong, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "JAX_PROCESS_ID='one'" in done.stderr
