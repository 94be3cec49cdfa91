"""The house's own rules: floors, what an import costs, sizes, and nothing of one machine in the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "cmjax").rglob("*.py"))
BELOW_ALL = {"ranges", "checks", "system"}
LIBRARY = BELOW_ALL | {"core", "nets", "data", "training", "interop", "metrics", "plotting"}
MAY_IMPORT = {
    "ranges": set(),
    "checks": set(),
    "system": {"system"},
    "core": {"core", *BELOW_ALL},
    "nets": {"nets", *BELOW_ALL},
    "data": {"data", "system", "ranges"},
    "plotting": {"plotting", "system"},
    "training": BELOW_ALL | {"core", "nets", "data", "training"},
    "interop": BELOW_ALL | {"core", "nets", "data", "interop"},
    "metrics": BELOW_ALL | {"core", "nets", "data", "training", "metrics"},
    "config": LIBRARY | {"config"},
    "runs": LIBRARY | {"config", "runs"},
    "generation": LIBRARY | {"config", "runs", "generation"},
    "evaluation": LIBRARY | {"config", "runs", "generation", "evaluation"},
    "planning": LIBRARY | {"config", "runs", "planning"},
    "reporting": LIBRARY | {"config", "runs", "reporting"},
    "cli": LIBRARY | {"config", "runs", "generation", "evaluation", "planning", "reporting", "cli"},
    "main": BELOW_ALL | {"config", "data", "training", "cli"},
    "__init__": {"core", "training", "interop", "runs", "generation", "cli"},
}
ARRAYS = {"jax", "numpy", "jaxtyping"}
LIBRARIES = {"core": ARRAYS, "nets": ARRAYS | {"flax"}}
OPTIONAL = {"core/ode.py": {"diffrax"}}
"""Libraries of an extra, imported inside a function of that one file."""


def floor(path):
    return path.relative_to(ROOT / "cmjax").parts[0].removesuffix(".py")


def imported(path):
    """Dotted names that a file imports anywhere in it, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path.name}: relative import in line {node.lineno}")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_its_floor_and_below(path):
    names = [name.split(".") for name in imported(path)]
    assert {name[1] for name in names if name[0] == "cmjax"} <= MAY_IMPORT[floor(path)]
    libraries = {name[0] for name in names} - set(sys.stdlib_module_names) - {"cmjax"}
    optional = OPTIONAL.get(path.relative_to(ROOT / "cmjax").as_posix(), set())
    assert libraries <= LIBRARIES.get(floor(path), libraries) | optional


def test_importing_cmjax_is_light_and_its_names_exist():
    heavy = ["flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "PIL", "ml_collections", "absl.flags", "rich"]
    heavy += ["diffrax", "equinox", "bokeh", "jinja2", "matplotlib"]
    program = (
        f"import sys, cmjax; print([m for m in {heavy} if m in sys.modules])\nfor n in cmjax.__all__: getattr(cmjax, n)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


IMPORTS = [
    ("import cmjax; cmjax.load", 61, {"cli", "interop", "metrics", "generation"}, {"optax", "orbax"}),
    ("import cmjax.main, cmjax.cli.status", 27, {"core", "nets", "data", "interop"}, {"jax", "numpy", "PIL", "orbax"}),
    ("import cmjax.main, cmjax.cli.sample", 88, {"interop", "metrics", "evaluation"}, {"optax", "orbax", "matplotlib"}),
    ("import cmjax.main, cmjax.cli.train", 165, {"interop", "reporting"}, {"matplotlib.pyplot"}),
]
"""A program, the most modules of cmjax that it may import, and folders and libraries that it may not."""


@pytest.mark.parametrize(
    ("program", "most", "folders", "libraries"), IMPORTS, ids=["load", "status", "sample", "train"]
)
def test_what_an_import_costs(program, most, folders, libraries):
    program = f"import sys\n{program}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    ours = {name for name in modules if name.partition(".")[0] == "cmjax"}
    assert len(ours) <= most
    assert not {name for name in ours if name.split(".")[1:2] and name.split(".")[1] in folders}
    assert not modules & libraries


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_do_not_assert(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    nodes = list(ast.walk(ast.parse(text)))
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    assert not {
        node.name: lines_of(node) for node in nodes if isinstance(node, ast.FunctionDef) and lines_of(node) > 45
    }


def lines_of(function):
    """Without the docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_alone_reads_a_configuration(path):
    """Elsewhere a configuration is passed on whole: nobody takes a field out of what is called one."""
    if floor(path) in ("config", "interop"):  # the configurations there are those of other programs
        return
    for node in ast.walk(ast.parse(path.read_text())):
        taken = node.value if isinstance(node, ast.Subscript) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            taken = node.func.value
        named = ast.unparse(taken) if taken is not None else ""
        assert not named.endswith(("config", "['config']")), f"line {node.lineno}: {ast.unparse(node)}"


def test_no_path_of_one_machine_in_tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    own_path = re.compile(rb"(?<![\w.])/(?:home|work|root|Users)/\w")
    found = [
        f"{name}: {line.decode(errors='replace').strip()}"
        for name in filter(None, listed.stdout.decode().split("\0"))
        if (ROOT / name).is_file() and not name.startswith("docs/draw/vendor/")  # others' program, as it was published
        for line in (ROOT / name).read_bytes().splitlines()
        if own_path.search(line)
    ]
    assert not found
