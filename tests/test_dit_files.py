"""Files of DiT, SiT, REPA and LightningDiT: recorded outputs, names of full size, and what they leave open."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import cmjax
from cmjax.cli import importing
from cmjax.config.fields import ConfigError
from cmjax.core.guidance import guided, limited
from cmjax.interop import dit
from cmjax.interop.dit import VELOCITY, read_dit
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.read import read_foreign
from cmjax.interop.torch_files import read_torch
from cmjax.nets.adapter import as_net, parameter_shapes
from tests.recorded_parts import quick_jit

# Programs that run once: compiling them is what these tests cost.
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


def ramp(shape):
    """The weights of the recorded gradients: from -1 to 1, over outputs channels first."""
    b, h, w, c = shape
    return np.moveaxis(np.linspace(-1, 1, b * c * h * w, dtype=np.float32).reshape(b, c, h, w), 1, -1)


@pytest.mark.parametrize("name", ["sit", "lightningdit", "lightningdit_qknorm"])
def test_recorded_velocities_and_gradients(folder, name):
    """Theirs are data − noise at times whose 1 is data."""
    foreign, found = read_foreign(folder / f"{name}.pt", "auto", HEADS.get(name, {}))
    assert (found, foreign.kind, foreign.model["path"]) == (name.partition("_")[0], "denoiser", "linear")
    io = recorded(folder, name)

    def velocity(x):
        return -as_net(foreign.module)(foreign.params, x, jnp.asarray(1 - io["t"]), label=io["y"])

    weights = ramp(io["out"].shape)
    out, gradient = quick_jit(lambda x: (velocity(x), jax.grad(lambda x: jnp.sum(velocity(x) * weights))(x)))(io["x"])
    assert_near(out, io["out"])
    assert_near(gradient, io["grad_x"])


FLOW_MAPS = {
    "dmf": {"head_channels": 10, "second_time_from": 3},
    "dmf_qknorm": {"second_time_from": 2},
    "facm_aux": {},
}


@pytest.mark.parametrize("name", FLOW_MAPS)
def test_recorded_mean_velocities_their_gradients_and_derivatives(folder, name):
    """Decoupled MeanFlow's time and sign are ours; FACM's time is 1 − ours, its mean velocity data − noise."""
    foreign, found = read_foreign(folder / f"{name}.pt", "auto", FLOW_MAPS[name])
    assert (found, foreign.kind, foreign.constants) == (
        name.partition("_")[0],
        "flow_map",
        {"t_min": 0.0, "t_max": 1.0},
    )
    io, flipped = recorded(folder, name), name == "facm_aux"

    def theirs(x, t, r):
        """Their output at their times."""
        t, r = (1 - t, 1 - r) if flipped else (t, r)
        return (-1 if flipped else 1) * as_net(foreign.module)(foreign.params, x, t, c_noise_s=r, label=io["y"])

    x, t, r = (jnp.asarray(io[key]) for key in ("x", "t", "r"))
    moved = (jnp.asarray(io["jvp_v"]), jnp.ones_like(t), jnp.zeros_like(r))
    out, derivative = quick_jit(lambda *at: jax.jvp(theirs, at, moved))(x, t, r)
    assert_near(out, io["out"])
    assert_near(derivative, io["jvp_du"])
    if "grad_x" in io:
        gradient = quick_jit(jax.grad(lambda x: jnp.sum(theirs(x, t, r) * ramp(out.shape))))(x)
        assert_near(gradient, io["grad_x"])
    if "out_expanded" in io:
        assert_near(quick_jit(theirs)(x, jnp.asarray(io["t_expanded"]), r), io["out_expanded"])


def test_recorded_noise_of_dit_without_its_variance(folder):
    foreign, found = read_foreign(folder / "dit.pt", "auto", HEADS["dit"])
    assert (found, foreign.model) == ("dit", {"path": "ddpm", "preconditioning": "epsilon"})
    io = recorded(folder, "dit")
    times = io["t"].astype(np.float32) / 1000
    out = quick_jit(as_net(foreign.module))(foreign.params, io["x"], times, label=io["y"])
    assert_near(out, io["out"][..., :4])


@pytest.mark.parametrize(
    ("name", "part", "interval"),
    [("sit", "cfg", None), ("dit", "cfg", None), ("lightningdit", "cfg", 0.89), ("lightningdit", "cfg_below", 0.89)],
)
def test_recorded_guidance_of_three_channels(folder, name, part, interval):
    """The first half of their batch has labels, the other none. Guided from their time .11 on, to .89 of ours."""
    foreign, _ = read_foreign(folder / f"{name}.pt", "auto", HEADS.get(name, {}))
    io, half = recorded(folder, name), slice(0, 2)
    t = jnp.asarray(io[f"{part}_t"][half] / 1000 if name == "dit" else 1 - io[f"{part}_t"][half], jnp.float32)
    estimate = guided(as_net(foreign.module), channels=3)
    estimate = estimate if interval is None else limited(estimate, low=0.0, high=interval)
    inputs = {"guidance": float(io["cfg_scale"]), "label": jnp.asarray(io[f"{part}_y"][half], jnp.int32)}
    out = quick_jit(partial(estimate, **inputs))(foreign.params, jnp.asarray(io[f"{part}_x"][half]), t)
    expected = io[f"{part}_out"][half][..., : out.shape[-1]] * (1 if name == "dit" else -1)
    assert_near(out, expected)
    plain = quick_jit(partial(guided(as_net(foreign.module)), **inputs))(foreign.params, io[f"{part}_x"][half], t)
    assert np.abs(plain[..., 3:] - expected[..., 3:]).max() > 0.01 * np.abs(expected).max()


def test_an_imported_sit_is_a_denoiser_on_the_linear_path(folder, tmp_path):
    importing.run(str(folder / "sit.pt"), tmp_path / "run", overrides=HEADS["sit"])
    model = cmjax.load(tmp_path / "run")
    io = recorded(folder, "sit")
    chosen = np.flatnonzero(1 - io["t"] >= model.t_min)
    x, t, label = io["x"][chosen], 1 - io["t"][chosen], io["y"][chosen]
    clean = quick_jit(lambda model, x, t, label: model(x, t, label=label))(model, x, t, label)
    assert_near(clean, x + t[:, None, None, None] * io["out"][chosen])


def test_an_imported_flow_map_goes_from_any_time_to_any_other(folder, tmp_path, capsys):
    """x − (t − s)·u, as their samplers go. The file does not say which blocks see the second time."""
    with pytest.raises(ConfigError, match=r"open.*--arch-head_channels=N.*--arch-second_time_from=N.*at most 5"):
        importing.run(str(folder / "dmf.pt"), tmp_path / "run")
    importing.run(str(folder / "dmf.pt"), tmp_path / "run", overrides=FLOW_MAPS["dmf"])
    assert "second_time_from=3" in capsys.readouterr().out
    model, io = cmjax.load(tmp_path / "run"), recorded(folder, "dmf")
    assert (model.kind, model.t_min, model.t_max) == ("flow_map", 0.0, 1.0)
    x, t, s, label = (jnp.asarray(io[key]) for key in ("x", "t", "r", "y"))
    state = quick_jit(lambda model: model(x, t, s, label=label))(model)
    assert_near(state, io["x"] - (io["t"] - io["r"])[:, None, None, None] * io["out"])


def test_a_facm_of_one_time_is_a_consistency_model_whose_velocity_is_at_negative_times(folder, tmp_path):
    """Its keys are a LightningDiT's: its name or --format says that it is none. x + (1 − τ)·F is the clean data."""
    shutil.copy(folder / "lightningdit_qknorm.pt", tmp_path / "100ep-stg2.pt")
    foreign, found = read_foreign(tmp_path / "100ep-stg2.pt", "auto", {})
    assert (found, foreign.kind, foreign.model) == ("facm", "consistency", VELOCITY)
    assert read_foreign(tmp_path / "100ep-stg2.pt", "lightningdit", {})[0].kind == "denoiser"
    importing.run(str(tmp_path / "100ep-stg2.pt"), tmp_path / "run")
    model, io = cmjax.load(tmp_path / "run"), recorded(folder, "lightningdit_qknorm")
    x, t, label = (jnp.asarray(io[key]) for key in ("x", "t", "y"))
    clean = quick_jit(lambda model: model(x, 1 - t, label=label))(model)
    assert_near(clean, io["x"] + (1 - io["t"])[:, None, None, None] * io["out"])


