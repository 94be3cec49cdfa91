"""Samplers and models as ONNX: onnxruntime makes of the file what cmjax makes of the same noise."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.cli import exporting
from cmjax.config.fields import ConfigError
from cmjax.interop.keys import ForeignError
from cmjax.nets import NETS
from cmjax.system.libraries import MissingLibrary
from tests.leaving import noises, sampled, write_run

ATOL = 1e-4
AS_SAMPLERS, AS_MODELS = ("mlp", "unet", "dit"), ("adm", "edm2", "imf_dit")


@pytest.fixture
def runtime():
    pytest.importorskip("jax2onnx")
    return pytest.importorskip("onnxruntime")


def session(runtime, run, path, **options):
    exporting.run(run, "onnx", str(path), **options)
    made = runtime.InferenceSession(path.read_bytes())
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert [each.name for each in made.get_inputs()] == [each["name"] for each in about["inputs"]]
    assert [each.name for each in made.get_outputs()] == [about["output"]["name"]]
    return lambda **given: made.run(None, given)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_SAMPLERS)
def test_a_sampler_of_each_network(runtime, tmp_path, name):
    run = write_run(tmp_path / "run", name)
    call = session(runtime, run, tmp_path / "x.onnx", times="80,0.8" if name in ("mlp", "dit") else "80")
    count = 1 if name in ("mlp", "dit") else 0
    for num in (1, 5):
        drawn, label = noises(num, count), np.arange(num, dtype=np.int32)
        conditions = {"label": label} if name == "dit" else {}
        ours = sampled(run, (80, 0.8)[: 1 + count], *drawn, **conditions)
        theirs = call(**dict(zip(("noise", "added"), drawn, strict=False)), **conditions)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_MODELS)
def test_a_model_of_each_other_network(runtime, tmp_path, name):
    call = session(runtime, write_run(tmp_path / "run", name), tmp_path / "x.onnx", function="model")
    x, t = noises(3)[0], np.float32([80, 0.8, 0.002])
    ours = cmjax.load(tmp_path / "run")(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(call(x=x, t=t), ours, rtol=0, atol=ATOL)


def test_every_network_but_that_of_prompts_is_tried():
    assert {*AS_SAMPLERS, *AS_MODELS, "conditional_unet"} == set(NETS)


@pytest.mark.slow
def test_a_model_at_any_time_with_labels_and_guidance(runtime, tmp_path):
    call = session(runtime, write_run(tmp_path / "flow", "flow"), tmp_path / "flow.onnx", function="model")
    x, t, s = noises(3)[0], np.float32([1, 0.7, 0.5]), np.float32([0, 0.5, 0.5])
    ours = cmjax.load(tmp_path / "flow")(*map(jnp.asarray, (x, t, s)))
    np.testing.assert_allclose(call(x=x, t=t, s=s), ours, rtol=0, atol=ATOL)
    call = session(runtime, write_run(tmp_path / "guided", "guided"), tmp_path / "guided.onnx", times="80")
    given = {"label": np.array([3, 1], np.int32), "guidance": np.float32([1.5, 4.0])}
    ours = sampled(tmp_path / "guided", (80,), *noises(2), **{name: jnp.asarray(each) for name, each in given.items()})
    np.testing.assert_allclose(call(noise=noises(2)[0], **given), ours, rtol=0, atol=ATOL)


@pytest.mark.slow
def test_an_operation_without_onnx_and_other_outputs_are_refused(runtime, tmp_path, monkeypatch):
    from cmjax.interop import onnx_file

    run = write_run(tmp_path / "run", "mlp")
    monkeypatch.setattr(onnx_file, "TOLERANCE", 0.0)
    with pytest.raises(ConfigError, match=r"--format=onnx: onnxruntime's outputs differ from JAX's by .*, more than 0"):
        exporting.run(run, "onnx", str(tmp_path / "x.onnx"), times="80")
    monkeypatch.undo()
    about, x = {"output": {"name": "y"}}, jax.ShapeDtypeStruct((2, 4), np.float32)

    def calls_the_host(weights, given):
        return jax.pure_callback(np.asarray, x, given["x"])

    said = "the network MLP cannot be written as ONNX: jax2onnx has none for the operation pure_callback"
    with pytest.raises(ForeignError, match=said):
        onnx_file.write_onnx(tmp_path / "x.onnx", calls_the_host, None, lambda batch: {"x": x}, about, name="MLP")
    assert not list(tmp_path.glob("x.onnx*"))


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(MissingLibrary, match=re.escape("--format=onnx needs jax2onnx: pip install 'cmjax[onnx]'")):
        exporting.run(tmp_path / "run", "onnx")
