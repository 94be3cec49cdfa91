"""The program: `python -m cmjax.main --config=configs/digits_ct.py`, or `cmjax sample --workdir=runs/digits_ct`.

Modules are imported where they are used: `--help` and `--mode=status` answer without jax.
"""

import gc
import logging
import os
import signal
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from cmjax.system.errors import OtherProcessError, UserError
from cmjax.system.signals import Stopped, exit_on_signals, print_last, restore_signals

if TYPE_CHECKING:
    from cmjax.cli.flags import Options

ONE_PROCESS = ("plan", "average", "import", "export")  # modes that run in one process


def main() -> None:
    """Run the mode that the command line names; exit with one line where that is not possible."""
    exit_on_signals(partial(_exit_now, None))  # before the imports, which take a second
    try:
        from cmjax.cli.command_line import parse
        from cmjax.system.environment import check_environment

        _set_up_process()
        check_environment()
        gc.disable()  # what is imported stays to the end, and looking for garbage in it takes a quarter of a second
        module, options = parse(sys.argv[1:])
        gc.freeze()
        gc.enable()
        exit_on_signals(partial(_exit_now, options))
        _run(module, options)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # of `cmjax … | head`
        # Python flushes standard output once more when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    finally:
        gc.enable()
        restore_signals()  # of the program that called it


def _set_up_process() -> None:
    """Set up logging, and the flags of XLA."""
    from cmjax.system.environment import prefer_fast_convolutions, quiet_libraries

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    quiet_libraries()
    prefer_fast_convolutions()


def _run(module: ModuleType, options: "Options") -> None:
    try:
        if options.mode not in ("status", "report", "recipe"):  # they only read files, and wait for no other process
            _join(options.mode)
        module.start(options)
    except UserError as error:
        _end(1, f"error: {error}")
    except OtherProcessError:
        _end(1, None)  # the first process prints the reason
    except Stopped as stopped:
        print_last(str(stopped))
        sys.exit(_code(options, stopped.number))
    except BrokenPipeError:
        raise
    except Exception as error:
        import traceback

        from cmjax.system.environment import no_device
        from cmjax.system.libraries import how_to_install
        from cmjax.system.memory import out_of_memory

        # A fault of the machine or the installation is one line; a fault of the program is its traceback.
        library = error.name if isinstance(error, ModuleNotFoundError) else None
        if library and not library.startswith("cmjax"):
            problem = f"{library} is not installed: {how_to_install(library)}"
        else:
            problem = out_of_memory(error) or no_device(error)
        _end(1, traceback.format_exc() if problem is None else f"error: {problem}")


def _join(mode: str) -> None:
    """Join the other processes of the job, before anything uses a device."""
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
        logging.getLogger("cmjax").setLevel(logging.WARNING)  # the first one logs for all
    if mode in ONE_PROCESS and jax.process_count() > 1:
        raise ConfigError(f"--mode={mode}: it runs in one process, and there are {jax.process_count()}")


def _end(code: int, message: str | None) -> NoReturn:
    """Print the message and exit; one of several processes does not wait for the others, which may wait for it."""
    # Without jax there is one process, and importing it here would take a second.
    if "jax" in sys.modules:
        import jax

        from cmjax.system.environment import no_device
        from cmjax.system.processes import leave_at_once

        if jax.distributed.is_initialized() and not no_device() and jax.process_count() > 1:
            if message:
                print(f"process {jax.process_index()}: {message}", file=sys.stderr)
            leave_at_once(code)
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def _code(options: "Options", number: int) -> int:
    """The exit code after a signal: of a training that a scheduler stops, the one that the user chose."""
    return options.stopped_exit_code if options.mode == "train" and number != signal.SIGINT else 128 + number


def _exit_now(options: "Options | None", number: int, second: bool) -> None:
    """Exit at once by a signal: nothing was computed since the last save, or it is the second signal."""
    name, code = signal.Signals(number).name, 128 + number
    if second:
        message = f"left at once by a second {name}; what was not saved is lost"
    elif options is None:
        message = f"stopped by {name}; nothing was begun"
    else:
        goes_on = "starts again" if options.mode == "train" else "goes on with what is missing"
        message, code = f"stopped by {name}; the same command {goes_on}", _code(options, number)
    print_last(message)
    if "cmjax.system.lock" in sys.modules:
        sys.modules["cmjax.system.lock"].release_all()
    os._exit(code)


if __name__ == "__main__":
    main()
