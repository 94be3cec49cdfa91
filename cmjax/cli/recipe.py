"""`--mode=recipe`: print a recipe, to be edited.

cmjax recipe digits_ct > mine.py
cmjax train --config=mine.py
"""

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import find_recipe


def declare(flags: Flags) -> None:
    """A recipe has no flags: `--config` names it."""


def start(options: Options) -> None:
    if not options.is_set("config"):
        raise ConfigError("which recipe? Name it, as cmjax recipe digits_ct; cmjax --list shows them")
    print(run(options.declared.values["config"].value), end="")


def run(name: str) -> str:
    """The text of the recipe `name`, as its file has it.

    Raises: ConfigError where there is no such recipe.
    """
    file, _ = find_recipe(name)
    return file.read_text()
