"""Flax's checkpoints: the average is read, from any container, as data; what is damaged or no checkpoint is said so."""

import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict

from cmjax.interop.flax_files import is_flax_folder, read_flax
from cmjax.interop.keys import ForeignError, UndeterminedError
from cmjax.interop.read import read_foreign

STATED = {"image_size": 8, "head_channels": 8}
"""What the shapes of the recorded MeanFlow leave open."""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "latent"


@pytest.fixture(scope="module")
def tree(folder):
    return serialization.msgpack_restore((folder / "meanflow.msgpack").read_bytes())


@pytest.fixture
def unpacked(folder, tmp_path):
    with zipfile.ZipFile(folder / "meanflow_orbax.zip") as archive:
        archive.extractall(tmp_path / "meanflow")
    return tmp_path / "meanflow" / "checkpoint_1250"


def written(path, tree):
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def test_the_average_is_read_from_every_container(folder, tree, unpacked, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(folder / "meanflow.msgpack", "meanflow/checkpoint_1250")
    expected = flatten_dict(tree["ema_params"], sep="/")
    packed = (folder / "meanflow.msgpack", folder / "meanflow_orbax.zip", tmp_path / "packed.zip")
    for path in (*packed, unpacked, unpacked.parent):
        arrays, averages = read_flax(path, None)
        assert averages == ()
        assert arrays.keys() == expected.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, expected[key])


def test_one_of_several_averages_is_asked_for_with_all_else_that_is_open(tree, tmp_path):
    averages = {"500": {"net": tree["params"]["net"]}, "1000": tree["ema_params"]}
    path = written(tmp_path / "checkpoint_7", {"step": 7, "params": tree["params"], "ema_params": averages})
    message = r"--arch-image_size=N.*; --arch-head_channels=N.*; --arch-average=N, which of its averages: 500, 1000"
    with pytest.raises(UndeterminedError, match=message):
        read_foreign(path, "auto", {})
    with pytest.raises(UndeterminedError, match=r"give --arch-average=N"):
        read_foreign(path, "auto", STATED)
    with pytest.raises(ForeignError, match=r"--arch-average=3: .* has the averages 500, 1000"):
        read_foreign(path, "auto", STATED | {"average": "3"})
    foreign, _ = read_foreign(path, "auto", STATED | {"average": "1000"})
    labels = tree["ema_params"]["net"]["y_embedder"]["embedding_table"]["_flax_embedding"]["embedding"]
    np.testing.assert_array_equal(foreign.params["label"]["embedding"], labels)


def test_without_an_average_a_training_checkpoint_is_refused(tree, tmp_path):
    path = written(tmp_path / "checkpoint_7", {key: value for key, value in tree.items() if key != "ema_params"})
    with pytest.raises(ForeignError, match=r"has no average of the parameters \(ema_params\), only .*params"):
        read_foreign(path, "auto", STATED)
    path = written(tmp_path / "checkpoint_8", {**tree, "ema_params": {}})
    with pytest.raises(ForeignError, match="without parameters in ema_params"):
        read_foreign(path, "auto", STATED)
    # the network alone is what `ema_params.msgpack` files are
    assert read_foreign(written(tmp_path / "net.msgpack", tree["ema_params"]), "auto", STATED)[1] == "meanflow"


def test_orbaxs_folder_without_an_average_is_refused(tree, tmp_path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "checkpoint_7", {"step": np.int32(7), "params": tree["params"]})
    with pytest.raises(ForeignError, match=r"has no average of the parameters \(ema_params\), only params, step"):
        read_foreign(tmp_path / "checkpoint_7", "auto", STATED)


@pytest.mark.parametrize("kept", [1, 50, 1000, 0.5, 0.999])
def test_a_cut_msgpack_file_is_said_so_in_one_line(folder, tmp_path, kept):
    content = (folder / "meanflow.msgpack").read_bytes()
    path = tmp_path / "checkpoint_7"
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ForeignError, match="nor a whole Flax checkpoint: ") as caught:
        read_foreign(path, "auto", STATED)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_and_other_values_are_refused(tree, tmp_path):
    net = tree["ema_params"]["net"]
    kernel = np.full_like(net["x_embedder"]["proj"]["kernel"], np.nan)
    changed = {**net, "x_embedder": {"proj": {**net["x_embedder"]["proj"], "kernel": kernel}}}
    path = written(tmp_path / "checkpoint_7", {"ema_params": {"net": changed}})
    with pytest.raises(ForeignError, match="not finite x_embedder/proj/kernel"):
        read_foreign(path, "auto", STATED)
    path = written(tmp_path / "checkpoint_8", {"ema_params": {"net": {**net, "note": "text"}}})
    with pytest.raises(ForeignError, match="more than arrays"):
        read_foreign(path, "auto", STATED)


def problem_of(path):
    """The error of reading a folder, in a process of its own.

    TensorStore's other reads end after Orbax has closed its event loop, and would be warnings of a later test.
    """
    program = """
import sys
from pathlib import Path
from cmjax.interop.keys import ForeignError
from cmjax.interop.read import read_foreign
try:
    read_foreign(Path(sys.argv[1]), "auto", {"image_size": 8, "head_channels": 8})
except ForeignError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    return done.stdout


def test_a_damaged_orbax_folder_is_said_so_in_one_line(unpacked):
    (large,) = (file for file in (unpacked / "ocdbt.process_0" / "d").iterdir() if file.stat().st_size > 10**5)
    content = large.read_bytes()
    for damage in (content[: len(content) // 2], b""):
        large.write_bytes(damage)
        problem = problem_of(unpacked)
        assert "no whole Orbax checkpoint" in problem
        assert problem.count("\n") == 1
        assert len(problem) < 500
    (unpacked / "_METADATA").unlink()
    assert "no whole Orbax checkpoint" in problem_of(unpacked)


def test_damaged_zips_and_several_checkpoints_are_refused(folder, unpacked, tmp_path):
    path = tmp_path / "cut.zip"
    path.write_bytes((folder / "meanflow_orbax.zip").read_bytes()[:-1000])
    with pytest.raises(ForeignError, match=r"cut\.zip is no whole zip archive"):
        read_foreign(path, "auto", STATED)
    content = bytearray((folder / "meanflow_orbax.zip").read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ForeignError, match=r"cut\.zip is no whole zip archive: Bad CRC-32"):
        read_foreign(path, "auto", STATED)
    shutil.copytree(unpacked, unpacked.with_name("checkpoint_2500"))
    with pytest.raises(ForeignError, match="holds several checkpoints, checkpoint_1250, checkpoint_2500: name one"):
        read_foreign(unpacked.parent, "auto", STATED)


def test_other_folders_are_none_of_orbax(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not is_flax_folder(tmp_path)
    with pytest.raises(ForeignError, match="is no diffusers folder"):
        read_foreign(tmp_path / "empty", "auto", {})
