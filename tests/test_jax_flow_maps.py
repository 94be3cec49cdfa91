"""MeanFlow's, iMF's and pMF's checkpoints: recorded outputs, names of full size, and what they leave open."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

import cmjax
from cmjax.cli import importing, sample
from cmjax.interop import imf, meanflow
from cmjax.interop.flax_files import read_flax
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.read import read_foreign
from cmjax.nets.adapter import as_net, parameter_shapes
from cmjax.runs.record import read_record
from tests.recorded_parts import quick_jit

# Programs that run once: compiling them is what these tests cost.
STATED = {"meanflow": {"image_size": 8, "head_channels": 8}, "imf": {"image_size": 8}}
"""What the shapes of the recorded networks leave open."""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "latent"


def recorded(folder, name):
    """Inputs and outputs, the null label as -1."""
    with np.load(folder / f"{name}_io.npz") as file:
        io = dict(file)
    return io | {"y": np.where(io["y"] == 10, -1, io["y"]).astype(np.int32)}


def conditions_of(io):
    interval = jnp.stack([io["t_min"], io["t_max"]], axis=1)
    return {"label": io["y"], "guidance": jnp.asarray(io["omega"]), "interval": interval}


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def random_direction(out):
    return np.linspace(-1, 1, out.size, dtype=np.float32).reshape(out.shape)


def read(folder, name):
    foreign, found = read_foreign(folder / f"{name}.msgpack", "auto", STATED[name])
    assert (found, foreign.kind) == (name, "flow_map")
    return foreign


def arrays_of(folder, name):
    arrays, _ = read_flax(folder / f"{name}.msgpack", None)
    return {key.removeprefix("net/"): array for key, array in arrays.items()}


def of_full_size(shared, name):
    """The arrays of a published network by the keys of the released file, without memory."""
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    zeros = {key.removeprefix("net/"): np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    return imf._normalised(zeros)


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
    message = r"head_channels=5 does not divide the width, 32.*--arch-image_size=N"
    with pytest.raises(UndeterminedError, match=message):
        read_foreign(path, "auto", {"head_channels": 5})
    with pytest.raises(ForeignError, match="head_channels=5 does not divide the width, 32"):
        read_foreign(path, "auto", {"image_size": 8, "head_channels": 5})
    with pytest.raises(ForeignError, match="patch=2 does not divide"):
        read_foreign(path, "auto", {"image_size": 7, "head_channels": 8})
    with pytest.raises(ForeignError, match="not of --format=edm; its keys are those of meanflow"):
        read_foreign(path, "edm", {})
    with pytest.raises(ForeignError, match="--arch-kind has no effect on --format=meanflow, which takes"):
        read_foreign(path, "auto", {"kind": "denoiser"})


def test_all_that_is_wrong_with_meanflows_arrays_is_said_at_once(folder):
    arrays = arrays_of(folder, "meanflow")
    broken = {key: array for key, array in arrays.items() if "h_embedder" not in key} | {"more/kernel": np.zeros(2)}
    broken["blocks/layers_1/attn/proj/_flax_linear/kernel"] = np.zeros((32, 31), np.float32)
    with pytest.raises(ForeignError, match=r"missing h_embedder.*left over more/kernel.*layers_1/attn/proj"):
        meanflow.read_meanflow(broken, {})
    without = {
        key: array for key, array in arrays.items() if key.partition("/")[0] not in ("x_embedder", "final_layer")
    }
    with pytest.raises(ForeignError, match=r"missing x_embedder/proj/kernel; missing final_layer/linear"):
        meanflow.read_meanflow(without, {})


def test_imfs_recorded_outputs_and_their_derivatives(folder):
    foreign, io = read(folder, "imf"), recorded(folder, "imf")
    assert foreign.model == {"path": "linear", "preconditioning": "linear_gap"}
    conditions = conditions_of(io)

    def both(x, gap, **changes):
        net = as_net(foreign.module)
        return net(foreign.params, x, gap, **conditions | changes, return_velocity=True)

    weights = random_direction(io["u"])

    @quick_jit
    def outputs(x, t, r, along):
        gradient = jax.grad(lambda x: (both(x, t - r)[0] * weights).sum())(x)
        moved = jax.jvp(lambda x, t: both(x, t - r), (x, t), (along, jnp.ones_like(t)))
        always = jnp.tile(jnp.array([0.0, 1.0]), (len(t), 1))
        conditional = both(x, 0 * t, interval=always)[1]
        without = both(x, 0 * t, interval=always, guidance=jnp.ones_like(t), label=-jnp.ones_like(io["y"]))[1]
        return *moved[0], *moved[1], gradient, conditional, without

    out = outputs(io["x"], io["t"], io["r"], io["jvp_v"])
    names = ("u", "v", "jvp_du", "jvp_dv", "grad_x", "v_instant_cond", "v_instant_null")
    for actual, name in zip(out, names, strict=True):
        assert_near(actual, io[name])


def test_an_imported_imf_takes_the_scale_and_its_interval(folder, tmp_path):
    importing.run(str(folder / "imf_orbax.zip"), tmp_path / "run", overrides=STATED["imf"])
    model, io = cmjax.load(tmp_path / "run"), recorded(folder, "imf")
    assert (model.kind, model.path, model.t_min, model.t_max) == ("flow_map", cmjax.paths.linear, 0.0, 1.0)
    conditions = conditions_of(io)
    moved = quick_jit(lambda model, x, t, s, conditions: model(x, t, s, **conditions))(
        model, io["x"], io["t"], io["r"], conditions
    )
    assert_near(moved, io["sample_1step"])
    images = []
    for scale in (2.0, 6.0):
        choices = {"guidance": scale, "guidance_interval": ["0.2", "0.7"], "out": str(tmp_path / "x.npz")}
        sample.run(tmp_path / "run", num=2, **choices)
        with np.load(tmp_path / "x.npz") as file:
            images.append(file["images"])
    assert images[0].shape == (2, 8, 8, 4)
    assert np.isfinite(images).all()
    assert np.abs(images[0] - images[1]).max() > 1e-3


def test_imf_of_the_evaluation_build_has_no_second_head(folder):
    arrays = {key: array for key, array in arrays_of(folder, "imf").items() if not key.startswith("v_heads")}
    foreign, io = imf.read_imf(arrays, STATED["imf"], "imf"), recorded(folder, "imf")
    assert not foreign.module.velocity_head
    conditions = conditions_of(io)
    assert_near(quick_jit(as_net(foreign.module))(foreign.params, io["x"], io["h"], **conditions), io["u_eval_build"])


@pytest.mark.parametrize(("name", "side", "channels"), [("iMF-XL-2", 32, 4), ("pMF-H-16", 256, 3)])
def test_imfs_and_pmfs_full_size_names_and_shapes(shared, name, side, channels):
    arrays = of_full_size(shared, name)
    patches = "x_embedder/proj1/kernel" if name.startswith("pMF") else "x_embedder/proj/kernel"
    network = imf._network(arrays, patches, "shared_blocks_0")
    assert (network.depth, network.head_depth, network.heads, network.num_classes) == (48, 8, 16, 1000)
    stated = None if name.startswith("pMF") else side
    assert imf._side(arrays, network, stated, []) == side
    source = partial(imf._source, bottleneck=bool(network.bottleneck))
    assert_all_read(arrays, network, (side, side, channels), source)


def test_what_is_wrong_with_imfs_arrays_is_said_before_what_is_open(folder):
    arrays = arrays_of(folder, "imf")
    with pytest.raises(UndeterminedError, match=r"give --arch-image_size=N, the height and width of the latents"):
        imf.read_imf(arrays, {}, "imf")
    tokens, gate = arrays["t_max_tokens"], arrays["u_heads_1/attn_scale"]
    broken = {**arrays, "t_max_tokens": tokens[:1], "u_heads_1/attn_scale": gate[1:], "more": gate}
    del broken["v_heads_0/mlp/w3/_flax_linear/kernel"]
    message = r"missing v_heads_0/mlp/w3.*left over more.*u_heads_1/attn_scale is \(39,\).*t_max_tokens is \(1, 40\)"
    with pytest.raises(ForeignError, match=message):
        imf.read_imf(broken, {}, "imf")
    for key in ("class_tokens", "u_final_layer/norm/kernel", "y_embedder/embedding_table/_flax_embedding/embedding"):
        with pytest.raises(ForeignError, match=f"missing {key}"):
            imf.read_imf({name: array for name, array in arrays.items() if name != key}, STATED["imf"], "imf")


def by_its_equations(arrays, x, gap, omega, first, last, y):
    """The last layers' patches, of u and v, by the keys of iMF and of pMF."""
    in_pixels, patch = (
        "pos_embed" in arrays,
        arrays["x_embedder/proj" + "1" * ("pos_embed" in arrays) + "/kernel"].shape[0],
    )
    b, side, _, channels = x.shape
    n, head = side // patch, arrays["u_heads_0/attn/q_norm/kernel"].size

    def linear(h, name, bias=True):
        return h @ arrays[f"{name}/kernel"] + (arrays[f"{name}/bias"] if bias else 0)

    def norm(h, name):
        return h / np.sqrt(np.mean(h**2, -1, keepdims=True) + 1e-6) * arrays[f"{name}/kernel"]

    def silu(h):
        return h / (1 + np.exp(-h))

    def embedded(value, name):
        angles = value[:, None] * 1e4 ** (-np.arange(128) / 128)
        h = linear(np.concatenate([np.cos(angles), np.sin(angles)], 1), f"{name}_embedder/mlp/layers_0/_flax_linear")
        return linear(silu(h), f"{name}_embedder/mlp/layers_2/_flax_linear")

    def tokens(name, embedding):
        learned = arrays[f"{name}_tokens"]
        return learned.reshape(1, -1, learned.shape[-1]) + embedding[:, None]

    def attended(h, name):
        q, k, v = (linear(h, f"{name}/{part}_proj/_flax_linear", False).reshape(b, -1, heads, head) for part in "qkv")
        q, k = (
            (norm(part, f"{name}/{of}_norm")).reshape(*part.shape[:-1], head // 2, 2)
            for part, of in ((q, "q"), (k, "k"))
        )
        q, k = ((part[..., 0] + 1j * part[..., 1]) * turns[None, :, None] for part in (q, k))
        logits = np.einsum("bqhc,bkhc->bhqk", q, np.conj(k)).real / np.sqrt(head)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return linear(
            np.einsum("bhqk,bkhc->bqhc", weights, v).reshape(b, -1, width), f"{name}/out_proj/_flax_linear", False
        )

    def block(h, name):
        h = h + arrays[f"{name}/attn_scale"] * attended(norm(h, f"{name}/norm1"), f"{name}/attn")
        inner = norm(h, f"{name}/norm2")
        inner = silu(linear(inner, f"{name}/mlp/w1/_flax_linear", False)) * linear(
            inner, f"{name}/mlp/w3/_flax_linear", False
        )
        return h + arrays[f"{name}/mlp_scale"] * linear(inner, f"{name}/mlp/w2/_flax_linear", False)

    squares = x.reshape(b, n, patch, n, patch, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, -1)
    for layer in ("proj1", "proj2") if in_pixels else ("proj",):
        kernel = arrays[f"x_embedder/{layer}/kernel"]
        squares = squares @ kernel.reshape(-1, kernel.shape[-1]) + arrays[f"x_embedder/{layer}/bias"]
    width, heads = squares.shape[-1], squares.shape[-1] // head
    table = next(array for key, array in arrays.items() if key.startswith("y_embedder")).reshape(-1, width)
    h = [tokens("class", table[y]), tokens("omega", embedded(1 - 1 / omega, "omega"))]
    h += [tokens("t_min", embedded(first, "cfg_t_start")), tokens("t_max", embedded(last, "cfg_t_end"))]
    h = np.concatenate([*h, tokens("time", embedded(gap, "h")), squares], axis=1)
    if in_pixels:
        h = h + arrays["pos_embed"]
        turn = 1e4 ** (-np.arange(0, head // 2, 2) / (head // 2))
        places = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2, 1)
        turns = np.concatenate([np.zeros((h.shape[1] - n * n, head // 2)), (places * turn).reshape(n * n, -1)])
    else:
        turns = np.arange(h.shape[1])[:, None] * 1e4 ** (-np.arange(0, head, 2) / head)
    turns = np.exp(1j * turns)

    def through(h, part):
        for i in range(len({key.partition("/")[0] for key in arrays if key.startswith(part)})):
            h = block(h, f"{part}_{i}")
        return h

    h = through(h, "shared_blocks")
    for part in "uv":
        out = norm(through(h, f"{part}_heads")[:, -n * n :], f"{part}_final_layer/norm")
        out = linear(out, f"{part}_final_layer/linear/_flax_linear").reshape(b, n, n, patch, patch, channels)
        yield out.transpose(0, 1, 3, 2, 4, 5).reshape(b, side, side, channels)


def test_the_equations_of_imf_give_its_recorded_outputs(folder):
    io = recorded(folder, "imf")
    inputs = (io[name].astype(np.float64) for name in ("x", "h", "omega", "t_min", "t_max"))
    for out, name in zip(by_its_equations(arrays_of(folder, "imf"), *inputs, io["y"]), "uv", strict=True):
        assert_near(out, io[name])


def random_pmf(shared):
    """Random arrays of a tiny pMF, by the names of the published one: images of 12x12, patches of 4."""
    small = {1280: 24, 80: 8, 3413: 66, 1001: 11, 276: 29, 16: 4, 768: 48}
    rng, arrays = np.random.default_rng(0), {}
    for key, shape in json.loads((shared / "keys" / "pMF-H-16.json").read_text()).items():
        block = key.split("/")[1].rpartition("_")
        if block[0] in ("shared_blocks", "u_heads", "v_heads") and int(block[2]) > 1:
            continue
        sizes = [small.get(size, size) for size in shape]
        if "x_embedder" in key:  # 256 is the width of its first layer, and of all sines and cosines elsewhere
            sizes = [10 if size == 256 else size for size in sizes]
        offset = 1.0 if "norm" in key else 0.0
        arrays[key] = (
            offset + rng.standard_normal(sizes) / np.sqrt(max(1, sizes[-2] if len(sizes) > 1 else 9))
        ).astype("f")
    return arrays


def test_pmf_gives_images_of_which_the_flow_map_is_made(shared, tmp_path):
    arrays = random_pmf(shared)
    path = tmp_path / "checkpoint_3"
    path.write_bytes(serialization.msgpack_serialize({"ema_params": unflatten_dict(arrays, sep="/"), "step": 3}))
    importing.run(str(path), tmp_path / "run", overrides={"noise_scale": 2.0})
    model = cmjax.load(tmp_path / "run")
    assert (model.kind, model.shape, model.t_max) == ("flow_map", (12, 12, 3), 1.0)
    assert model.path is cmjax.paths.linear_to(noise_scale=2.0)
    rng, conditions = np.random.default_rng(1), {"label": np.array([-1, 0, 9, 4])}
    x = rng.standard_normal((4, 12, 12, 3)).astype("f")
    t, s = np.array([[1.0, 0.8, 0.3, 0.03], [0.0, 0.4, 0.3, 0.01]], np.float32)
    omega, interval = np.array([1.0, 7.0, 2.0, 3.0], np.float32), rng.uniform(0, 1, (4, 2)).astype("f")
    clean, _ = by_its_equations(
        {key.removeprefix("net/"): array.astype(np.float64) for key, array in arrays.items()},
        x.astype(np.float64), t - s, omega, *interval.T, np.where(conditions["label"] < 0, 10, conditions["label"]),
    )  # fmt: skip
    step = ((t - s) / np.clip(t, 0.05, 1))[:, None, None, None]
    conditions |= {"guidance": omega, "interval": interval}
    moved = quick_jit(lambda model, x, t, s, conditions: model(x, t, s, **conditions))(model, x, t, s, conditions)
    assert_near(moved, x - step * (x - clean))


def test_pmfs_noise_and_size_are_of_its_published_models_or_stated(shared):
    sizes = ((256, 768), (256, 1280), (512, 1280), (64, 32), (512, 768))
    assert [imf._noise_scale(*pair) for pair in sizes] == [1, 2, 4, 1, None]
    arrays = {key.removeprefix("net/"): array for key, array in random_pmf(shared).items()}
    with pytest.raises(UndeterminedError, match="--arch-noise_scale=N"):
        imf.read_imf(arrays, {"noise_scale": None}, "pmf")
    assert imf.read_imf(arrays, {}, "pmf").model == {"path": "linear", "preconditioning": "clean_gap"}
    with pytest.raises(ForeignError, match="pos_embed is of images of 12x12, not of --arch-image_size=16"):
        imf.read_imf(arrays, {"image_size": 16}, "pmf")
    with pytest.raises(ForeignError, match="pos_embed has 28 places, 20 of them of tokens: the others are no square"):
        imf.read_imf({**arrays, "pos_embed": arrays["pos_embed"][:, 1:]}, {}, "pmf")
