"""Parses the command line: the mode, its flags, and changes of the recipe. A mode is imported when it is chosen."""

import importlib
import re
import sys
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError, suggestion
from cmjax.config.recipes import change, load_recipe, recipes_text
from cmjax.system.files import is_address, path_problem

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MODES = {
    "train": "train a recipe, or resume a run (the default)",
    "sample": "sample images from a run",
    "edit": "edit an image: inpainting, colorization, super-resolution and more",
    "gallery": "show samples, edits and interpolations of a model on one sheet",
    "evaluate": "compute FID and other metrics of a run's samples, or of any images",
    "diagnose": "measure consistency errors, losses by noise level, and metrics by the second time",
    "average": "make averages of the parameters with other widths",
    "plan": "check whether a recipe fits a machine, which need not be there",
    "recipe": "print a recipe, to be edited",
    "status": "show where a run stands",
    "report": "write a page about one or several runs",
    "encode": "write the latents of a data set's images, by an autoencoder",
    "import": "read a checkpoint of another program",
    "export": "write a run's parameters for other programs",
}
"""Mode -> what it does. Its module declares flags, `declare(flags)`, and runs, `start(options)`."""
MOVED = "data.data_dir"  # the one field that can be changed without a recipe: the data of a run were moved
PATHS = {"workdir", "out", "image", "mask", "images", "reference", "save_reference", "weights", "teacher", "source"}
PATHS |= {"autoguidance", "autoencoder", "statistics", "prompts", "lora"}
"""Flags that are paths."""
USAGE = "python -m cmjax.main --mode=<mode> [flags], or cmjax <mode> [flags]"


def module_of(mode: str) -> ModuleType:
    """Imports the module of a mode, which has the mode's name where Python allows it."""
    name = {"import": "importing", "export": "exporting"}.get(mode, mode)
    return importlib.import_module(f"cmjax.cli.{name}")


