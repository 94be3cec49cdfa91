"""The program: `python -m cmjax.main --config=configs/digits_ct.py`, or `cmjax sample --workdir=runs/digits_ct`."""

import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from cmjax.system.signals import leave_on_signals, restore_signals, say_last

if TYPE_CHECKING:
    from cmjax.cli.command_line import Options

ALONE = ("plan", "average", "import", "export")
"""Modes that one process does in a moment."""


def main() -> None:
    """Do what the command line says, and end with one line where it cannot be done."""
    leave_on_signals(partial(_leave, None))  # before the imports, which take a second
    try:
        _main()
    finally:
        restore_signals()  # of the program that called it


def _main() -> None:
    from cmjax.cli.command_line import parse
    from cmjax.config.fields import ConfigError

    _set_up_process()
    try:
        _check_environment()
        module, options = parse(sys.argv[1:])
        leave_on_signals(partial(_leave, options))
        _do(module, options)
        sys.stdout.flush()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # of `cmjax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _check_environment() -> None:
    from cmjax.config.fields import ConfigError
    from cmjax.system.environment import check_environment

    try:
        check_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _set_up_process() -> None:
    """What is said, and where, and how XLA compiles."""
    from cmjax.system.environment import prefer_fast_convolutions, quiet_libraries

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    quiet_libraries()
    prefer_fast_convolutions()


def _do(module, options: "Options") -> None:
    from cmjax.config.fields import ConfigError
    from cmjax.data.base import DataError
    from cmjax.system.files import PathError
    from cmjax.system.libraries import MissingLibrary
    from cmjax.system.processes import OtherProcessError
    from cmjax.training.loop import NonFiniteLoss, Stopped
    from cmjax.training.newest import CheckpointError

    try:
        if options.mode not in ("status", "report"):  # files are all they need: they wait for no other process
            _join(options.mode)
        module.start(options)
    except (ConfigError, DataError, CheckpointError, NonFiniteLoss, MissingLibrary, PathError) as error:
        _end(1, f"error: {error}")
    except OtherProcessError:
        _end(1, None)  # the first process says what it was
    except Stopped as stopped:
        say_last(str(stopped))
        sys.exit(_code(options, stopped.number))
    except BrokenPipeError:
        raise
    except Exception as error:
        import traceback

        problem = _known_problem(error)
        _end(1, traceback.format_exc() if problem is None else f"error: {problem}")


def _known_problem(error: Exception) -> str | None:
    """What to say of an error of the machine or the installation; None of one that is the program's own."""
    from cmjax.system.environment import no_device
    from cmjax.system.libraries import how_to_install
    from cmjax.system.memory import out_of_memory

    library = error.name if isinstance(error, ModuleNotFoundError) else None
    if library and not library.startswith("cmjax"):
        return f"{library} is not installed: {how_to_install(library)}"
    return out_of_memory(error) or no_device(error)


def _join(mode: str) -> None:
    """Join the other processes of the job: the first thing that a mode does."""
    import jax

    from cmjax.config.fields import ConfigError
    from cmjax.system.processes import join_processes

    try:
        join_processes()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not jax.distributed.is_initialized():
        return
    if jax.process_index() > 0:
        logging.getLogger("cmjax").setLevel(logging.WARNING)  # one process speaks for all
    if mode in ALONE and jax.process_count() > 1:
        raise ConfigError(f"--mode={mode}: it runs in one process, and there are {jax.process_count()}")


def _end(code: int, message: str | None) -> NoReturn:
    """Say why, and end; one of several processes does not wait for the others, which may be waiting for it."""
    import jax

    from cmjax.system.environment import no_device
    from cmjax.system.processes import leave_at_once

    several = jax.distributed.is_initialized() and not no_device() and jax.process_count() > 1
    if message:
        print(f"process {jax.process_index()}: {message}" if several else message, file=sys.stderr)
    if several:
        leave_at_once(code)
    sys.exit(code)


def _code(options: "Options", number: int) -> int:
    """The exit code of a program that a signal ended: of a training that a scheduler stops, the user's own."""
    return options.stopped_exit_code if options.mode == "train" and number != signal.SIGINT else 128 + number


def _leave(options: "Options | None", number: int, second: bool) -> None:
    """End at once by a signal: nothing has been computed since the last save, or the user asked twice."""
    name, code = signal.Signals(number).name, 128 + number
    if second:
        message = f"left at once by a second {name}; what was not saved is lost"
    elif options is None:
        message = f"stopped by {name}; nothing was begun"
    else:
        goes_on = "starts again" if options.mode == "train" else "goes on with what is missing"
        message, code = f"stopped by {name}; the same command {goes_on}", _code(options, number)
    say_last(message)
    if "cmjax.system.lock" in sys.modules:
        sys.modules["cmjax.system.lock"].release_all()
    os._exit(code)


if __name__ == "__main__":
    main()
