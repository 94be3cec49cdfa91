"""Several steps in one call: the same numbers, and all that a run does between steps."""

import importlib
import json
import signal

import jax
import numpy as np
import pytest

import cmjax
from cmjax.cli import train
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.batches import Batches
from cmjax.data.sources import digits
from cmjax.generation import sampling
from cmjax.runs import setup
from cmjax.system.mesh import batch_sharding, make_mesh
from cmjax.system.signals import Stopped
from cmjax.training import loop
from tests.compiling import as_a_user

SMALL = {
    "net.width": 16, "net.depth": 1, "batch_size": 16, "metrics.num": 0, "samples.num": 4, "samples.every": 8,
    "samples.times": (80.0,), "log.every": 4, "log.tensorboard": False, "checkpoint.save_every": 4,
    "steps": 24, "report": False,
}  # fmt: skip


def config_of(**changes):
    config = importlib.import_module("configs.digits_ct").get_config()
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return config.to_dict()


def records(workdir):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "num_scales")} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def on_one_device():
    """Once, of many runs, XLA aborted the process of this file where four devices shared two busy cores."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (setup, sampling):
            patch.setattr(module, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "one"
    with as_a_user():
        train.run(config_of(), workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["images_per_second"] == summary["images_per_second_per_chip"]  # one device
    return workdir


def same(workdir, other):
    leaves = zip(*(jax.tree.leaves(cmjax.load(folder).params) for folder in (workdir, other)), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.mark.usefixtures("compiled_as_a_user")
def test_four_steps_in_a_call_give_the_same_run(one_by_one, tmp_path):
    train.run(config_of(steps_per_call=4), tmp_path / "four")
    assert same(tmp_path / "four", one_by_one)
    assert records(tmp_path / "four") == records(one_by_one)
    for folder in ("samples", "checkpoints"):
        names = [
            sorted(path.name for path in (workdir / folder).iterdir()) for workdir in (one_by_one, tmp_path / "four")
        ]
        assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_a_user")
def test_a_stop_comes_at_the_end_of_a_call_and_the_run_goes_on(one_by_one, tmp_path, monkeypatch):
    reads = []

    def read(self, step, metrics, read=loop._LateMetrics._read):
        reads.append(step)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        read(self, step, metrics)

    monkeypatch.setattr(loop._LateMetrics, "_read", read)
    with pytest.raises(Stopped) as stopped:
        train.run(config_of(steps_per_call=4), tmp_path / "run")
    assert stopped.value.step in (8, 12, 16)
    with pytest.raises(ConfigError, match=r"config\.steps_per_call=24: must divide the step \d+ of "):
        train.run(
            config_of(steps_per_call=24, checkpoint__save_every=24, log__every=24, samples__every=24), tmp_path / "run"
        )
    train.run(config_of(steps_per_call=2), tmp_path / "run")
    assert same(tmp_path / "run", one_by_one)


def test_the_batches_of_a_call_lie_on_four_devices_as_each_alone():
    sharding = batch_sharding(make_mesh())
    assert len(sharding.device_set) == 4
    source = digits("train")
    alone, together = Batches(source, 16, 0, sharding), Batches(source, 16, 0, sharding, steps_per_call=3)
    three = [alone.at(step) for step in (6, 7, 8)]
    found, streamed = together.at(6), list(together.stream(3, 9))
    assert len(streamed) == 2
    for name, value in found.items():
        np.testing.assert_array_equal(value, np.stack([batch[name] for batch in three]))
        np.testing.assert_array_equal(streamed[1][name], value)
        for one, part in zip(three[1][name].addressable_shards, value.addressable_shards, strict=True):
            assert one.device == part.device
            np.testing.assert_array_equal(one.data, part.data[1])


def test_what_is_done_between_two_steps_of_a_call_is_refused():
    with pytest.raises(ConfigError, match=r"config\.steps_per_call=5: must divide config\.steps=24"):
        read_run(config_of(steps_per_call=5))
    with pytest.raises(ConfigError, match=r"config\.steps_per_call=8: must divide config\.checkpoint\.save_every=4"):
        read_run(config_of(steps_per_call=8))
