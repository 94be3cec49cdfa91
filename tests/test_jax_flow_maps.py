"""MeanFlow's and iMF's checkpoints: recorded outputs, names of full size, and what they leave open."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import cmjax
from cmjax.cli import importing, sample
from cmjax.interop import meanflow
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.read import read_foreign
from cmjax.nets.adapter import as_net, parameter_shapes
from cmjax.runs.record import read_record

# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
STATED = {"meanflow": {"image_size": 8, "head_channels": 8}}
"""What the shapes of the recorded networks leave open."""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "latent"


def recorded(folder, name):
    """Inputs and outputs, the null label as -1."""
    with np.load(folder / f"{name}_io.npz") as file:
        io = dict(file)
    return io | {"y": np.where(io["y"] == 10, -1, io["y"]).astype(np.int32)}


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def random_direction(out):
    return np.linspace(-1, 1, out.size, dtype=np.float32).reshape(out.shape)


def read(folder, name):
    foreign, found = read_foreign(folder / f"{name}.msgpack", "auto", STATED[name])
    assert (found, foreign.kind) == (name, "flow_map")
    return foreign


def of_full_size(shared, name):
    """The arrays of a published network by the keys of the released file, without memory."""
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    return {key.removeprefix("net/"): np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}


def assert_all_read(arrays, network, shape, source):
    """Each parameter has the shape of its source's array, and no array is left."""
    read = set()
    for path, leaf in flatten_dict(parameter_shapes(network, shape)).items():
        keys, of = source(path)
        assert of(*(arrays[key] for key in keys)).shape == leaf.shape, path
        read |= set(keys)
    assert read == arrays.keys()


def test_meanflows_recorded_velocity_and_its_derivatives(folder):
    foreign, io = read(folder, "meanflow"), recorded(folder, "meanflow")
    assert foreign.model == {"path": "linear", "preconditioning": "linear_flow"}

    def u(x, t, r):
        return as_net(foreign.module)(foreign.params, x, t, c_noise_s=t - r, label=io["y"])

    weights = random_direction(io["u"])

    @quick_jit
    def outputs(x, t, r, along):
        gradient = jax.grad(lambda x: (u(x, t, r) * weights).sum())(x)
        return *jax.jvp(lambda x, t: u(x, t, r), (x, t), (along, jnp.ones_like(t))), gradient

    out = outputs(io["x"], io["t"], io["r"], io["jvp_v"])
    for actual, name in zip(out, ("u", "jvp_du", "grad_x"), strict=True):
        assert_near(actual, io[name])


def test_an_imported_meanflow_is_a_flow_map_on_the_linear_path(folder, tmp_path):
    importing.run(str(folder / "meanflow_orbax.zip"), tmp_path / "run", overrides=STATED["meanflow"])
    assert read_record(tmp_path / "run")["imported"]["format"] == "meanflow"
    model, io = cmjax.load(tmp_path / "run"), recorded(folder, "meanflow")
    assert (model.kind, model.path, model.t_min, model.t_max) == ("flow_map", cmjax.paths.linear, 0.0, 1.0)
    moved = quick_jit(lambda model, x, t, s, label: model(x, t, s, label=label))(
        model, io["x"], io["t"], io["r"], io["y"]
    )
    assert_near(moved, io["sample_1step"])
    sample.run(tmp_path / "run", num=3, guidance=2.0, out=str(tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as file:
        assert file["images"].shape == (3, 8, 8, 4)
        assert np.isfinite(file["images"]).all()


def test_meanflows_full_size_names_and_shapes(shared):
    arrays = of_full_size(shared, "MeanFlow-jax-DiT-XL-2")
    network = meanflow._network(arrays, 16)
    assert (network.width, network.depth, network.patch, network.num_classes) == (1152, 28, 2, 1000)
    assert_all_read(arrays, network, (32, 32, 4), meanflow._source)


def test_what_meanflows_shapes_leave_open_is_asked_for_at_once(folder):
    path = folder / "meanflow.msgpack"
    with pytest.raises(UndeterminedError, match=r"--arch-image_size=N.*; --arch-head_channels=N, .*divisor of 32"):
        read_foreign(path, "auto", {})
    with pytest.raises(ForeignError, match="head_channels=5 does not divide the width, 32"):
        read_foreign(path, "auto", {"image_size": 8, "head_channels": 5})
    with pytest.raises(ForeignError, match="patch=2 does not divide"):
        read_foreign(path, "auto", {"image_size": 7, "head_channels": 8})
    with pytest.raises(ForeignError, match="not of --format=edm; its keys are those of meanflow"):
        read_foreign(path, "edm", {})
    with pytest.raises(ForeignError, match="--arch-kind has no effect on --format=meanflow, which takes"):
        read_foreign(path, "auto", {"kind": "denoiser"})


def test_all_that_is_wrong_with_meanflows_arrays_is_said_at_once(folder):
    from cmjax.interop.flax_files import read_flax

    arrays = {key.removeprefix("net/"): array for key, array in read_flax(folder / "meanflow.msgpack", None)[0].items()}
    broken = {key: array for key, array in arrays.items() if "h_embedder" not in key} | {"more/kernel": np.zeros(2)}
    broken["blocks/layers_1/attn/proj/_flax_linear/kernel"] = np.zeros((32, 31), np.float32)
    with pytest.raises(ForeignError, match=r"missing h_embedder.*left over more/kernel.*layers_1/attn/proj"):
        meanflow.read_meanflow(broken, {})
    without = {
        key: array for key, array in arrays.items() if key.partition("/")[0] not in ("x_embedder", "final_layer")
    }
    with pytest.raises(ForeignError, match=r"missing x_embedder/proj/kernel; missing final_layer/linear"):
        meanflow.read_meanflow(without, {})
