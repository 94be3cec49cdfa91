"""Parses the command line: the mode, its flags, and changes of the recipe. A mode is imported when it is chosen."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError, suggestion
from cmjax.config.recipes import all_recipes, change, find_recipe, load_fields, load_recipe
from cmjax.system.files import ask_bucket, is_bucket, path_problem, to_path
from cmjax.system.libraries import MissingLibrary

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MODES = {
    "train": "cmjax.cli.train",
    "sample": "cmjax.cli.sample",
    "edit": "cmjax.cli.edit",
    "gallery": "cmjax.cli.gallery",
    "evaluate": "cmjax.cli.evaluate",
    "diagnose": "cmjax.cli.diagnose",
    "average": "cmjax.cli.average",
    "plan": "cmjax.cli.plan",
    "status": "cmjax.cli.status",
    "report": "cmjax.cli.report",
    "encode": "cmjax.cli.encode",
    "import": "cmjax.cli.importing",
    "export": "cmjax.cli.exporting",
}
"""Mode -> its module, which declares flags, `declare(flags)`, and runs, `start(options)`."""
SUMMARIES = {
    "train": "train a recipe, or resume a run (the default)",
    "sample": "sample images from a run",
    "edit": "edit an image: inpainting, colorization, super-resolution and more",
    "gallery": "show samples, edits and interpolations of a model on one sheet",
    "evaluate": "compute FID and other metrics of a run's samples, or of any images",
    "diagnose": "measure consistency errors, losses by noise level, and metrics by the second time",
    "average": "make averages of the parameters with other widths",
    "plan": "check whether a recipe fits a machine, which need not be there",
    "status": "show where a run stands",
    "report": "write a page about one or several runs",
    "encode": "write the latents of a data set's images, by an autoencoder",
    "import": "read a checkpoint of another program",
    "export": "write a run's parameters for other programs",
}
MOVED = "data.data_dir"
"""The one field that can be changed without a recipe: the data of a run were moved."""
PATHS = ["workdir", "out", "image", "mask", "images", "reference", "save_reference", "weights", "teacher", "source"]
PATHS += ["autoguidance", "autoencoder", "statistics"]
"""Flags that are paths."""
USAGE = "python -m cmjax.main --mode=<mode> [flags], or cmjax <mode> [flags]"


@dataclass(frozen=True)
class Options:
    """The parsed command line: the mode's flags as attributes, the recipe and the run's folder."""

    mode: str
    values: absl_flags.FlagValues
    config: "ConfigDict | None"
    data_dir: str | None = None
    """The new folder of the data, where a run's record names another."""

    def __getattr__(self, name: str) -> Any:
        return self.values[name].value

    def is_set(self, name: str) -> bool:
        """Whether the command line has the flag."""
        return bool(self.values[name].present)

    @property
    def recipe(self) -> dict[str, Any]:
        """The configuration with the command line's changes. Raises: ConfigError where there is none."""
        if self.config is None:
            raise ConfigError("--config is missing: name a recipe, as --config=configs/digits_ct.py; --list shows them")
        return self.config.to_dict()

    @property
    def recipe_name(self) -> str:
        """The recipe's file name, with its variant: `cifar_ct:tiny` is cifar_ct-tiny."""
        file, variant = find_recipe(self.values["config"].value or "")
        return file.stem + (f"-{variant}" if variant else "")

    @property
    def workdir(self) -> Path:
        """The run's folder. Raises: ConfigError where its bucket does not answer."""
        workdir = self.values["workdir"].value
        if workdir is None:
            if self.config is None:
                raise ConfigError("--workdir is missing: name the run's folder, as --workdir=runs/digits_ct")
            return Path("runs") / self.recipe_name
        return _reached(workdir)

    @property
    def model(self) -> Path:
        """The run's folder, or the checkpoint in it that `--checkpoint` names."""
        step = self.values["checkpoint"].value
        if step in (None, "newest"):
            return self.workdir
        if not step.isdecimal():
            raise ConfigError(f"--checkpoint={step}: must be newest or a step, as 4000")
        return self.workdir / "checkpoints" / str(int(step))

    @property
    def workdirs(self) -> list[Path]:
        """The folders of `--workdir=a,b,c`, or the one folder of that name."""
        workdir = self.values["workdir"].value
        if workdir is None or to_path(workdir).is_dir():
            return [self.workdir]
        names = [name.strip() for name in workdir.split(",")]
        if "" in names:
            raise ConfigError(f"--workdir={workdir}: a folder's name is missing between the commas")
        return [_reached(name) for name in names]


