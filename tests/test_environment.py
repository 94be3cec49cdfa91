"""The machine as a user has it: no accelerator, variables of nonsense, libraries that are not installed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from cmjax.cli import exporting, report, train
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import load_recipe
from cmjax.config.run import read_run
from cmjax.interop.tokens import load_tokenizer
from cmjax.system import environment
from cmjax.system.libraries import EXTRAS, MissingLibrary

ROOT = Path(__file__).parents[1]
TRAIN = ("--config=digits_ct", "--config.steps=20", "--config.report=False")
STATUS = ("status", "--workdir=/none")
LINES = [
    ({"JAX_PLATFORMS": "cuda"}, TRAIN, "JAX_PLATFORMS=cuda: there is no such device here, or JAX cannot reach it"),
    ({"JAX_PLATFORMS": "cpu,none"}, TRAIN, "'none' is not in the list of known backends"),
    ({"JAX_ENABLE_X64": "maybe"}, STATUS, "JAX_ENABLE_X64=maybe: must be true or false"),
    ({"JAX_DEFAULT_PRNG_IMPL": "x"}, STATUS, "JAX_DEFAULT_PRNG_IMPL=x: JAX knows no such value of it"),
    ({"JAX_TRANSFER_GUARD": "disallow"}, STATUS, "JAX_TRANSFER_GUARD=disallow: batches go to the devices"),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=x"}, STATUS, "Couldn't interpret value x"),
    ({"XLA_FLAGS": "/no/file"}, STATUS, "XLA_FLAGS=/no/file: Could not open file"),
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "x"}, TRAIN, "localhost:8476"),
    ({"OMPI_COMM_WORLD_SIZE": "x"}, TRAIN, "OMPI_COMM_WORLD_SIZE='x': must be a whole number"),
]


@pytest.mark.parametrize(("variables", "arguments", "line"), LINES, ids=[str(variables) for variables, _, _ in LINES])
def test_nonsense_in_the_environment_is_one_line_before_anything_is_made(tmp_path, variables, arguments, line):
    command = [sys.executable, "-m", "cmjax.main", *arguments]
    command += [f"--workdir={tmp_path / 'run'}"] if arguments is TRAIN else []
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def without(monkeypatch):
    monkeypatch.chdir(ROOT)

    def without(library):
        monkeypatch.setitem(sys.modules, library, None)

    return without


@pytest.mark.parametrize(
    ("library", "start", "line"),
    [
        ("wandb", lambda run: train.run(recipe({"log.wandb": True}), run), "config.log.wandb=True needs wandb: pip"),
        ("grain", lambda run: train.run(recipe({"data.workers": 2}), run), "config.data.workers=2: needs grain: pip"),
        ("diffrax", lambda run: train.run(recipe({"samples.solver": "tsit5"}, "digits_edm"), run), "needs diffrax"),
        ("safetensors", lambda run: exporting.run(run, "diffusers", None), "--format=diffusers needs safetensors"),
        ("tokenizers", load_tokenizer, "needs tokenizers: pip install 'cmjax[text]'"),
        ("bokeh", lambda run: report.run([run]), "--mode=report needs bokeh: pip install 'cmjax[report]'"),
        ("gcsfs", lambda run: read_run(recipe({"data.name": "folder", "data.data_dir": "gs://a"})), "needs gcsfs: pip"),
    ],
)  # fmt: skip
def test_a_library_that_is_missing_is_named_with_its_extra_before_anything_is_made(
    without, tmp_path, library, start, line
):
    without(library)
    with pytest.raises((MissingLibrary, ConfigError), match=re.escape(line)) as refused:
        start(tmp_path / "run")
    assert f"pip install 'cmjax[{EXTRAS[library]}]'" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections, which reads the recipes
def recipe(changes, name="digits_ct"):
    config = load_recipe(name)
    config.update_from_flattened_dict({"steps": 20, **changes})
    return config.to_dict()


OWN = {"cmjax", "configs", "__future__"}
OF_CORE = {"etils", "fsspec", "jinja2", "markupsafe", "jaxlib", "flax", "absl", "ml_dtypes", "threadpoolctl", "IPython"}
"""What comes with a dependency, or, of a template, with Bokeh; IPython is imported in its notebooks alone."""


def test_every_library_that_cmjax_imports_is_a_dependency_or_has_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_package = {name.lower(): module for module, names in packages_distributions().items() for name in names}
    packages = [text.partition(">")[0].lower() for text in project["dependencies"]]
    known = {of_package.get(package, package.replace("-", "_")) for package in packages} | {
        "sklearn",
        "PIL",
        "orbax",
        "matplotlib",
    }
    assert set(EXTRAS.values()) <= project["optional-dependencies"].keys()
    for path in (ROOT / "cmjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert tops <= known | OWN | OF_CORE | EXTRAS.keys(), path


@pytest.mark.parametrize(
    ("flags", "jaxlib", "plugins", "expected"),
    [
        ("", "0.10.2", [], f"{environment.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE"),
        ("--a=1", "0.10.2", [], f"--a=1 {environment.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE"),
        (f"{environment.FUSIONS}=", "0.10.2", [], f"{environment.FUSIONS}="),
        ("--a=1", "0.11.0", [], "--a=1"),
        ("--a=1", "0.10.2", ["libtpu"], "--a=1"),
        ("--a=1", "0.10.2", ["jax_plugins"], "--a=1"),
        ("--a=1", "", [], "--a=1"),
    ],
)
def test_xla_flags_change_where_it_helps_and_nowhere_else(monkeypatch, flags, jaxlib, plugins, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(environment, "find_spec", lambda name: name in plugins or None)
    monkeypatch.setattr(environment, "version_of", lambda package: jaxlib)
    environment.prefer_fast_convolutions()
    assert os.environ["XLA_FLAGS"] == expected
