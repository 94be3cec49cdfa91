"""The README's blocks, run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if "cmjax.main" in line
]
SHORT = ("--config.steps=20", "--config.figures.num=0", "--config.samples.every=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipes in it and, after `test_commands`, their runs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def python(folder, *arguments):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax-processes")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_commands_then_python(folder):
    assert len(COMMANDS) == 9
    assert len(PYTHON) == 2
    for line in COMMANDS:
        _python, *arguments = shlex.split(line)
        python(folder, *arguments, *(SHORT if "--config=configs" in line else ()))
    assert (folder / "digits.png").is_file()
    assert (folder / "gallery.png").is_file()
    assert (folder / "runs" / "digits_cd" / "diagnostics" / "consistency.png").is_file()
    assert (folder / "runs" / "imported" / "config.json").is_file()
    for code in PYTHON:
        python(folder, "-c", code)