def _reached(workdir: str) -> Path:
    """The run's folder. Raises: ConfigError where its bucket does not answer."""
    try:
        path = to_path(workdir)
        if is_bucket(path):
            ask_bucket(path)
    except MissingLibrary as error:
        raise ConfigError(f"--workdir={error}") from error
    except Exception as error:  # the libraries of buckets raise errors of many kinds
        raise ConfigError(f"--workdir={workdir} cannot be reached: {' '.join(repr(error).split())[:300]}") from error
    return path


def parse(arguments: list[str]) -> tuple[ModuleType, Options]:
    """The chosen mode's module and its options. `--help` is printed, and ends the program.

    Raises: ConfigError where a flag is wrong or not of this mode.
    """
    mode, arguments = mode_of(arguments)
    if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
        print(_help(mode))
        sys.exit(0)
    if "--list" in arguments:
        print(all_recipes())
        sys.exit(0)
    chosen = mode or "train"
    module, flags = importlib.import_module(MODES[chosen]), declared(chosen)
    arguments, changes = _changes(arguments)
    try:
        rest = flags.values([USAGE, *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(error.flagname, chosen, flags)) from error
    except absl_flags.Error as error:
        raise ConfigError(f"{_wrong_value(str(error), flags)}\n{_see(chosen)}") from error
    if rest:
        raise ConfigError(f"{' '.join(rest)}: options are written --name=value\n{_see(chosen)}")
    for name in (name for names in flags.groups.values() for name in names):
        if flags.values[name].present and flags.values[name].value in ("", [], [""]):
            raise ConfigError(f"--{name}= is empty: give it a value, or leave it out")
    for name in PATHS:
        value = flags.values[name].value if name in flags.values else None
        if value is not None:
            _check_path(name, value)
    recipe, moved = flags.values["config"].value, dict(changes).get(MOVED)
    alone = getattr(module, "WITHOUT_RECIPE", None)
    if recipe is None and alone is None:
        changes = [(name, text) for name, text in changes if name != MOVED or not moved]
    return module, Options(chosen, flags.values, _changed(recipe, changes, alone), moved)


def _check_path(name: str, value: str | list[str]) -> None:
    """Raise ConfigError, naming the flag, where its value is no path."""
    for text in (value,) if isinstance(value, str) else value:
        if problem := path_problem(text):
            raise ConfigError(f"--{name}={text if text.isprintable() else repr(text)}: {problem}")


def _changes(arguments: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Split off the arguments that change a recipe. Returns: the others, and (field, text) of each change."""
    rest, changes, arguments = [], [], list(arguments)
    while arguments:
        name, equals, value = (argument := arguments.pop(0)).partition("=")
        name = "--" + name.lstrip("-")
        if name.startswith("--noconfig."):
            changes.append((name.removeprefix("--noconfig."), "False"))
        elif not name.startswith("--config.") or not argument.startswith("-"):
            rest.append(argument)
        else:
            follows = not equals and arguments and not arguments[0].startswith("--")
            changes.append((name.removeprefix("--config."), value if equals else arguments.pop(0) if follows else None))
    return rest, changes


def _changed(recipe: str | None, changes: list[tuple[str, str | None]], alone: Any) -> "ConfigDict | None":
    """Load a recipe, or the fields that a mode reads `alone`, and apply the changes; None without either."""
    if recipe is None and (alone is None or not changes):
        if changes:
            raise ConfigError(f"--config.{changes[0][0]}: of which recipe? Name it, as --config=configs/digits_ct.py")
        return None
    config = load_fields(alone) if recipe is None else load_recipe(recipe)
    for name, text in changes:
        change(config, name, text)
    return config


def mode_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Find the mode, None where none is named. Returns: it, and the arguments, with --mode=sample for `sample`."""
    if arguments and not arguments[0].startswith("-"):
        arguments = [f"--mode={arguments[0]}", *arguments[1:]]
    named = [value for argument, value in _pairs(arguments) if argument in ("--mode", "-mode")]
    if not named:
        return None, arguments
    if named[-1] not in MODES:
        raise ConfigError(f"--mode={named[-1]}: must be one of {', '.join(MODES)}{suggestion(named[-1], MODES)}")
    return named[-1], arguments


def declared(mode: str) -> Flags:
    """Declare the flags of a mode, and those of every mode."""
    flags = Flags()
    flags.group("The run")
    flags.text("workdir", None, "The run's folder, on a disk or in a bucket (gs://…). Default: runs/<recipe's name>.")
    flags.text("config", None, "The recipe, as configs/digits_ct.py or digits_ct; --config.<field>=<value> changes it.")
    importlib.import_module(MODES[mode]).declare(flags)
    absl_flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=flags.values)
    return flags


def _pairs(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (--name, value) of arguments --name=value and --name value."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        yield name, value if equals else following


def _unknown(name: str, mode: str, flags: Flags) -> str:
    """The error of an unknown flag: the modes that have it, or a similar flag."""
    elsewhere = _flags_of_others(mode)
    name = name.removeprefix("no") if name.removeprefix("no") in elsewhere else name
    if others := elsewhere.get(name):
        return f"--{name}: only {', '.join(f'--mode={other}' for other in others)}; this is --mode={mode}\n{_see(mode)}"
    known = [flag for names in flags.groups.values() for flag in names]
    hint = suggestion(name, [*known, "mode"], prefix="--")
    return f"--{name}: --mode={mode} has no such flag{hint}\n{_see(mode)}"


def _wrong_value(message: str, flags: Flags) -> str:
    """Rewrite absl's message, "flag --num=x: …", to say which numbers are allowed."""
    written = re.match(r"flag --(\w+)=(.*?): ", message, re.DOTALL)
    parser = flags.values[written[1]].parser if written else None
    if written is None or not isinstance(parser, absl_flags.FloatParser | absl_flags.IntegerParser):
        return " ".join(message.removeprefix("flag ").split())
    what = "a whole number" if isinstance(parser, absl_flags.IntegerParser) else "a number"
    low = "" if parser.lower_bound is None else f" of at least {parser.lower_bound}"
    high = "" if parser.upper_bound is None else f"{' and' if low else ' of'} at most {parser.upper_bound}"
    return f"--{written[1]}={written[2]}: must be {what}{low}{high}"


def _flags_of_others(mode: str) -> dict[str, list[str]]:
    """Flag of another mode -> the modes that have it."""
    modes: dict[str, list[str]] = {}
    for other in MODES:
        if other != mode:
            for names in declared(other).groups.values():
                for name in names:
                    modes.setdefault(name, []).append(other)
    return modes


def _see(mode: str) -> str:
    return f"See python -m cmjax.main --mode={mode} --help"


def _help(mode: str | None) -> str:
    if mode is None:
        modes = "\n".join(f"  {name:10s}{summary}" for name, summary in SUMMARIES.items())
        more = "The flags of a mode: cmjax <mode> --help\nThe recipes:         cmjax --list"
        shown = "\n\n".join((f"usage: {USAGE}", modes, more))
        return f"cmjax: consistency models in JAX\n\n{shown}"
    module, flags = importlib.import_module(MODES[mode]), declared(mode)
    sections = [(module.__doc__ or "").strip()]
    for title, names in flags.groups.items():
        sections.append("\n".join([f"{title}:", *(_described(flags.values[name]) for name in names)]))
    return "\n\n".join(sections)


def _described(flag: absl_flags.Flag) -> str:
    default = "" if flag.default in (None, False) else f" Default: {flag.default}."
    choices = getattr(flag.parser, "enum_values", None)
    values = f" One of {', '.join(choices)}." if choices else ""
    return f"  --{flag.name}\n      {flag.help}{values}{'' if 'Default:' in (flag.help or '') else default}"
