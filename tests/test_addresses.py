"""Models with an address: of a hub on the loopback address and of cmjax's own files, and what is refused in a line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import cmjax
from cmjax.cli import importing, sample
from cmjax.config.fields import ConfigError
from cmjax.runs import releases
from cmjax.runs.record import read_record
from cmjax.system.libraries import MissingLibrary
from tests.hub_server import commit, serving
from tests.in_process import do

BUNDLE = releases.FOLDER / "digits_ct"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, and that of the library of hubs."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "a cache" / "cmjax"


@pytest.fixture
def hub(tmp_path, cache, monkeypatch):
    """A hub with a model of ours, one of another library, and one whose weights are cut short."""
    others, cut, without = (tmp_path / name for name in ("others", "cut", "without"))
    others.mkdir()
    (others / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (others / "model.safetensors").write_bytes(b"large")
    shutil.copytree(BUNDLE, cut)
    (cut / "model.safetensors").write_bytes((BUNDLE / "model.safetensors").read_bytes()[:1000])
    without.mkdir()
    (without / "README.md").write_text("# nothing")
    folders = {"me/digits": BUNDLE, "me/bert": others, "me/cut": cut, "me/nothing": without}
    with serving(folders) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield asked


@pytest.mark.parametrize("address", ["hf://me/digits", "hf://me/digits@v1", f"hf://me/digits@{commit('me/digits')}"])
def test_a_model_of_a_hub_is_loaded_and_kept(hub, cache, address):
    flow_map, ours = cmjax.load(address), cmjax.load("cmjax://digits_ct")
    jax.tree.map(np.testing.assert_array_equal, flow_map.params, ours.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(flow_map.params)} == {np.dtype(np.float32)}
    kept = sorted(path.name for path in (cache / "models").iterdir())
    assert [name.partition("-")[0] for name in kept] == ["cmjax", "hf"]
    assert read_record(cache / "models" / kept[1])["imported"]["licence"] == "apache-2.0"


def test_a_model_of_a_hub_is_sampled_and_imported(hub, cache, tmp_path):
    do("--mode=sample", "--workdir=hf://me/digits", "--num=4", f"--out={tmp_path / 'a.npz'}")
    sample.run("cmjax://digits_ct", num=4, out=str(tmp_path / "b.npz"))
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["images"], b["images"])
    do("--mode=import", "--source=hf://me/digits", f"--workdir={tmp_path / 'run'}")
    imported = read_record(tmp_path / "run")["imported"]
    assert imported == {"from": "hf://me/digits", "format": "cmjax", "licence": "apache-2.0"}
    importing.run(str(BUNDLE), tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal, cmjax.load(tmp_path / "run").params, cmjax.load(tmp_path / "again").params
    )


def test_what_was_fetched_serves_without_the_hub(hub, cache, monkeypatch):
    cmjax.load("hf://me/digits")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    shutil.rmtree(cache)
    with pytest.raises(ConfigError, match="cannot be reached, and nothing of it was fetched before"):
        cmjax.load("hf://me/other")
    # another cache of ours: the files are the library's
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent / "other"))
    assert cmjax.load("hf://me/digits").shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://me/bert", "is no cmjax model: its config.json is of another library"),
        ("hf://me/nothing", "is no cmjax model: it has no config.json"),
        ("hf://me/unknown", "has no such model, or it is private"),
        ("hf://me/digits@v9", "it has no revision v9"),
        ("hf://me", "must be hf://owner/name or hf://owner/name@revision"),
        ("hf://me/di gits", "must be hf://owner/name"),
        ("hf://me/digits@", "must be hf://owner/name"),
        ("hf://me/cut", "model.safetensors"),
        ("cmjax://digits_cd", r"there is no such model \(did you mean digits_ct\?\); there are cifar_small_cd"),
        ("cmjax://", "there is no such model; there are cifar_small_cd, digits_ct"),
    ],
)
def test_what_is_no_model_is_one_line(hub, cache, address, said):
    with pytest.raises(ConfigError, match=said) as refused:
        cmjax.load(address)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(address)
    assert not (cache / "models").exists() or not list((cache / "models").iterdir())
    if address == "hf://me/bert":
        assert not [path for path in hub if path.endswith("model.safetensors")]


def test_other_modes_and_a_missing_library_are_named(cache, monkeypatch):
    for mode in ("train", "status", "plan"):
        config = () if mode == "status" else ("--config=digits_ct",)
        with pytest.raises(ConfigError, match=f"for --mode=sample, .*; this is {mode}"):
            do(f"--mode={mode}", "--workdir=cmjax://digits_ct", *config)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingLibrary, match=r"hf://me/digits needs huggingface_hub: pip install 'cmjax\[hub\]'"):
        cmjax.load("hf://me/digits")


def test_what_comes_with_cmjax_is_sampled_without_the_libraries_of_training(tmp_path, monkeypatch):
    """A time to the first image is mostly that of imports: what a second run imports is held here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cmjax.load("cmjax://digits_ct")
    arguments = ["cmjax", "sample", "--workdir=cmjax://digits_ct", "--num=4", f"--out={tmp_path / 'x.png'}"]
    program = (
        f"import sys; sys.argv = {arguments}\nimport cmjax.main\ncmjax.main.main()\nprint(*sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {line for line in done.stdout.splitlines() if " " not in line}
    assert (tmp_path / "x.png").is_file()
    assert not modules & {"orbax", "optax", "tensorstore", "huggingface_hub", "matplotlib", "ml_collections"}
    assert not {name for name in modules if name.startswith(("cmjax.interop", "cmjax.metrics"))}
    assert len({name for name in modules if name.partition(".")[0] == "cmjax"}) <= 91


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be kept in .*; XDG_CACHE_HOME names another"):
        cmjax.load("cmjax://digits_ct")


def test_a_released_model_is_fetched_from_a_mirror_and_checked(tmp_path, cache, monkeypatch):
    """The table has a model that is in no package: from the sources, a folder, an address, and damaged there."""
    mirror, package = tmp_path / "mirror", tmp_path / "package"
    shutil.copytree(BUNDLE, mirror / "mnist_ect")
    package.mkdir()
    (package / "checksums.tsv").write_text("")
    monkeypatch.setattr(releases, "FOLDER", package)
    releases.write_rows({"mnist_ect": mirror / "mnist_ect"})
    monkeypatch.setattr(releases, "ADDRESS", "http://127.0.0.1:1/weights")
    with pytest.raises(ConfigError, match=r":1/weights: .*refused; CMJAX_WEIGHTS names another folder") as refused:
        cmjax.load("cmjax://mnist_ect")
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("CMJAX_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"cannot be read from .*nowhere: No such file"):
        cmjax.load("cmjax://mnist_ect")
    with serving({}, published=mirror) as (address, asked):
        monkeypatch.setenv("CMJAX_WEIGHTS", f"{address}/files")
        whole = (mirror / "mnist_ect" / "model.safetensors").read_bytes()
        for content, said in ((whole[:-1], "bytes, and not"), (whole[:-1] + b"x", "has another SHA-256")):
            (mirror / "mnist_ect" / "model.safetensors").write_bytes(content)
            with pytest.raises(ConfigError, match=said):
                cmjax.load("cmjax://mnist_ect")
        (mirror / "mnist_ect" / "model.safetensors").write_bytes(whole)
        assert cmjax.load("cmjax://mnist_ect").shape == (8, 8, 1)
        count = len(asked)
        cmjax.load("cmjax://mnist_ect")
        assert len(asked) == count
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("CMJAX_WEIGHTS", str(mirror))
    assert cmjax.load("cmjax://mnist_ect").shape == (8, 8, 1)
    monkeypatch.delenv("CMJAX_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    monkeypatch.setattr(releases, "SOURCES", mirror)
    assert cmjax.load("cmjax://mnist_ect").shape == (8, 8, 1)
    assert not (tmp_path / "third" / "cmjax" / "releases").exists()


def test_the_table_has_the_packages_files_and_those_of_the_sources():
    table = releases.table()
    assert list(table) == ["cifar_small_cd", "digits_ct", "mnist_ect", "mnist_latents_ect"]
    assert not releases._missing(BUNDLE, table["digits_ct"])
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) < 2.3e6
    for name in set(table) - {"digits_ct"}:
        assert not releases._missing(releases.SOURCES / name, table[name])
        assert {"README.md", "samples.png"} < {path.name for path in (releases.SOURCES / name).iterdir()}
    assert set(table) <= {path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")}


@pytest.mark.parametrize("name", ["mnist_ect", "cifar_small_cd", "mnist_latents_ect"])
def test_a_released_model_samples(cache, tmp_path, name):
    sample.run(f"cmjax://{name}", num=2, out=str(tmp_path / "x.npz"))
    images = np.load(tmp_path / "x.npz")["images"]
    assert images.shape == ((2, 32, 32, 3) if name == "cifar_small_cd" else (2, 28, 28, 1))
    assert images.std() > 30


@pytest.mark.slow
def test_the_script_makes_a_models_files(tmp_path):
    """Few steps; the package's table is that of a copy of the sources."""
    root = Path(__file__).parents[1]
    for folder in ("cmjax", "configs", "benchmarks"):
        shutil.copytree(root / folder, tmp_path / "src" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changes = ["steps=20", "metrics.num=0", "samples.every=0", "report=False", "net.width=32", "batch_size=32"]
    command = [sys.executable, "benchmarks/release.py", "digits_ct", f"--out={tmp_path / 'w'}", "--config", *changes]
    done = subprocess.run(
        command, cwd=tmp_path / "src", capture_output=True, text=True, check=False, env=environment(tmp_path / "src")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["model"], line["bytes"] < 200_000) == ("digits_ct", True)
    table = (tmp_path / "src" / "cmjax" / "weights" / "checksums.tsv").read_text()
    assert "\ndigits_ct/config.json\t" in table
    assert table != (releases.FOLDER / "checksums.tsv").read_text()
    program = "import cmjax; print(cmjax.load('cmjax://digits_ct'))"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "src", capture_output=True, text=True, check=True,
        env=environment(tmp_path / "src") | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert "kind='consistency'" in shown.stdout


def environment(root):
    return {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
