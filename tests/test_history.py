"""What a run keeps of its starts, and where it may live."""

import json
import os
import shutil
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cmjax.cli import status, train
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.reporting.curves import plot_of
from cmjax.reporting.tables import starts
from cmjax.runs.history import PAUSES, totals
from cmjax.runs.record import read_record
from cmjax.runs.status import read_status, rows_of
from cmjax.runs.workdir import FORMAT, Workdir, output
from cmjax.training.logging import MetricsWriter, MirrorError
from cmjax.training.saved import CheckpointError
from tests.in_process import do
from tests.test_faults import config_of


def read(path):
    return json.loads(path.read_text())


def history(workdir):
    return [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]


def test_a_run_keeps_what_each_start_trained_and_its_record_says_what_held_for_which_steps(tmp_path, caplog, capsys):
    run = tmp_path / "run"
    train.run(config_of(steps=4, metrics__num=0), run, recipe="digits_ct")
    of_first, record = read(run / "summary.json"), read(run / "config.json")

    changes = {"seed": 1, "optimizer__learning_rate": 1e-5, "samples__num": 2}
    train.run(config_of(steps=4, **changes), run)
    assert "config.optimizer.learning_rate: 1e-05 has no effect: all steps are done" in caplog.text
    assert "config.samples.times" not in caplog.text
    assert "config.evaluate" not in caplog.text
    kept = read(run / "config.json")
    assert kept["config"].pop("samples")["num"] == 2
    record["config"].pop("samples")
    assert kept == record
    assert read(run / "summary.json")["train_seconds"] == of_first["train_seconds"] > 0

    train.run(config_of(steps=6, **changes), run)
    kept = read(run / "config.json")
    assert kept["config"]["optimizer"]["learning_rate"] == 1e-5
    (change,) = kept["changes"]
    assert change["step"] == 4
    assert change["fields"]["optimizer.learning_rate"] == [1e-3, 1e-5]
    assert "samples.num" not in change["fields"]

    lines = history(run)
    assert [(line["from"], line["to"], line["ended"]) for line in lines] == [
        (0, 4, "finished"), (4, 4, "finished"), (4, 6, "finished"),
    ]  # fmt: skip
    assert any("seed: 0 -> 1" in text for text in lines[2]["changes"])
    assert lines[0]["recipe"] == "digits_ct"
    assert lines[0]["versions"]["jax"]
    assert lines[0]["device"]
    summary = read(run / "summary.json")
    assert summary["starts"] == 3
    assert summary["train_seconds"] == pytest.approx(sum(line.get("train_seconds", 0) for line in lines), abs=0.02)
    assert of_first["total_seconds"] < summary["total_seconds"] <= sum(line["seconds"] for line in lines) + 0.02
    capsys.readouterr()
    status.run(run)
    assert "in 3 starts" in capsys.readouterr().out


