"""Errors that the program reports in one line."""


class UserError(Exception):
    """An error of the command, the configuration, the data or the machine: its message is all that the user needs."""


class OtherProcessError(RuntimeError):
    """An action that one process did for all of them failed there; the message is its error's."""
