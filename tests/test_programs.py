"""Samplers and models as StableHLO: what jax alone makes of them is what cmjax makes of the same noise."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import cmjax
from cmjax.cli import exporting
from cmjax.config.fields import ConfigError
from cmjax.core import guidance, solvers
from cmjax.core.sampling import sample_chain, sample_denoiser
from cmjax.runs.trained import open_trained
from tests.in_process import do
from tests.leaving import noises, sampled, write_run

ROOT = Path(__file__).parents[1]
LOADS = ROOT / "docs" / "howto" / "import_export.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Writes a run where it is asked for, once."""
    folder = tmp_path_factory.mktemp("runs")
    return lambda name: folder / name if (folder / name).exists() else write_run(folder / name, name)


def exported(run, path, **options):
    """The function in the file, of host arrays, and what is beside it."""
    exporting.run(run, "stablehlo", str(path), **options)
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    program = export.deserialize(bytearray(path.read_bytes()))
    return lambda *arrays: np.asarray(program.call(*arrays)), about


def assert_close(a, b):
    """Equal but for the rounding of what XLA fuses otherwise."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", [
    "mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "adm", "edm2", "dit", "trig")),
])  # fmt: skip
def test_a_program_gives_the_samplers_bits_for_any_batch(tmp_path, name):
    """In a process whose programs are compiled as a user's are."""
    environment = {variable: value for variable, value in os.environ.items() if variable != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.leaving", name, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "the same bits"


def test_names_times_and_labels(run, tmp_path):
    call, about = exported(run("dit"), tmp_path / "a file.stablehlo", times="80,0.8")
    assert [each["name"] for each in about["inputs"]] == ["noise", "added", "label"]
    assert about["inputs"][1]["shape"] == [1, "b", 8, 8, 1]
    assert (about["times"], about["evaluations"], about["sampler"]) == ([80, 0.8], 2, "2-step")
    drawn, label = noises(3, 1), np.array([0, 9, 4], np.int32)
    assert_close(call(*drawn, label), sampled(run("dit"), (80, 0.8), *drawn, label=label))
    content = (tmp_path / "a file.stablehlo").read_bytes()
    assert export.deserialize(bytearray(content)).platforms == ("cpu", "cuda", "tpu")
    assert (about["bytes"], about["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (about["output"]["name"], about["output"]["shape"]) == ("images", ["b", 8, 8, 1])
    assert about["class_names"] == [str(i) for i in range(10)]


def test_jax_alone_runs_the_program_of_the_docs(run, tmp_path):
    """The block of the docs, where neither cmjax nor Flax can be imported."""
    exporting.run(run("mlp"), "stablehlo", str(tmp_path / "digits_ct.stablehlo"), times="80,0.8")
    (code,) = (part for part in LOADS.read_text().split("```") if "export.deserialize" in part)
    block = "import sys\nfor name in ('cmjax', 'flax', 'optax', 'orbax'): sys.modules[name] = None\n"
    block += code.partition("\n")[2].replace("runs/digits_ct/export/", "")
    block += "\nimport numpy as np; np.savez('out.npz', noise=noise, added=added, images=images)"
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as out:
        program = export.deserialize(bytearray((tmp_path / "digits_ct.stablehlo").read_bytes()))
        assert_close(out["images"], np.asarray(program.call(out["noise"], out["added"])))
        assert_close(out["images"], sampled(run("mlp"), (80, 0.8), out["noise"], out["added"]))


def test_label_and_guidance_are_inputs_where_the_network_takes_them(run, tmp_path):
    call, about = exported(run("guided"), tmp_path / "x.stablehlo", times="80")
    assert [each["name"] for each in about["inputs"]] == ["noise", "label", "guidance"]
    given = {"label": np.array([3, 1], np.int32), "guidance": np.array([1.5, 4.0], np.float32)}
    assert_close(call(*noises(2), *given.values()), sampled(run("guided"), (80,), *noises(2), **given))
    assert about["evaluations"] == 1


def test_a_network_without_the_scale_is_evaluated_twice(run, tmp_path):
    call, about = exported(run("teacher"), tmp_path / "x.stablehlo", solver="heun", steps=3, guidance=2.0)
    assert ([each["name"] for each in about["inputs"]], about["evaluations"]) == (["noise", "label", "guidance"], 10)
    teacher, label, scale = cmjax.load(run("teacher")), jnp.array([3, 1]), jnp.array([2.0, 3.0])
    guided = guidance.guided(teacher)
    (noise,), times = noises(2), np.asarray(open_trained(run("teacher")).model.grid(3)[::-1].tolist())
    theirs = sample_denoiser(
        guided, jax.random.key(0), noise.shape, times=times, path=teacher.path, solver=solvers.heun,
        start=times[0] * noise, label=label, guidance=scale,
    )  # fmt: skip
    assert_close(call(noise, label, scale), np.asarray(theirs))


def test_noise_that_a_solver_adds_is_an_input(run, tmp_path):
    options = {"solver": "churn(s_churn=1)", "steps": 4, "guidance": 1.0}
    call, about = exported(run("teacher"), tmp_path / "x.stablehlo", **options)
    assert about["inputs"][1]["shape"] == [4, "b", 8, 8, 1]
    noise, added = noises(2, 4)
    label = np.zeros(2, np.int32)
    assert np.abs(call(noise, added, label) - call(noise, 0 * added, label)).max() > 1e-3


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_flow_maps_chain(run, tmp_path, gamma):
    call, about = exported(run("flow"), tmp_path / "x.stablehlo", times="1,0.6", gamma=gamma)
    flow_map, drawn = cmjax.load(run("flow")), noises(3, 2 if gamma else 0)
    assert [each["name"] for each in about["inputs"]] == ["noise", "added"][: len(drawn)]
    added = {"noises": drawn[1]} if gamma else {}
    stops = (1, 0.6, flow_map.t_min)
    by = {"times": stops, "gamma": gamma, "start": drawn[0], **added}
    assert_close(call(*drawn), np.asarray(sample_chain(flow_map, jax.random.key(0), drawn[0].shape, **by)))


def test_the_model_alone_is_evaluated_at_any_time(run, tmp_path):
    call, about = exported(run("flow"), tmp_path / "x.stablehlo", function="model")
    assert [each["name"] for each in about["inputs"]] == ["x", "t", "s"]
    x, t, s = jnp.asarray(noises(3)[0]), jnp.float32([1, 0.7, 0.5]), jnp.float32([0, 0.5, 0.5])
    assert_close(call(x, t, s), np.asarray(cmjax.load(run("flow"))(x, t, s)))
    call, about = exported(run("teacher"), tmp_path / "y.stablehlo", function="model")
    assert ([each["name"] for each in about["inputs"]], about["t_max"]) == (["x", "t", "label"], 80)
    label = jnp.array([1, 2, 9])
    ours = cmjax.load(run("teacher"))(x, t, label=label)
    assert_close(call(x, t, label), np.asarray(ours))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("teacher", {"times": "80"}, "is a diffusion teacher, whose one evaluation is a blurred mean"),
        ("teacher", {"steps": 1}, "--steps=1: must be at least 2"),
        ("mlp", {"steps": 5}, "--solver and --steps are for teachers"),
        ("mlp", {"times": "0.8,80"}, "--times must descend"),
        ("mlp", {"times": "90"}, r"--times must lie in \[0.002, 80.0\]"),
        ("mlp", {"times": "auto:2"}, "--times=auto:2: must be numbers"),
        ("mlp", {"guidance": 2.0}, "--guidance=2.0: it is by classes, which the model has not"),
        ("mlp", {"function": "model", "times": "80"}, "--times: only --function=sampler"),
        ("mlp", {"autoencoder": "nowhere"}, "--autoencoder=nowhere does not exist"),
        ("mlp", {"licence": "mit"}, "--licence: only --format=hub; this is stablehlo"),
    ],
)
def test_what_cannot_be_exported_is_one_line(run, tmp_path, name, options, said):
    with pytest.raises(ConfigError, match=said) as refused:
        exporting.run(run(name), "stablehlo", str(tmp_path / "x.stablehlo"), **options)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_flags_reach_the_file(run, tmp_path):
    out = tmp_path / "x.stablehlo"
    do("export", f"--workdir={run('mlp')}", "--format=stablehlo", "--times=80,3", f"--out={out}")
    assert json.loads(out.with_name("x.stablehlo.json").read_text())["times"] == [80, 3]
    with pytest.raises(ConfigError, match="--times: only --format=stablehlo or onnx; this is safetensors"):
        do("export", f"--workdir={run('mlp')}", "--times=80,3")
    with pytest.raises(ConfigError, match=r"--out=.*x\.bin: must end in \.stablehlo"):
        exporting.run(run("mlp"), "stablehlo", str(tmp_path / "x.bin"))