def test_repas_time_and_sign_are_ours(folder):
    arrays = read_torch(folder / "sit.pt")["ema"]
    foreign = read_dit(arrays | {"projectors.0.0.weight": np.ones(2)}, HEADS["sit"], "repa")
    io = recorded(folder, "sit")
    assert_near(quick_jit(as_net(foreign.module))(foreign.params, io["x"], io["t"], label=io["y"]), io["out"])


AUXILIARY = {f"r_embedder.mlp.{i}.{end}": (1152, 256 if i == 0 else 1152)[: 2 if end == "weight" else 1]
             for i in (0, 2) for end in ("weight", "bias")}  # fmt: skip
"""What a FACM of auxiliary time has beside the keys of a LightningDiT with normalised queries."""


@pytest.mark.parametrize(
    ("name", "peer", "more"),
    [
        ("DiT-XL-2-256", "dit", {}),
        ("SiT-XL-2-256", "sit", {}),
        ("LightningDiT-XL-1-qknorm", "lightningdit", {}),
        ("LightningDiT-XL-1-qknorm", "facm", AUXILIARY),
        ("DMF-XL-2", "dmf", {}),
    ],
)
def test_full_size_names_and_shapes(shared, monkeypatch, name, peer, more):
    """Every key is read, by a reader that is given broadcast zeros in place of arrays."""
    keys = json.loads((shared / "keys" / f"{name}.json").read_text()) | more
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    seen = {}

    def shapes_alone(arrays, module, shape, source):
        read = set()
        for path, leaf in flatten_dict(parameter_shapes(module, shape)).items():
            (key,), of = source(path)
            assert of(arrays[key]).shape == leaf.shape, path
            read.add(key)
        seen.update(network=module, shape=shape, left=arrays.keys() - read)

    monkeypatch.setattr(dit, "assemble", shapes_alone)
    monkeypatch.setattr(dit, "_take_tables", lambda arrays, *_: [arrays.pop(key, None) for key in dit.ROTATIONS] and [])
    if peer in ("facm", "dmf"):
        assert dit.peer_of(arrays, "x.pt") == peer
    foreign = read_dit(arrays, {}, peer)
    assert (seen["left"], seen["network"].heads, seen["network"].depth) == (set(), 16, 28)
    assert (foreign.kind == "flow_map") == seen["network"].two_times == (peer in ("facm", "dmf"))
    assert seen["network"].second_time_from == (20 if peer == "dmf" else 0)


