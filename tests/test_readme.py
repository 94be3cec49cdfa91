"""The blocks of the README and of the docs' pages, run; their links and promises."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cmjax
from tests.compiling import on_devices
from tests.in_process import do

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("start", "howto/sampling", "howto/editing", "howto/evaluation")),
    *(ROOT / "docs" / f"{name}.md" for name in ("howto/import_export", "howto/runs")),
]
BLOCKS = [found for page in PAGES for found in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)]
PYTHON = list(dict.fromkeys(code for language, code in BLOCKS if language == "python"))
COMMANDS = list(
    dict.fromkeys(
        line.removeprefix("pip install -e . && ")
        for language, code in BLOCKS
        if language == "bash"
        for line in code.splitlines()
        if "cmjax.main" in line
    )
)
SHORT = ("--config.steps=20", "--config.metrics.num=0", "--config.samples.every=0", "--config.report=False",
         "--config.net.width=64", "--config.net.depth=1", "--config.batch_size=32")  # fmt: skip


def test_the_checks_on_a_clean_checkout_call_the_quick_start_as_it_stands_there():
    quick_start = (ROOT / "README.md").read_text().partition("## Quick start")[2].partition("\n## ")[0]
    lines = [
        line for code in re.findall(r"```bash\n(.*?)```", quick_start, flags=re.DOTALL) for line in code.splitlines()
    ]
    assert len(lines) == 3
    for line in lines:
        assert line in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipes in it and, after `test_commands_then_python`, their runs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def python(folder, *arguments):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    environment["XLA_FLAGS"] = on_devices(1)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_commands_then_python(folder):
    assert len(COMMANDS) == 9
    assert len(PYTHON) == 4
    for i, line in enumerate(COMMANDS):
        _python, *arguments = shlex.split(line)
        arguments += SHORT if "--config=configs" in line else ()
        if i == 0:
            python(folder, *arguments)
        else:
            assert arguments[:2] == ["-m", "cmjax.main"]
            with contextlib.chdir(folder):
                do(*arguments[2:])
    assert (folder / "digits.png").is_file()
    assert (folder / "gallery.png").is_file()
    assert (folder / "runs" / "digits_cd" / "diagnostics" / "consistency.png").is_file()
    assert (folder / "runs" / "imported" / "config.json").is_file()
    for code in PYTHON:
        with contextlib.chdir(folder):
            exec(code, {})


def test_the_readme_fits_one_look_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    headings = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"(?m)^#+ (.+)$", text)}
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings
        elif "://" not in link:
            assert (ROOT / link.partition("#")[0]).exists(), link


def test_every_method_is_in_the_readme_and_has_a_section_of_its_own():
    readme, methods = (ROOT / "README.md").read_text(), (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in cmjax.losses.__all__ if f"`{name}`" not in readme] == []
    assert sorted(re.findall(r"(?m)^#### `(\w+)`", methods)) == sorted(cmjax.losses.__all__)