def test_a_record_has_a_key_of_its_data_and_says_where_they_are_others(tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    of_data = {"data__name": "arrays", "data__data_dir": str(tmp_path / "x.npz")}
    for steps, shown in ((4, images), (5, images), (6, 255 - images)):
        np.savez(tmp_path / "x.npz", images=shown)
        train.run(config_of(steps=steps, **of_data), tmp_path / "run")
        key = read(tmp_path / "run" / "config.json")["data_key"]
        assert ("data: other images or labels than before" in caplog.text) == (steps == 6)
    assert any("data: other" in change for change in history(tmp_path / "run")[-1]["changes"])
    assert len(key) > 8


def test_the_totals_are_of_the_starts_that_made_the_state(tmp_path):
    lines = [{"from": 0, "to": 50, "seconds": 9.0}, {"from": 0, "to": 20, "seconds": 2.0, "train_seconds": 1.0},
             {"from": 20, "to": 40, "seconds": 3.0}]  # fmt: skip
    assert totals(lines) == {"starts": 2, "compile_seconds": 0, "train_seconds": 1.0, "total_seconds": 5.0}
    assert totals([])["starts"] == 0


def test_goodput_is_the_fraction_of_time_in_steps():
    one = {"seconds": 10.0, "train_seconds": 8.0, "data_seconds": 1.0, "save_seconds": 0.5, "callback_seconds": 1.5}
    lines = [{"from": 0, **one}, {"from": 20, "seconds": 2.0}, {"from": 20, **one, "data_seconds": 0.0}]
    sums = totals(lines)
    assert sums["goodput"] == pytest.approx((16 - 5) / 22)
    assert (sums["data_seconds"], sums["save_seconds"], sums["callback_seconds"]) == (1.0, 1.0, 3.0)
    assert "goodput" not in totals([*lines, {"from": 40, "seconds": 3.0, "train_seconds": 1.0}])  # of an older version


def test_a_run_reports_its_goodput(tmp_path):
    run = tmp_path / "run"
    train.run(config_of(steps=4, samples__every=2, metrics__num=0), run)
    summary, (line,) = read(run / "summary.json"), history(run)
    pauses = [line[name] for name in PAUSES]
    assert all(seconds > 0 for seconds in pauses)  # it waited for data, saved, and sampled at step 2
    assert sum(pauses) < line["train_seconds"]
    assert 0 < summary["goodput"] < line["train_seconds"] / line["seconds"]
    rows = dict(rows_of(run, read_status(run)))
    assert rows["goodput"].startswith(f"{totals([line])['goodput']:.1%} of the time in steps; compilation")


def test_the_reports_table_of_starts(tmp_path):
    line = {"from": 0, "to": 1500, "seconds": 65, "started": "then", "ended": "SIGTERM", "changes": ["seed: 0 -> 1"]}
    table = starts([SimpleNamespace(name="a", status=SimpleNamespace(starts=[line]))])
    ((cells, _),) = table.rows
    assert cells[:4] == ["then", "0 to 1,500", "1 min 5 s", "SIGTERM"]
    assert "seed: 0 -> 1" in cells
    assert starts([SimpleNamespace(name="a", status=SimpleNamespace(starts=[]))]) is None


def test_a_run_of_earlier_code_has_no_history(tmp_path):
    train_record = {"config": {"objective": {"name": "ct"}, "net": {"name": "mlp"}, "steps": 3}, "shape": [8, 8, 1]}
    (tmp_path / "config.json").write_text(json.dumps({**train_record, "num_classes": None}))
    assert read_status(tmp_path).starts == []


def test_a_record_of_a_later_version_is_refused_by_its_format(tmp_path):
    record = {"config": {}, "format": FORMAT + 1, "versions": {"cmjax": "9.0"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"is of a newer cmjax \(9\.0\): its config\.json has format {FORMAT + 1}"):
        read_record(tmp_path)


def test_a_field_that_loading_does_not_know_is_said(caplog):
    config = config_of(steps=4)
    config["net"] |= {"warp": 3}
    read_model(config, 10)
    assert "config.net.warp: this version of cmjax does not know it" in caplog.text


def test_a_run_goes_on_under_its_name_at_weights_and_biases(tmp_path, monkeypatch):
    begun = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    wandb = SimpleNamespace(init=lambda **settings: begun.append(settings) or run, __spec__=None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 10, 20, 0):
        MetricsWriter(tmp_path, resume_step=step, tensorboard=False, wandb=True, config={}).close()
    ids = [settings["id"] for settings in begun]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert {settings["resume"] for settings in begun} == {"allow"}

    shown = []
    run.log = lambda values, step: shown.append((step, values))
    wandb.Image = lambda image: image.size
    train.run(config_of(steps=4, samples__every=2, metrics__num=8, log__wandb=True), tmp_path / "shown")
    images = [(step, name, size) for step, values in shown for name, size in values.items() if "samples/" in name]
    assert {step for step, *_ in images} == {2, 4}
    assert all(size[0] > 8 for *_, size in images)
    assert any(name.endswith("/fd") for _, values in shown for name in values)

    def not_logged_in(**_):
        raise ValueError("No API key\nconfigured")

    monkeypatch.setattr(wandb, "init", not_logged_in)
    with pytest.raises(MirrorError, match=r"config\.log\.wandb=True: .*No API key configured; log in by `wandb login`"):
        train.run(config_of(steps=4, log__wandb=True), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def events(path):
    """The events of a TensorBoard file: each stands between its length with a checksum, and its own checksum."""
    event_pb2, data = pytest.importorskip("tensorboardX.proto.event_pb2"), path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_has_the_samples_and_the_final_metrics(tmp_path):
    run = tmp_path / "run"
    train.run(config_of(steps=4, samples__every=2, metrics__num=8, log__tensorboard=True), run)
    every = [event for path in run.glob("events.*") for event in events(path)]
    values = [(event.step, value) for event in every for value in event.summary.value]
    images = {(step, value.tag): value.image for step, value in values if value.HasField("image")}
    assert {step for step, _ in images} == {2, 4}
    for (step, tag), image in images.items():
        path = run / "samples" / f"{step:07d}-{tag.removeprefix('samples/')}.png"
        assert image.encoded_image_string == path.read_bytes()
        assert (image.width, image.height) == Image.open(BytesIO(path.read_bytes())).size
    tags = {value.tag for step, value in values if step == 4 and not value.HasField("image")}
    assert {"loss", "training images/fd"} <= tags


def test_a_network_that_does_not_fit_is_told_field_by_field(tmp_path):
    train.run(config_of(steps=4), tmp_path / "a")
    with pytest.raises(
        ConfigError, match=r"another one than config\.net describes; net\.width is 16 there and 24 here"
    ):
        train.run(config_of(steps=4, net__width=24, init_from=str(tmp_path / "a")), tmp_path / "b")


def test_an_older_checkpoint_is_drawn_from(tmp_path):
    train.run(config_of(steps=4, checkpoint__save_every=2), tmp_path / "run")
    for checkpoint in ("2", "newest"):
        do("sample", f"--workdir={tmp_path / 'run'}", f"--checkpoint={checkpoint}", "--num=2", "--times=80")
    names = sorted(path.name for path in (tmp_path / "run" / "samples").glob("*seed*"))
    assert names == ["seed-0.png", "step-2-seed-0.png"]
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* of step 3; there are those of steps 2, 4"):
        do("sample", f"--workdir={tmp_path / 'run'}", "--checkpoint=3", "--num=2")
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "run")
    do("sample", f"--workdir={tmp_path / 'elsewhere' / 'run'}", "--num=2", "--times=80")
    assert os.listdir(tmp_path / "elsewhere") == ["run"]


def test_a_constant_curve_stands_in_the_middle_of_its_axis():
    pytest.importorskip("bokeh")
    steps = np.arange(5.0)
    plot = plot_of({"a": (steps, np.full(5, 1e-3))}, "learning rate", log=False)
    assert (plot.y_range.start, plot.y_range.end) == pytest.approx((9e-4, 1.1e-3))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    return tmp_path / "data"


def test_where_a_run_may_not_live(tmp_path, data):
    def refused(workdir, data_dir=""):
        with pytest.raises(ConfigError, match=r"^--workdir=") as error:
            Workdir(workdir).check(str(data_dir))
        assert "\n" not in str(error.value)
        return str(error.value)

    link, file, repository = tmp_path / "link", tmp_path / "file", tmp_path / "repository"
    link.symlink_to(data)
    file.touch()
    (repository / ".git").mkdir(parents=True)
    assert "is the root of the disk" in refused(tmp_path.joinpath("/"))
    assert "it holds .git, and no config.json" in refused(repository)
    assert "it holds cat" in refused(data)
    assert "is a file" in refused(file)
    (link / "config.json").touch()
    for place, how in ((link, "is"), (data / "runs" / "x", "lies in"), (tmp_path / "new", "is")):
        inside = data if place != tmp_path / "new" else tmp_path / "new"
        assert f"{how} the run's data, config.data.data_dir=" in refused(place, inside)
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "config.json").touch()
    assert "holds the run's data" in refused(tmp_path / "run", tmp_path / "run" / "data")


def test_where_a_run_may_live(tmp_path, data):
    Workdir(tmp_path / "run").check(str(data))
    Workdir(tmp_path / "data-run").check(str(data))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "running.json").touch()
    Workdir(tmp_path / "killed").check()


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "x.png").mkdir()
    assert output(tmp_path / "new" / "deep" / "a.png") == tmp_path / "new" / "deep" / "a.png"
    assert sorted(os.listdir(tmp_path)) == ["file", "x.png"]
    for path in (tmp_path / "file" / "a.png", tmp_path / "x.png", tmp_path / "file" / "folder"):
        with pytest.raises(ConfigError, match=r"--out=.* cannot be written: (Not|Is) a directory"):
            output(path)