def test_what_a_file_leaves_open_is_asked_for_at_once(folder):
    arrays = read_torch(folder / "dit.pt")
    with pytest.raises(UndeterminedError, match=r"--format=dit .*; --arch-image_size=N.*; --arch-head_channels=N"):
        read_dit({key: array for key, array in arrays.items() if key != "pos_embed"}, {}, None)
    with pytest.raises(ForeignError, match="not of --format=openai; its keys are those of dit"):
        read_foreign(folder / "dit.pt", "openai", {})
    with pytest.raises(UndeterminedError, match=r"give --arch-head_channels=N, .*a divisor of 48"):
        read_foreign(folder / "dit.pt", "auto", {})


@pytest.mark.parametrize(
    ("name", "format", "stated", "said"),
    [
        ("dit", "auto", {"kind": "denoiser", "resample_filter": (1, 1)},
         ["--arch-kind, --arch-resample_filter have no effect on --format=dit", "give --arch-head_channels=N"]),
        ("dmf", "auto", {"image_size": 9},
         ["latents of 8x8, not of --arch-image_size=9", "--arch-head_channels=N, ", "; --arch-second_time_from=N"]),
        ("sit", "dmf", {"head_channels": 7, "image_size": 9},
         ["image_size=9", "head_channels=7 does not divide the width, 40", "--arch-second_time_from=N"]),
        ("dmf", "sit", {"head_channels": 10, "second_time_from": 9},
         ["second_time_from has no effect on --format=sit", "left over logvar_linear.bias"]),
        ("dmf", "dmf", {"head_channels": 10, "second_time_from": 9}, ["second_time_from=9 must be at most depth=5"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_file_are_one_message(folder, tmp_path, name, format, stated, said):
    with pytest.raises(ConfigError) as caught:
        importing.run(str(folder / f"{name}.pt"), tmp_path / "run", format=format, overrides=stated)
    for part in said:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_all_problems_of_arrays_are_one_message(folder):
    arrays = read_torch(folder / "lightningdit.pt")["ema"]
    arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    broken = arrays | {"feat_rope.freqs_sin": arrays["feat_rope.freqs_cos"], "more": np.ones(1)}
    del broken["blocks.1.norm2.weight"]
    with pytest.raises(ForeignError, match=r"freqs_sin holds other.*missing blocks\.1\.norm2\.weight; left over more"):
        read_dit(broken, {}, "lightningdit")
    for key in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight"):
        del broken[key]
    with pytest.raises(ForeignError, match=r"no x_embedder\.proj\.weight, .*no y_embedder\.embedding_table\.weight, "):
        read_dit(broken, {}, "lightningdit")


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
    ("name", "format", "left_over"),
    [("facm_aux", "lightningdit", "r_embedder.mlp.0.weight"), ("dmf", "sit", "logvar_linear.bias")],
)
def test_a_stated_format_does_not_take_other_inputs(folder, name, format, left_over):
    with pytest.raises(ForeignError, match=f"left over .*{left_over}"):
        read_foreign(folder / f"{name}.pt", format, {"head_channels": 10} if name == "dmf" else {})
