"""The program in the tests' own process: it starts in no time, and has compiled most of what it needs."""

from cmjax.command_line import parse


def do(*arguments):
    """Do what the command line says."""
    module, options = parse(arguments)
    module.start(options)
