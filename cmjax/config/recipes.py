"""Recipes: Python files whose `get_config()` gives a configuration, and the changes that a command line makes to it."""

import ast
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cmjax.config.fields import ConfigError, suggestion
from cmjax.config.renamed import new_name, with_new_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FOLDER = Path("configs")  # the folder, where cmjax is started, of the recipes that are called by name
PACKAGE = Path(__file__).parents[1]
INSTALLED = next(
    (f for f in (PACKAGE / "recipes/configs", PACKAGE.parent / "configs") if (f / "common.py").exists()), FOLDER
)
"""The recipes that come with cmjax: within an installed package, beside it in a checkout."""
OWN_DATA = (
    "For images of your own (docs/howto/data.md has the commands):",
    "  small, in colour, on a CPU    cifar_small_edm, then cifar_small_cd; without classes cifar_small_ect",
    "  small, in colour, on a GPU    cifar_quick_edm, then cifar_quick_ect",
    "  small and grey, on a CPU      mnist_ect; of 8x8 pixels digits_ct",
)
"""The lines after the list of recipes in --list."""
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


def find_recipe(text: str) -> tuple[Path, str]:
    """Finds the file and variant of `--config=<text>`: a path, or the name of a recipe in configs/, as cifar_ct:tiny.

    A recipe that is not in configs/ here is the one that comes with cmjax.

    Raises: ConfigError where there is no such file.
    """
    path, _, variant = text.partition(":")
    if not path:
        raise ConfigError("--config= is empty: name a recipe, as --config=configs/digits_ct.py")
    file = Path(path) if path.endswith(".py") or os.sep in path else FOLDER / f"{path}.py"
    if Path(path).is_file() and not path.endswith(".py"):
        raise ConfigError(f"--config={text}: a recipe is a Python file, as configs/digits_ct.py")
    if file.parent == FOLDER and not file.exists() and (INSTALLED / file.name).is_file():
        file = INSTALLED / file.name
    if not file.is_file():
        known = all_recipes() if file.parent == FOLDER else list_recipes(file.parent)
        what = "is a folder" if file.is_dir() else f"there is no file {file}{suggestion(file.stem, known)}"
        raise ConfigError(f"--config={text}: {what}; --list shows the recipes")
    return file, variant


def recipe_name(text: str) -> str:
    """Gives the name of a recipe's runs, its file's with its variant: `cifar_ct:tiny` is cifar_ct-tiny."""
    file, variant = find_recipe(text)
    return file.stem + (f"-{variant}" if variant else "")


