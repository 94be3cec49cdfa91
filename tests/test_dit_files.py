"""Files of DiT, SiT, REPA and LightningDiT: recorded outputs, names of full size, and what they leave open."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import cmjax
from cmjax.cli import importing
from cmjax.interop.dit import _network, _source, read_dit
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.read import read_foreign
from cmjax.interop.torch_files import read_torch
from cmjax.nets.adapter import as_net, parameter_shapes

# Programs that run once: compiling them is what these tests cost.
quick_jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
HEADS = {"dit": {"head_channels": 12}, "sit": {"head_channels": 10}}
"""What the files of these sizes leave open."""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "latent"


def recorded(folder, name):
    """Inputs and outputs, NHWC, the null label as -1."""
    with np.load(folder / f"{name}_io.npz") as file:
        io = {key: np.moveaxis(value, 1, -1) if value.ndim == 4 else value for key, value in file.items()}
    return io | {"y": np.where(io["y"] == 10, -1, io["y"]).astype(np.int32)}


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["sit", "lightningdit", "lightningdit_qknorm"])
def test_recorded_velocities_and_gradients(folder, name):
    """Theirs are data − noise at times whose 1 is data."""
    foreign, found = read_foreign(folder / f"{name}.pt", "auto", HEADS.get(name, {}))
    assert (found, foreign.kind, foreign.model["path"]) == (name.partition("_")[0], "denoiser", "linear")
    io = recorded(folder, name)

    def velocity(x):
        return -as_net(foreign.module)(foreign.params, x, jnp.asarray(1 - io["t"]), label=io["y"])

    weights = np.linspace(-1, 1, io["out"].size, dtype=np.float32)  # of the outputs channels first
    b, h, w, c = io["out"].shape
    weights = np.moveaxis(weights.reshape(b, c, h, w), 1, -1)
    out, gradient = quick_jit(lambda x: (velocity(x), jax.grad(lambda x: jnp.sum(velocity(x) * weights))(x)))(io["x"])
    assert_near(out, io["out"])
    assert_near(gradient, io["grad_x"])


def test_recorded_noise_of_dit_without_its_variance(folder):
    foreign, found = read_foreign(folder / "dit.pt", "auto", HEADS["dit"])
    assert (found, foreign.model) == ("dit", {"path": "ddpm", "preconditioning": "epsilon"})
    io = recorded(folder, "dit")
    times = io["t"].astype(np.float32) / 1000
    out = quick_jit(as_net(foreign.module))(foreign.params, io["x"], times, label=io["y"])
    assert_near(out, io["out"][..., :4])


def test_an_imported_sit_is_a_denoiser_on_the_linear_path(folder, tmp_path):
    importing.run(str(folder / "sit.pt"), tmp_path / "run", overrides=HEADS["sit"])
    model = cmjax.load(tmp_path / "run")
    io = recorded(folder, "sit")
    chosen = np.flatnonzero(1 - io["t"] >= model.t_min)
    x, t, label = io["x"][chosen], 1 - io["t"][chosen], io["y"][chosen]
    clean = quick_jit(lambda model, x, t, label: model(x, t, label=label))(model, x, t, label)
    assert_near(clean, x + t[:, None, None, None] * io["out"][chosen])


def test_repas_time_and_sign_are_ours(folder):
    arrays = read_torch(folder / "sit.pt")["ema"]
    foreign = read_dit(arrays | {"projectors.0.0.weight": np.ones(2)}, HEADS["sit"], "repa")
    io = recorded(folder, "sit")
    assert_near(quick_jit(as_net(foreign.module))(foreign.params, io["x"], io["t"], label=io["y"]), io["out"])


@pytest.mark.parametrize("name", ["DiT-XL-2-256", "SiT-XL-2-256", "LightningDiT-XL-1-qknorm"])
def test_full_size_names_and_shapes(shared, name):
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    network, channels = _network(arrays, 16, 1.0), keys["x_embedder.proj.weight"][1]
    side = round(keys["pos_embed"][1] ** 0.5) * network.patch
    read = {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"} & keys.keys()
    for path, leaf in flatten_dict(parameter_shapes(network, (side, side, channels))).items():
        (key,), of = _source(path, network, channels, True)
        assert of(arrays[key]).shape == leaf.shape, path
        read.add(key)
    assert read == keys.keys()


def test_what_a_file_leaves_open_is_asked_for_at_once(folder):
    arrays = read_torch(folder / "dit.pt")
    with pytest.raises(UndeterminedError, match=r"--format=dit .*; --arch-image_size=N.*; --arch-head_channels=N"):
        read_dit({key: array for key, array in arrays.items() if key != "pos_embed"}, {}, None)
    with pytest.raises(ForeignError, match="not of --format=openai; its keys are those of dit"):
        read_foreign(folder / "dit.pt", "openai", {})
    with pytest.raises(UndeterminedError, match=r"give --arch-head_channels=N, .*a divisor of 48"):
        read_foreign(folder / "dit.pt", "auto", {})


def test_tables_are_checked_and_learned_positions_kept(folder):
    arrays = read_torch(folder / "lightningdit.pt")["ema"]
    arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    moved = arrays | {"pos_embed": arrays["pos_embed"] + 0.1}
    foreign = read_dit(moved, {}, "lightningdit")
    assert foreign.module.learned_positions
    np.testing.assert_array_equal(foreign.params["positions"], moved["pos_embed"][0])
    with pytest.raises(ForeignError, match=r"feat_rope\.freqs_sin holds other rotations"):
        read_dit(arrays | {"feat_rope.freqs_sin": arrays["feat_rope.freqs_cos"]}, {}, "lightningdit")
    with pytest.raises(ForeignError, match="latents of 6x6, not of --arch-image_size=8"):
        read_dit(arrays, {"image_size": 8}, "lightningdit")
    with pytest.raises(ForeignError, match="12 channels for each of 8, not one or two"):
        read_dit(arrays | {"final_layer.linear.weight": np.zeros((12, 36), np.float32)}, {}, "lightningdit")


@pytest.mark.parametrize(
    ("name", "left_over"), [("facm_aux", "r_embedder.mlp.0.weight"), ("dmf", "logvar_linear.bias")]
)
def test_relatives_that_take_more_inputs_are_refused(folder, name, left_over):
    with pytest.raises(ForeignError, match=f"left over .*{left_over}"):
        read_foreign(
            folder / f"{name}.pt", "sit" if name == "dmf" else "auto", {"head_channels": 10} if name == "dmf" else {}
        )
