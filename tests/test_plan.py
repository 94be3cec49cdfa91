"""`--mode=plan`: what it counts, where it refuses, and the machines that it compiles for."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cmjax.cli import plan
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.nets.adapter import count_parameters, parameter_shapes
from cmjax.planning import abstract
from cmjax.system import chips
from cmjax.system.chips import Chip
from configs import cifar_ct, digits_ct, imagenet64_cd, imagenet256_imf, mnist_latents_ddpm
from tests.compiling import on_devices

ROOT = Path(__file__).parents[1]
PARAMETERS = 1_090_624
MULTIPLY_ADDS = 1_085_440
"""Of the digits' MLP: its kernels' elements, but those of the noise level's frequencies and the biases."""


def from_the_command_line(folder, *options, **environment):
    command = [sys.executable, "-m", "cmjax.main", "--mode=plan", "--config=configs/digits_ct.py", f"--out={folder}"]
    return subprocess.run(
        [*command, *options], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_plan_for_eight_devices(tmp_path):
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": on_devices(8)}
    done = from_the_command_line(tmp_path, "--config.mesh.fsdp=4", **devices)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    step, memory = told["train_step"], told["train_step"]["memory"]
    assert (told["devices"], told["fsdp"], told["parameters"]) == (8, 4, PARAMETERS)
    # a gradient is three forward passes but for the first layer's input, and the target is one more
    assert step["operations_per_image"] == pytest.approx(4 * 2 * MULTIPLY_ADDS, rel=0.02)
    # parameters, two moments and an average; the six square kernels are split in four
    assert memory["state"] == pytest.approx(4 * 4 * (PARAMETERS - 0.75 * 6 * 384**2), rel=0.02)
    assert memory["total"] == sum(memory[part] for part in ("state", "frozen", "batch", "other", "temporaries", "code"))
    assert memory["fits"] is None
    assert {"all-reduce", "all-gather"} <= step["collectives"].keys()
    assert step["seconds"] == {}
    assert told["samplers"]["2-step"]["operations"] == 2 * told["samplers"]["1-step"]["operations"]
    page = (tmp_path / "plan.md").read_text()
    assert page in done.stdout
    assert "no peaks are known of this device" in page


def test_the_samplers_can_be_left_out(tmp_path):
    config = digits_ct.get_config()
    config.net.width, config.net.depth, config.batch_size = 16, 1, 8
    plan.run(config.to_dict(), tmp_path, None, "digits_ct", samplers=False)
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["train_step"]["operations"] > 0
    assert "samplers" not in told


def test_several_steps_in_one_call_are_planned_as_they_run(tmp_path):
    config = digits_ct.get_config()
    config.net.width, config.net.depth, config.batch_size = 16, 1, 8
    steps = {}
    for number in (1, 10):
        config.steps_per_call = number
        plan.run(config.to_dict(), tmp_path / str(number), None, "digits_ct", samplers=False)
        told = json.loads((tmp_path / str(number) / "plan.json").read_text())
        assert told["steps_per_call"] == number
        steps[number] = told["train_step"]
    assert steps[10]["operations"] == steps[1]["operations"]
    assert steps[10]["bytes_moved_per_device"] == pytest.approx(steps[1]["bytes_moved_per_device"], rel=0.5)
    assert steps[10]["memory"]["batch"] == 10 * steps[1]["memory"]["batch"]
    assert "10 updates in one call" in (tmp_path / "10" / "plan.md").read_text()


def test_what_does_not_fit_is_refused_with_what_would(tmp_path, monkeypatch):
    small = Chip("small", 1e12, 22 * 2**20, 1e11, 1e10)
    monkeypatch.setattr(plan, "chip_of", lambda kind: small)
    with pytest.raises(ConfigError, match=r"does not fit: it takes .*--config\.mesh\.fsdp=2 makes it fit") as refusal:
        plan.run(digits_ct.get_config().to_dict(), tmp_path, None, "digits_ct")
    assert "\n" not in str(refusal.value)
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["train_step"]["memory"]["fits"] is False
    seconds = told["train_step"]["seconds"]
    assert seconds["least"] == max(seconds[name] for name in ("arithmetic", "memory", "links"))
    assert told["least_hours"] == pytest.approx(seconds["least"] * told["steps"] / 3600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 130}, "config.batch_size=130: .* divisible by the number of devices, 4"),
        ({"mesh": {"fsdp": 3}}, "config.mesh.fsdp=3 must divide the number of devices, 4"),
    ],
)
def test_what_does_not_divide_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        plan.run(digits_ct.get_config().to_dict() | change, tmp_path, None, "digits_ct")