def load_recipe(text: str) -> "ConfigDict":
    """Loads the configuration of the recipe that `--config=<text>` names.

    Raises: ConfigError where it cannot be run, or gives no configuration.
    """
    from ml_collections import ConfigDict

    file, variant = find_recipe(text)
    try:
        module = _run(file)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"--config={text}: {file} has no function get_config; {FOLDER}/digits_ct.py shows one")
        config = module.get_config(variant) if variant else module.get_config()
    except ConfigError:
        raise
    # a recipe is a program of its own, which may fail in any way, or exit
    except (Exception, SystemExit) as error:
        if variant and (isinstance(error, ValueError) or "argument" in str(error)):
            known = str(error) if isinstance(error, ValueError) else f"the recipe has no variants, so no :{variant}"
            raise ConfigError(f"--config={text}: {known}") from error
        raise ConfigError(f"--config={text}: {_one_line(error, file)}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f"--config={text}: get_config() gave {kind}, and not an ml_collections.ConfigDict")
    # a recipe may have been written for older names of fields
    renamed = with_new_names(config.to_dict())
    return config if renamed == config.to_dict() else ConfigDict(renamed)


def list_recipes(folder: Path) -> dict[str, str]:
    """Lists the recipes in a folder: each name, and the first line of its docstring. None of them is run."""
    recipes = {}
    for file in sorted(folder.glob("*.py")) if folder.is_dir() else ():
        try:
            tree = ast.parse(file.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            recipes[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return recipes


def all_recipes() -> dict[str, str]:
    """Lists the recipes that can be called by name: those that come with cmjax, and those of configs/ here."""
    return dict(sorted((list_recipes(INSTALLED) | list_recipes(FOLDER)).items()))


def recipes_text() -> str:
    """Writes the recipes that can be called by name, and what each is, for the terminal."""
    recipes = all_recipes()
    width = max(map(len, recipes)) + 2
    lines = [f"  {name:{width}s}{about}" for name, about in recipes.items()]
    copy = "A recipe to edit:  cmjax recipe digits_ct > mine.py, then --config=mine.py"
    return "\n".join(["The recipes, for --config=<name>:", "", *lines, "", copy, "", *OWN_DATA])


def change(config: "ConfigDict", name: str, text: str | None) -> None:
    """Set a field, as "net.width", to what the command line says of it; None is a flag without a value.

    Raises: ConfigError where there is no such field, or its value is of another kind.
    """
    name = new_name(name)
    section: Any = None
    old: Any = config
    places = name.split(".")
    for depth, place in enumerate(places):
        section, path = old, ".".join(["config", *places[:depth]])
        if not hasattr(section, "keys"):
            raise ConfigError(f"--config.{name}: {path}={section!r} has no fields: write --{path}=<value>")
        if place not in section:
            hint, fields = suggestion(place, section.keys()), ", ".join(section.keys())
            raise ConfigError(f"--config.{name}: {path} has no field {place}{hint}; it has {fields}")
        old = section[place]
    if hasattr(old, "keys") and "name" not in old:
        raise ConfigError(f"--config.{name}: it is a section: change one of its fields, {', '.join(old.keys())}")
    # ConfigDict would refuse another type with an error of its own; `read_run` names what the field must be
    with config.ignore_type():
        section[places[-1]] = _value(name, text, old)


def _value(name: str, text: str | None, old: Any) -> Any:
    """Parses a value, of the kind of the field's old one."""
    if isinstance(old, bool):
        if text is None or text.lower() in YES:
            return True
        if text.lower() in NO:
            return False
        raise ConfigError(f"--config.{name}={text}: must be True or False")
    if text is None:
        raise ConfigError(f"--config.{name}: give it a value, as --config.{name}={old}")
    if isinstance(old, int | float):
        try:
            number = float(text)
            return int(number) if isinstance(old, int) and number.is_integer() else number
        except ValueError:
            if "," not in text:
                raise ConfigError(f"--config.{name}={text}: must be a number, as {old}") from None
        # "80,0.8" for a field that has one number
        old = ()
    if isinstance(old, tuple | list):
        return tuple(_literal(part) for part in _parts(text))
    return text if isinstance(old, str) or hasattr(old, "keys") else _literal(text)


def _parts(text: str) -> list[Any]:
    """Splits a sequence, "(80, 0.8)" or "80,0.8", into its elements; commas within brackets do not separate."""
    try:
        written = ast.literal_eval(text.strip())
        return list(written) if isinstance(written, tuple | list) else [text]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    parts, depth = [""], 0
    for letter in text.strip():
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _literal(part: Any) -> Any:
    try:
        return ast.literal_eval(part) if isinstance(part, str) else part
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return part


def _run(file: Path) -> ModuleType:
    """Runs a file as a module, which may import its neighbours and cmjax's recipes, as `from configs import common`."""
    # At the end of the path: a recipe's neighbour must not hide an installed module.
    for folder in (os.getcwd(), str(file.absolute().parent.parent), str(INSTALLED.absolute().parent)):
        if folder not in sys.path:
            sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _one_line(error: BaseException, file: Path) -> str:
    """Writes an error of a recipe in one line, with its place: "configs/x.py, line 3: KeyError: 'x'"."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == file.name]
    place = f"{file}, line {frames[-1].lineno}: " if frames else ""
    return " ".join(f"{place}{type(error).__name__}: {error}".split())
