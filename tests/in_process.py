"""The program in the tests' own process: it starts in no time, and has compiled most of what it needs."""

import warnings

from cmjax.cli.command_line import parse


def do(*arguments):
    """Do what the command line says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module")  # of ml_collections, which reads the recipes
        module, options = parse(arguments)
    module.start(options)
