"""The command line as a user runs it: real processes, real digits, killed and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import cmjax
from cmjax import main
from tests.compiling import on_devices
from tests.in_process import do
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config.net.width=32",
    "--config.net.depth=1",
    "--config.batch_size=64",
    "--config.metrics.num=60",
    "--config.samples.num=16",
    "--config.samples.every=0",
    "--config.log.tensorboard=False",
    "--config.report=False",
)


def command(*arguments):
    return [sys.executable, "-m", "cmjax.main", *arguments]


@pytest.fixture(scope="module")
def environment():
    return {
        **os.environ,
        "XLA_FLAGS": on_devices(1),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def run(environment):
    def run(*arguments, fails=False):
        done = subprocess.run(
            command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode != 0) == fails, done.stderr[-3000:]
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the program says of arguments that it refuses, in the tests' own process: it starts in no time."""

    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmjax", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code not in (None, 0)
        said = capsys.readouterr().err
        return f"{said}{ended.value.code}" if isinstance(ended.value.code, str) else said

    monkeypatch.chdir(ROOT)
    for name in ("exit_on_signals", "_set_up_process"):  # what a process does to itself
        monkeypatch.setattr(main, name, lambda *_: None)
    return refused


def train(recipe, workdir, steps, *more):
    return (f"--config=configs/{recipe}.py", f"--workdir={workdir}", f"--config.steps={steps}", *SMALL, *more)


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    """A trained CT model, a teacher and the CD model distilled from it, all small."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = folder / "digits_edm"
    run(*train("digits_ct", folder / "digits_ct", 60), "--config.report=True")
    distil = (f"--config.objective.teacher={teacher}", f"--config.init_from={teacher}")
    with contextlib.chdir(ROOT):
        do(*train("digits_edm", teacher, 60))
        do(*train("digits_cd", folder / "digits_cd", 30, *distil))
    return folder


@pytest.mark.parametrize("recipe", ["digits_ct", "digits_cd", "digits_edm"])
def test_a_run_ends_with_pictures_a_checkpoint_and_a_summary(runs, recipe):
    summary = json.loads((runs / recipe / "summary.json").read_text())
    assert Path(summary["checkpoint"]).is_dir()
    assert summary["images_per_second"] > 0
    assert (runs / recipe / "report.html").is_file() == (recipe == "digits_ct")
    for path in summary["samples"].values():
        assert size(path) == (4 * 64 + 5 * 2, 4 * 64 + 5 * 2)
    assert {"training images", "fitted Gaussian"} < summary["metrics"].keys()
    assert summary["metrics"]["training images"]["coverage_pixels"] > 0.5
    records = [json.loads(line) for line in (runs / recipe / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)


def size(path):
    with Image.open(path) as image:
        return image.size


def final_params(workdir):
    return jax.tree.leaves(cmjax.load(workdir).params)


OFTEN_SAVED = ("--config.checkpoint.save_every=20", "--config.log.every=5", "--config.metrics.num=0")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(*train("digits_ct", folder, 400, *OFTEN_SAVED))
    return folder


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=SLOW), pytest.param(signal.SIGINT, marks=SLOW)]
)
def test_a_killed_run_ends_with_the_parameters_of_one_that_was_not(tmp_path, run, environment, undisturbed, number):
    killed = train("digits_ct", tmp_path / "killed", 400, *OFTEN_SAVED)
    process = subprocess.Popen(command(*killed), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "killed" / "checkpoints" / "60").is_dir(), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: 130}[number], said
    saved = [int(p.name) for p in (tmp_path / "killed" / "checkpoints").iterdir() if p.name.isdigit()]
    assert 60 <= max(saved) < 400
    run(*killed)
    for a, b in zip(final_params(undisturbed), final_params(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(a, b)
    records = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert steps[-1] == 400


def test_sampling_is_repeatable_and_independent_of_the_number(runs, run, tmp_path):
    processes = {"a": run, "b": run, "more": do, "other": do}
    for name, num, seed in (("a", 12, 3), ("b", 12, 3), ("more", 20, 3), ("other", 12, 4)):
        processes[name](
            "--mode=sample", f"--workdir={runs / 'digits_ct'}", "--times=80,0.8", f"--num={num}", f"--seed={seed}",
            f"--out={tmp_path / name}.npz",
        )  # fmt: skip
    a, b, more, other = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("a", "b", "more", "other"))
    assert a.shape == (12, 8, 8, 1)
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    assert np.abs(a.astype(int) - more[:12].astype(int)).max() <= 1  # another batch size may round otherwise
    assert (a != other).any()


def test_a_second_draw_compiles_nothing(runs, environment, tmp_path):
    of_the_user = {name: value for name, value in environment.items() if "_CACHE_" not in name}
    sample = ("--mode=sample", f"--workdir={runs / 'digits_ct'}", "--num=5", f"--out={tmp_path / 'x.npz'}")

    def compiled_by_a_draw():
        subprocess.run(command(*sample), cwd=ROOT, env=of_the_user, check=True, capture_output=True, timeout=300)
        return {path.name for path in (runs / ".cache" / "jax").iterdir()}

    programs = compiled_by_a_draw()
    assert any("with_keys" in name for name in programs)
    assert compiled_by_a_draw() == programs


def test_a_teacher_samples_by_its_solver(runs, run, tmp_path):
    out = tmp_path / "folder" / "x.png"
    run(
        "--mode=sample",
        f"--workdir={runs / 'digits_edm'}",
        "--solver=churn(s_churn=10)",
        "--steps=5",
        "--num=9",
        f"--out={out}",
    )
    assert size(out) == (3 * 64 + 4 * 2, 3 * 64 + 4 * 2)


def test_load_gives_a_flow_map_that_jits(runs):
    flow_map = cmjax.load(runs / "digits_cd")
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    np.testing.assert_array_equal(flow_map(x, 0.002), x)
    sample = jax.jit(lambda flow_map, key: cmjax.sample_fn(flow_map, key, (5, 8, 8, 1), times=(80.0, 0.8)))
    assert np.isfinite(sample(flow_map, jax.random.key(0))).all()
    assert cmjax.load(runs / "digits_cd" / "checkpoints" / "30").kind == "consistency"
    assert cmjax.load(runs / "digits_edm").kind == "denoiser"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs/digits_ct.py", "--config.stpes=3"), "stpes"),
        (("--config=configs/digits_ct.py", "--config.steps=soon"), "steps"),
        (("--config=configs/nothing.py",), "nothing.py"),
        (("--config=configs/digits_ct.py", "steps=3"), "steps=3"),
        (("--config=configs/digits_ct.py", "--config.objective.weight=snrr"), "did you mean snr"),
        (("--config=configs/digits_ct.py", "--config.optimizer={'rule': 'adam'}"), "optimizer"),
        (("--config=configs/digits_ct.py", "--config.batch_size=6", "--config.grad_accumulation=4"), "must divide"),
        (("--config=configs/digits_ct.py", "--config.samples.times=(0.8,80.0)"), "must descend"),
        (("--config=configs/digits_cd.py", "--config.objective.teacher=no/digits_edm"), "configs/digits_edm.py"),
        (("--config=configs/digits_ct.py", "--config.data.name=folder", "--config.data.data_dir=x"), "no such folder"),
        (("--config=configs/cifar_ct.py",), "data_dir"),
        (("--config=configs/digits_ct.py", "--config.mesh.fsdp=3"), "config.mesh.fsdp=3"),
        (("--mode=sample",), "--workdir"),
        (("--mode=sample", "--workdir=nowhere"), "nowhere is not a run's folder"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections, which reads the recipes
def test_bad_input_is_one_clear_message(refused, tmp_path, arguments, message):
    said = refused(*arguments, *(() if "--mode=sample" in arguments else (f"--workdir={tmp_path / 'run'}",)))
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("0.8,80", "must descend"),
        ("800", "must lie in"),
        ("80,0.001", "must lie in"),
        ("80,x", "must be numbers"),
        ("idx:0,40/40", "0 to 39"),
    ],
)
def test_bad_times_are_one_clear_message(runs, refused, times, message):
    said = refused("--mode=sample", f"--workdir={runs / 'digits_ct'}", f"--times={times}")
    assert said.startswith("error: --times")
    assert message in said


def test_another_runs_folder_is_refused_with_the_fields(runs, run):
    before = sorted(p.name for p in (runs / "digits_ct" / "checkpoints").iterdir())
    said = run(*train("digits_ct", runs / "digits_ct", 80, "--config.net.width=16"), fails=True)
    assert said.startswith("error: ")
    assert "net.width: 32 -> 16" in said
    assert "Traceback" not in said
    assert sorted(p.name for p in (runs / "digits_ct" / "checkpoints").iterdir()) == before


def test_an_unwritable_folder_is_one_clear_message(run, tmp_path):
    (tmp_path / "file").write_text("")
    said = run(*train("digits_ct", tmp_path / "file" / "run", 5), fails=True)
    assert "cannot be written" in said


def test_a_data_set_too_small_for_metrics_still_ends_with_a_summary(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=images)
    arguments = ("--config.data.name=arrays", f"--config.data.data_dir={tmp_path / 'few.npz'}")
    monkeypatch.chdir(ROOT)
    do(*train("digits_ct", tmp_path / "run", 3, *arguments, "--config.batch_size=16"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"] == {}


def test_import_says_what_is_wrong_before_it_writes(refused, tmp_path):
    asked = ("--mode=import", f"--workdir={tmp_path / 'run'}")
    assert "--source is missing" in refused(*asked)
    assert "does not exist" in refused(*asked, f"--source={tmp_path / 'no.pt'}")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    assert "page.pt" in refused(*asked, f"--source={tmp_path / 'page.pt'}", "--arch-image_size=64")
    assert "must be whole numbers" in refused(*asked, "--source=x", "--arch-resample_filter=1,a")
    assert "--format=onnx" in refused(*asked, "--source=x", "--format=onnx")
    assert not (tmp_path / "run").exists()


def test_times_are_searched_for_once_and_kept(runs, refused, tmp_path):
    asked = ("--mode=sample", f"--workdir={runs / 'digits_ct'}", "--num=4", "--times=auto:2")
    do(*asked, f"--out={tmp_path / 'a.npz'}")
    kept = json.loads((runs / "digits_ct" / "times.json").read_text())
    first, second = kept["found"]["2"]["times"]
    tried = kept["found"]["2"]["frechet_distance"]
    assert first == 80
    assert tried[f"80,{second:.4g}"] == min(tried.values())
    do(*asked, f"--out={tmp_path / 'b.npz'}")
    assert json.loads((runs / "digits_ct" / "times.json").read_text()) == kept
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["images"], b["images"])
    assert "auto:9" in refused("--mode=sample", f"--workdir={runs / 'digits_ct'}", "--times=auto:9")


@pytest.mark.filterwarnings("ignore:the load_module")
def test_a_student_and_its_teacher_agree_about_classes(runs, refused, tmp_path):
    arguments = train("digits_cd", tmp_path / "x", 5, f"--config.objective.teacher={runs / 'digits_edm'}")
    said = refused(*arguments, "--config.init_from=", "--config.net.class_conditional=True")
    assert "class_conditional=True" in said
    assert "they must agree" in said