def parse(arguments: list[str]) -> tuple[ModuleType, Options]:
    """Finds the chosen mode's module and its options. `--help` is printed, and ends the program.

    Raises: ConfigError where a flag is wrong or not of this mode.
    """
    mode, arguments = mode_of(arguments)
    if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
        print(_help(mode))
        sys.exit(0)
    if "--list" in arguments:
        print(recipes_text())
        sys.exit(0)
    chosen = mode or "train"
    module, flags = module_of(chosen), declared(chosen)
    arguments, changes = _changes(arguments)
    arguments = [_spelled(argument, flags) for argument in arguments]
    try:
        # absl takes the first argument for the program's name
        rest = flags.values([USAGE, *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(error.flagname, chosen, flags)) from error
    except absl_flags.Error as error:
        raise ConfigError(f"{_wrong_value(str(error), flags)}\n{_see(chosen)}") from error
    if rest:
        raise ConfigError(f"{' '.join(rest)}: options are written --name=value\n{_see(chosen)}")
    for name in flags.names:
        if flags.values[name].present and flags.values[name].value in ("", [], [""]):
            raise ConfigError(f"--{name}= is empty: give it a value, or leave it out")
    for name in filter(PATHS.__contains__, flags.names):
        value = flags.values[name].value
        for text in (value,) if isinstance(value, str) else value or ():
            if not (name in ("workdir", "source") and is_address(text)) and (problem := path_problem(text)):
                raise ConfigError(f"--{name}={text if text.isprintable() else repr(text)}: {problem}")
    # A mode that reads a run's record takes one change without a recipe: where the data are now.
    recipe, moved = flags.values["config"].value, dict(changes).get(MOVED)
    alone = getattr(module, "WITHOUT_RECIPE", None)
    if recipe is None and alone is None:
        changes = [(name, text) for name, text in changes if name != MOVED or not moved]
    return module, Options(chosen, flags, _changed(recipe, changes, alone), moved)


def _spelled(argument: str, flags: Flags) -> str:
    """Spells a flag as it is declared: --lora-scale is --lora_scale, and --negative_prompt is --negative-prompt."""
    name, equals, value = argument.partition("=")
    bare = name.lstrip("-")
    others = [other for other in (bare.replace("-", "_"), bare.replace("_", "-")) if other in flags.values]
    if not name.startswith("-") or bare in flags.values or not others:
        return argument
    return f"--{others[0]}{equals}{value}"


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
            # as with absl's flags, the value may be the next argument
            follows = not equals and arguments and not arguments[0].startswith("--")
            changes.append((name.removeprefix("--config."), value if equals else arguments.pop(0) if follows else None))
    return rest, changes


def _changed(recipe: str | None, changes: list[tuple[str, str | None]], alone: Any) -> "ConfigDict | None":
    """Load a recipe, or the fields that a mode reads `alone`, and apply the changes; None without either."""
    if recipe is None and (alone is None or not changes):
        if changes:
            raise ConfigError(f"--config.{changes[0][0]}: of which recipe? Name it, as --config=configs/digits_ct.py")
        return None
    from ml_collections import ConfigDict  # not above: it takes as long to import as all else that --help needs

    config = ConfigDict(alone) if recipe is None else load_recipe(recipe)
    for name, text in changes:
        change(config, name, text)
    return config


def mode_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Find the mode, None where none is named. Returns: it, and the arguments, with --mode=sample for `sample`."""
    if arguments and not arguments[0].startswith("-"):
        arguments = [f"--mode={arguments[0]}", *arguments[1:]]
        if arguments[0] == "--mode=recipe" and len(arguments) > 1 and not arguments[1].startswith("-"):
            arguments[1] = f"--config={arguments[1]}"  # cmjax recipe digits_ct
    mode = None
    for argument, following in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name in ("--mode", "-mode"):
            mode = value if equals else following  # the last one counts, as with every flag
    if mode is not None and mode not in MODES:
        raise ConfigError(f"--mode={mode}: must be one of {', '.join(MODES)}{suggestion(mode, MODES)}")
    return mode, arguments


def declared(mode: str) -> Flags:
    """Declare the flags of a mode, and those of every mode."""
    flags = Flags()
    flags.group("The run")
    flags.text("workdir", None, "The run's folder, on a disk or in a bucket (gs://…). Default: runs/<recipe's name>.")
    flags.text("config", None, "The recipe, as configs/digits_ct.py or digits_ct; --config.<field>=<value> changes it.")
    module_of(mode).declare(flags)
    absl_flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=flags.values)
    return flags


def _unknown(name: str, mode: str, flags: Flags) -> str:
    """Makes the error of an unknown flag: it names the modes that have it, or a similar flag."""
    # --noclip is the flag clip
    for flag in (name.removeprefix("no"), name):
        if others := [f"--mode={other}" for other in MODES if other != mode and flag in declared(other).names]:
            return f"--{flag}: only {', '.join(others)}; this is --mode={mode}\n{_see(mode)}"
    hint = suggestion(name, [*flags.names, "mode"], prefix="--")
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


def _see(mode: str) -> str:
    return f"See python -m cmjax.main --mode={mode} --help"


def _help(mode: str | None) -> str:
    if mode is None:
        modes = "\n".join(f"  {name:10s}{summary}" for name, summary in MODES.items())
        more = "The flags of a mode: cmjax <mode> --help\nThe recipes:         cmjax --list"
        return "\n\n".join(("cmjax: consistency models in JAX", f"usage: {USAGE}", modes, more))
    flags, sections = declared(mode), [(module_of(mode).__doc__ or "").strip()]
    for title, names in flags.groups.items():
        lines = [f"{title}:"]
        for flag in (flags.values[name] for name in names):
            choices = getattr(flag.parser, "enum_values", None)
            help = flag.help + (f" One of {', '.join(choices)}." if choices else "")
            shown = flag.default not in (None, False) and "Default:" not in flag.help
            lines.append(f"  --{flag.name}\n      {help}" + (f" Default: {flag.default}." if shown else ""))
        sections.append("\n".join(lines))
    return "\n\n".join(sections)
