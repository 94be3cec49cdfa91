"""Signals that end a run: while it trains they ask it to save and stop; at any other moment they end it at once.

A thread receives them, so that they work while the main thread compiles or waits for a device.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator

NUMBERS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""Sent by schedulers before a job ends, by a closed terminal, and by Ctrl-C."""

ExitNow = Callable[[int, bool], None]
"""(signal number, whether it is the second): ends the process."""


class Stopped(Exception):
    """The signal `number` stopped the run, which saved its state at `step`."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step}, saved and not finished; the same command goes on from there")
        self.step, self.number = step, number


class _Listener:
    """Handles the signals until `close`. A signal that was ignored, as SIGHUP under nohup, stays ignored. SIGINT does
    not: shells ignore it for background jobs."""

    def __init__(self, exit_now: ExitNow):
        self.exit_now, self.holding, self.noted = exit_now, False, 0
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)  # `set_wakeup_fd` refuses one that blocks
        # Python wakes the thread up only for signals that have a handler
        heard = [n for n in NUMBERS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
        self._wakeup = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True, name="signals")
        self._thread.start()

    def _listen(self) -> None:
        # Python writes a byte for each signal: its number
        while heard := self._ear.recv(1):
            number = heard[0]
            if number not in self._handlers:
                continue
            if number == signal.SIGHUP:
                _forget_closed_terminals()
            if self.holding and not (self.noted and is_urgent(number, self.noted)):
                self.noted = number
            else:
                self.exit_now(number, bool(self.noted))

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            # None: of a handler that Python did not set, and cannot set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        # the thread then reads an end
        self._mouth.close()
        self._thread.join()
        self._ear.close()


def is_urgent(number: int, noted: int) -> bool:
    """Says whether a signal that follows another must end the process at once: Ctrl-C, or a second SIGTERM.

    Schedulers send other signals before SIGTERM, and some of them twice.
    """
    return number == signal.SIGINT or (number == signal.SIGTERM and noted in (signal.SIGTERM, signal.SIGINT))


_listener: _Listener | None = None


def exit_on_signals(exit_now: ExitNow) -> None:
    """Until `restore_signals`, let the signals of `NUMBERS` call `exit_now` in a thread, except within `stop_requests`.
    Does nothing outside of the main thread, which alone can handle signals."""
    global _listener
    if _listener is None:
        if threading.current_thread() is not threading.main_thread():
            return
        _listener = _Listener(exit_now)
    _listener.exit_now = exit_now


def restore_signals() -> None:
    """Restore the handlers from before `exit_on_signals`."""
    global _listener
    if _listener is not None:
        _listener.close()
        _listener = None


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Notes the first signal of `NUMBERS` while the block runs; one that `is_urgent` ends the process.

    Returns: a function that returns the number of the noted signal, 0 for none.
    """
    listener, temporary = _listener, None
    if listener is None and threading.current_thread() is threading.main_thread():
        listener = temporary = _Listener(_exit_unsaved)
    # another thread of somebody's program, whose main thread owns the signals
    if listener is None:
        yield lambda: 0
        return
    listener.noted, listener.holding = 0, True
    try:
        yield lambda: listener.noted
    finally:
        listener.noted, listener.holding = 0, False
        if temporary is not None:
            temporary.close()


def _exit_unsaved(number: int, _second: bool) -> None:
    print_last(f"left at once by a second {signal.Signals(number).name}; what was not saved is lost")
    # the status that shells give a process which a signal ended
    os._exit(128 + number)


def _forget_closed_terminals() -> None:
    """Redirect output from a closed terminal to nowhere, since writing to it is an error."""
    for number in (1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def print_last(text: str) -> None:
    """Print to standard error, unless the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
