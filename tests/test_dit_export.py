"""A `dit` under SiT's names: what was imported is written as it was, and what SiT has not is refused at once."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import cmjax
from cmjax.cli import exporting, importing
from cmjax.config.fields import ConfigError
from cmjax.interop.dit import PEERS, VELOCITY, source_of
from cmjax.interop.dit_export import SIT, _theirs, write_sit
from cmjax.interop.keys import Foreign, ForeignError
from cmjax.interop.read import read_foreign
from cmjax.interop.torch_files import read_torch
from cmjax.nets.adapter import parameter_shapes
from cmjax.nets.adm import ADM
from cmjax.nets.dit import SIZES, DiT
from cmjax.runs.weights import write_model

TINY = {"patch": 2, "width": 16, "depth": 2, "heads": 2, "time_scale": 1.0}
DENOISER = {"kind": "denoiser", **VELOCITY}
TIME = "t_embedder.mlp.0.weight"


def loud(module, shape):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), parameter_shapes(module, shape))


def test_an_imported_sit_is_exported_as_it_was(shared, tmp_path, capsys):
    """Bit for bit, but for the layer behind the time, turned round twice, and the variance, which was left out."""
    source = shared / "parity" / "latent" / "sit.pt"
    importing.run(str(source), tmp_path / "run", overrides={"head_channels": 10})
    exporting.run(tmp_path / "run", "sit", str(tmp_path / "x_sit.safetensors"))
    assert "SiT(input_size=8, patch_size=2, in_channels=4, hidden_size=40, depth=3" in capsys.readouterr().out
    theirs, written = read_torch(source)["ema"], load_file(tmp_path / "x_sit.safetensors")
    assert {key: array.shape for key, array in written.items()} == {key: array.shape for key, array in theirs.items()}
    for key, array in written.items():
        if key.startswith("final_layer.linear"):
            rows = theirs[key].reshape(4, 8, *array.shape[1:]).copy()
            rows[:, 4:] = 0
            np.testing.assert_array_equal(array, rows.reshape(array.shape))
        elif key in (TIME, "pos_embed"):
            np.testing.assert_allclose(array, theirs[key], rtol=0, atol=2e-7 * np.abs(theirs[key]).max())
        else:
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@pytest.mark.parametrize("fields", [{"num_classes": 3, "learned_positions": True, "mlp_ratio": 3.0}, {}])
def test_what_is_exported_comes_back_unchanged(tmp_path, fields):
    """Without classes SiT has one, class 0, whose embedding is zero."""
    module, shape = DiT(**TINY, **fields), (4, 4, 3)
    params, classes = loud(module, shape), module.num_classes or None
    config = importing._config(Foreign(module, params, shape, "denoiser", "", {"t_min": 0.01, "t_max": 1.0}, VELOCITY))
    write_model(tmp_path / "run", config, shape, classes, params, imported=None, option="--workdir")
    exporting.run(tmp_path / "run", "sit")
    (path,) = (tmp_path / "run" / "export").iterdir()
    back, found = read_foreign(path, "auto", {"head_channels": 8})
    assert (found, back.shape, back.kind, back.model) == ("sit", shape, "denoiser", VELOCITY)
    assert back.module.clone(rounded_frequencies=False) == module
    ours, again = flatten_dict(cmjax.load(tmp_path / "run").params), flatten_dict(back.params)
    assert ours.keys() == again.keys()
    for place, array in ours.items():
        atol = 2e-7 if place == ("time", "dense_0", "kernel") else 0
        np.testing.assert_allclose(again[place], array, rtol=0, atol=atol, err_msg=str(place))


def test_names_and_shapes_at_full_size(shared):
    keys = json.loads((shared / "keys" / "SiT-XL-2-256.json").read_text())
    network = DiT(patch=2, **SIZES["XL"], num_classes=1000, time_scale=1.0)
    written = {"pos_embed": keys["pos_embed"]}
    for path, leaf in flatten_dict(parameter_shapes(network, (32, 32, 4))).items():
        array = np.broadcast_to(np.float32(0), leaf.shape)
        (key,) = source_of(path, network, 4, PEERS["sit"]).keys
        written[key] = list(_theirs(path, array, network, 4).shape)
    assert written == keys


def test_all_that_sit_has_not_is_refused_at_once(tmp_path):
    options = {
        "norm": "rms", "qk_norm": True, "rope": True, "mlp": "swiglu", "time_scale": 1000.0, "second_time_from": 1,
        "two_times": True, "guided": True, "guided_interval": True, "velocity_head": True, "weight_head": 8,
        "out_channels": 6,
    }  # fmt: skip
    flow_map = {"kind": "flow_map", "path": "linear", "preconditioning": "linear_ends"}
    with pytest.raises(ForeignError) as caught:
        write_sit(tmp_path / "x.safetensors", DiT(**TINY | options), {}, (4, 8, 3), flow_map)
    for field, value in options.items():
        assert f"net.{field}={value!r}; SiT has {getattr(SIT, field)!r}" in str(caught.value)
    for part in ("model.kind=flow_map; SiT's is denoiser", "model.preconditioning=linear_ends", "images of 4x8"):
        assert part in str(caught.value)
    with pytest.raises(ForeignError, match="SiT is no ADM network; only dit"):
        write_sit(tmp_path / "x.safetensors", ADM(), {}, (4, 4, 3), DENOISER)
    with pytest.raises(ConfigError, match=r"--out=x\.pt: must end in \.safetensors"):
        exporting.run(tmp_path, "sit", "x.pt")
    assert not (tmp_path / "x.safetensors").exists()