def test_a_network_that_cannot_be_made_is_named():
    config = imagenet256_imf.get_config("tiny").to_dict()
    config["net"]["head_depth"], config["data"]["image_size"], config["data"]["channels"] = 8, 8, 4
    with pytest.raises(
        ConfigError, match=r"config\.net: for images of \(8, 8, 4\): head_depth=8 must be from 0 to depth"
    ):
        abstract.AbstractRun.of(config, jax.devices()[:1])


def test_unknown_machines_are_named(tmp_path, monkeypatch):
    config = digits_ct.get_config().to_dict()
    with pytest.raises(ConfigError, match=r"--topology=v9:2x2: is unknown: .* v5e:16x16, v5p:4x4x4, v6e:16x16"):
        plan.run(config, tmp_path, "v9:2x2", "digits_ct")
    monkeypatch.setattr(chips, "is_installed", lambda library: False)
    with pytest.raises(ConfigError, match=r"--topology=v5e:2x2: needs .* pip install 'cmjax\[tpu\]'"):
        plan.run(config, tmp_path, "v5e:2x2", "digits_ct")


def run_of(recipe):
    return read_run(recipe.get_config().to_dict(), data_there=False)


def test_data_that_is_not_here_is_known_or_assumed_or_asked_for():
    cifar = abstract.data_shapes(run_of(cifar_ct))
    assert (cifar.shape, cifar.num_classes, cifar.assumed) == ((32, 32, 3), 10, "")
    run = run_of(imagenet64_cd)
    data = abstract.data_shapes(run)
    assert (data.shape, data.num_classes) == ((64, 64, 3), 1000)
    assert "1000 classes" in data.assumed
    with pytest.raises(ConfigError, match=r"config\.data\.image_size=0: .*'latents' is not here"):
        abstract.data_shapes(run_of(mnist_latents_ddpm))


def test_weights_that_are_not_here_have_their_shapes():
    run = run_of(imagenet64_cd)
    data = abstract.data_shapes(run)
    model = run.make_model(data.num_classes)
    teacher, assumed = abstract.teacher_shapes(run, data)
    frozen = abstract.frozen_shapes(run, teacher)
    assert "has the student's network" in assumed
    assert count_parameters(frozen["teacher"]) == count_parameters(parameter_shapes(model.module, data.shape))
    assert count_parameters(frozen["lpips"]) == 14_714_688 + 1472  # VGG16, and a weight for each channel
    assert teacher is not None
    assert teacher.kind == "denoiser"


@pytest.mark.tpu_aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
@pytest.mark.parametrize(("name", "devices", "batch"), [("v5e:2x2", 4, 128), ("v5e:16x16", 256, 4096)])
def test_a_plan_for_a_tpu(tmp_path, name, devices, batch):
    done = from_the_command_line(tmp_path, f"--topology={name}", f"--config.batch_size={batch}")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert (told["devices"], told["device_kind"]) == (devices, "TPU v5 lite")
    assert told["train_step"]["memory"]["fits"] is True
    # the gradients, and nothing else but the loss and the vote
    reduced = told["train_step"]["collectives"]["all-reduce"]["bytes"]
    assert reduced == pytest.approx(4 * PARAMETERS, rel=0.01)
    assert told["train_step"]["collectives"].keys() == {"all-reduce"}
    assert told["least_hours"] > 0
