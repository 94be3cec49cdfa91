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
    name = options.declared.values["config"].value
    if name is None:
        raise ConfigError("which recipe? Name it, as cmjax recipe digits_ct; cmjax --list shows them")
    print(run(name), end="")


def run(name: str) -> str:
    """Gives the text of the recipe `name`, as in its file.

    Raises: ConfigError where there is no such recipe.
    """
    file, _ = find_recipe(name)
    return file.read_text()
