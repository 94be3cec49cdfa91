"""What is read of a trained run's folder."""

import json

import jax
import pytest

import cmjax
from cmjax.config.averages import long_average, long_target
from cmjax.config.fields import ConfigError, changed
from cmjax.config.methods import read_model
from cmjax.core.ema_rates import constant_rate
from cmjax.runs.record import read_record, write_record
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.weights import write_model
from configs import digits_edm


@pytest.fixture
def teacher(tmp_path):
    """A denoiser whose own samples are drawn by a solver of an optional library."""
    config = digits_edm.get_config()
    config.net.width, config.net.depth, config.samples.solver = 16, 1, "tsit5"
    params = read_model(config.to_dict(), None).init(jax.random.key(0), (8, 8, 1))
    write_model(tmp_path / "teacher", config.to_dict(), (8, 8, 1), None, params, imported=None, option="")
    return tmp_path / "teacher"


def test_a_model_is_loaded_without_what_its_own_samples_need(teacher, monkeypatch):
    monkeypatch.setattr("cmjax.config.samples.is_installed", lambda library: False)
    assert cmjax.load(teacher).kind == "denoiser"
    with pytest.raises(ConfigError, match=r"config\.samples\.solver='tsit5': needs diffrax"):
        _ = open_trained(teacher).samples


@pytest.mark.parametrize(
    ("average", "line"),
    [
        ("ema(rate=0.9999, corrected=False)", "87% of it is parameters from before update 151;"),
        ("ema(rate=0.9999)", "9% of it is"),
        ("half_life(mimg=1.0, ramp_up=0)", "89% of it is"),
        ("ema(rate=0.995)", None),
        ("half_life(mimg=1.0)", None),
        ("power(std=0.1)", None),
    ],
)
def test_an_average_that_holds_what_training_began_with_is_said(average, line):
    config = {"batch_size": 128, "optimizer": {"averages": ("power(std=0.1)", average)}}
    said = long_average(config, 1, 1500)
    assert said is None if line is None else said.startswith(f"the average {average} after 1,500 updates: {line}")


def test_a_target_that_stays_what_it_was_is_said():
    config, rate = {"objective": {"target": "ema(mu=0.999)"}}, constant_rate(mu=0.999)
    assert str(long_target(config, rate, 1000)).startswith(
        "config.objective.target='ema(mu=0.999)' after 1,000 updates: 41% of it is parameters from before update 101;"
    )
    assert long_target(config, rate, 10**5) is None
    assert long_target({"objective": {}}, lambda step: 1.0, 1000) is None


def test_an_average_is_said_to_be_long_where_its_samples_are_made(teacher, monkeypatch, caplog):
    monkeypatch.setattr(Trained, "used_step", 2000)
    cmjax.load(teacher)
    assert caplog.messages == []
    config = json.loads((teacher / "config.json").read_text())
    config["config"]["optimizer"]["averages"] = ["ema(rate=0.9999, corrected=False)"]
    (teacher / "config.json").write_text(json.dumps(config))
    cmjax.load(teacher)
    assert [message.split(":")[1] for message in caplog.messages] == [
        " the average ema(rate=0.9999, corrected=False) after 2,000 updates"
    ]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["ema(rate=0.9)", "power(std=0.1)"], ["ema(rate=0.9, corrected=False)", "power(std=0.1)"]),
        ("ema(rate=0.9, )", "ema(rate=0.9, corrected=False)"),
        ({"name": "ema", "rate": 0.9}, {"name": "ema", "rate": 0.9, "corrected": False}),
        (["imported"], ["imported"]),
    ],
)
def test_averages_of_older_runs_were_not_corrected_for_their_start(teacher, before, now):
    record = json.loads((teacher / "config.json").read_text())
    record["config"]["optimizer"]["averages"] = before
    (teacher / "config.json").write_text(json.dumps(record))
    assert read_record(teacher)["config"]["optimizer"]["averages"] == before
    del record["format"]
    (teacher / "config.json").write_text(json.dumps(record))
    assert read_record(teacher)["config"]["optimizer"]["averages"] == now


def test_an_older_run_goes_on_with_corrected_averages_and_says_so(tmp_path):
    config = digits_edm.get_config().to_dict()
    write_record(tmp_path, config, (8, 8, 1), 10)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["format"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert write_record(tmp_path, config, (8, 8, 1), 10, step=0) == [
        "optimizer.averages: ['ema(rate=0.995, corrected=False)'] -> ['ema(rate=0.995)']"
    ]
    assert write_record(tmp_path, config, (8, 8, 1), 10) == []
    with pytest.raises(ConfigError, match=r"optimizer\.averages: .*0\.9\)"):
        write_record(tmp_path, changed(config, "optimizer.averages", ["ema(rate=0.9)"]), (8, 8, 1), 10)
