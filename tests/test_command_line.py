"""What the command line understands, and what it says of the rest; nothing here starts a backend."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cmjax.main
from cmjax.cli import command_line, recipe
from cmjax.cli.command_line import MODES, declared, module_of, parse
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import all_recipes, load_recipe

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections, which reads the recipes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode=smple"], r"--mode=smple: must be one of train, .* \(did you mean sample\?\)"),
        (["smple"], r"--mode=smple: must be one of"),
        (["sample", "--patch=3"], "--patch: only --mode=edit; this is --mode=sample"),
        (["--mode=edit", "--stopped_exit_code=3"], "--stopped_exit_code: only --mode=train; this is --mode=edit"),
        (["--mode=train", "--num=3"], r"--num: only .*--mode=sample.*; this is --mode=train"),
        (["--nun=3", "--mode=sample"], r"--nun: --mode=sample has no such flag \(did you mean --num\?\)"),
        (["sample", "--nocheck"], "--check: only --mode=evaluate"),
        (["sample", "--num=0"], "num"),
        (["sample", "--num=many"], "num"),
        (["sample", "images"], "images: options are written --name=value"),
        (["--workdir="], "--workdir= is empty"),
        (["sample", "--times="], "--times= is empty"),
        (["gallery", "--image", ""], "--image= is empty"),
        (["edit", "--task=paint"], "task"),
        (["--config=configs/digits_ct.py", "--config.stepz=3"], "stepz"),
        (["--config=configs/digits_ct.py", "--config.steps=abc"], "abc"),
    ],
)
def test_what_a_mode_does_not_know_is_refused_in_a_line(monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=said):
        parse(arguments)


def test_a_mode_reads_its_own_flags():
    module, options = parse(["sample", "--workdir=runs/x", "--num", "3", "--times=80,0.8"])
    assert module is importlib.import_module("cmjax.cli.sample")
    assert (options.mode, options.num, options.seed, options.times) == ("sample", 3, 0, "80,0.8")
    assert (options.is_set("num"), options.is_set("seed")) == (True, False)
    assert options.workdir == Path("runs/x")
    with pytest.raises(ConfigError, match="--config is missing"):
        _ = options.recipe


def test_a_recipe_names_the_runs_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, options = parse(["--config=configs/cifar_ct.py:tiny", "--config.batch_size=16"])
    assert (options.mode, str(options.workdir), options.recipe["batch_size"]) == ("train", "runs/cifar_ct-tiny", 16)
    with pytest.raises(ConfigError, match=r"--config=configs/none\.py: there is no file"):
        _ = parse(["--config=configs/none.py"])[1].recipe
    with pytest.raises(ConfigError, match="--workdir is missing"):
        _ = parse(["sample"])[1].workdir


def test_recipes_come_with_cmjax_wherever_it_is_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("digits_ct", "configs/digits_ct.py"):
        assert load_recipe(text).data.name == "digits"
    (tmp_path / "mine.py").write_text(recipe.run("digits_meanflow"))  # imports its neighbours
    assert load_recipe("mine.py").to_dict() == load_recipe("digits_meanflow").to_dict()
    with pytest.raises(SystemExit):
        parse(["--list"])
    assert "digits_ct " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no file configs/digits_cd2\.py \(did you mean digits_cd\?\)"):
        load_recipe("digits_cd2")


def test_a_recipe_of_the_folder_configs_comes_before_the_one_of_its_name_that_comes_with_cmjax(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits_ct.py").write_text('"""Mine."""\n' + recipe.run("digits_cd"))
    assert load_recipe("digits_ct").objective.name == "cd"
    assert all_recipes()["digits_ct"] == "Mine."
    assert load_recipe("digits_ict").objective.name == "ict"


def test_the_mode_recipe_prints_the_file_that_it_names(capsys):
    for arguments in (["recipe", "digits_ct"], ["recipe", "--config=digits_ct"]):
        module, options = parse(arguments)
        module.start(options)
        assert capsys.readouterr().out == (ROOT / "configs" / "digits_ct.py").read_text()
    module, options = parse(["recipe"])
    with pytest.raises(ConfigError, match="which recipe"):
        module.start(options)


def test_every_mode_has_a_summary_and_documents_its_flags():
    files = {path.stem for path in (ROOT / "cmjax" / "cli").glob("*.py")} - {"__init__", "command_line", "flags"}
    assert files == {module_of(mode).__name__.rpartition(".")[2] for mode in MODES}
    for mode in MODES:
        help = command_line._help(mode)
        assert f"cmjax {mode} " in help
        for name in declared(mode).names:
            assert f"--{name}\n" in help


def test_every_mode_is_a_documented_call_from_python():
    page = (ROOT / "docs" / "howto" / "runs.md").read_text()
    for mode in MODES:
        module = module_of(mode)
        call = re.search(rf"\| `{mode}` \| `{module.__name__.rpartition('.')[2]}\.(run\(.*\))`", page)
        node = ast.parse(call[1], mode="eval").body
        inspect.signature(module.run).bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})
        assert module.run.__doc__


def test_the_console_script_is_the_same_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["cmjax"].partition(":")
    assert getattr(importlib.import_module(module), function) is cmjax.main.main


def test_help_and_errors_of_the_program():
    """As a user meets them: help ends well and is written on standard output, an error is one line and ends badly."""
    for arguments, code in ((["--help"], 0), (["status", "--help"], 0), (["--mode=nothing"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "cmjax.main", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert (done.stdout != "") == (code == 0)
    assert done.stderr.startswith("error: --mode=nothing")
