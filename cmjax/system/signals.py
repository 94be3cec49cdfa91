"""Signals that end a run: noted while it can save its state, and obeyed at once at any other moment.

A thread listens, so that a signal is heard while the main thread compiles or waits for a device.
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
"""What schedulers send before a job ends, what a closed terminal sends, and Ctrl-C."""

Leave = Callable[[int, bool], None]
"""(signal number, whether it is the second): ends the process."""


class _Listener:
    """Owns the signals from its making until `close`. One that was ignored, as SIGHUP is by nohup, stays so; but for
    SIGINT, which a shell ignores for whatever it starts in the background."""

    def __init__(self, leave: Leave):
        self.leave = leave
        self.holding = False
        self.noted: int = 0
        self._ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth = mouth
        # a handler of Python's own must exist; what it would do, the thread does
        heard = [n for n in NUMBERS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
        self._wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True, name="signals")
        self._thread.start()

    def _listen(self) -> None:
        while heard := self._ear.recv(1):
            number = heard[0]
            if number not in self._handlers:
                continue
            if number == signal.SIGHUP:
                _leave_closed_terminals()
            if self.holding and not (self.noted and insists(number, self.noted)):
                self.noted = number
            else:
                self.leave(number, bool(self.noted))

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python
        self._mouth.close()
        self._thread.join()
        self._ear.close()


def insists(number: int, noted: int) -> bool:
    """Whether a signal after another asks to leave at once: Ctrl-C, or a second SIGTERM. Schedulers send others before
    SIGTERM, and some of them twice."""
    return number == signal.SIGINT or (number == signal.SIGTERM and noted in (signal.SIGTERM, signal.SIGINT))


_listener: _Listener | None = None


def leave_on_signals(leave: Leave) -> None:
    """From now until `restore_signals`, those of `NUMBERS` call `leave` in a thread, at any moment but within
    `stop_requests`. In a thread of somebody's program, whose main thread owns the signals, nothing changes."""
    global _listener
    if _listener is None:
        if threading.current_thread() is not threading.main_thread():
            return
        _listener = _Listener(leave)
    _listener.leave = leave


def restore_signals() -> None:
    """Give the signals back to those who had them before `leave_on_signals`."""
    global _listener
    if _listener is not None:
        _listener.close()
        _listener = None


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Within, the first signal of `NUMBERS` is noted, and one that `insists` leaves at once.

    Returns: a function that tells the number of the signal that was noted, and 0 before.
    """
    listener, own = _listener, None
    if listener is None and threading.current_thread() is threading.main_thread():
        listener = own = _Listener(_leave_unsaved)
    if listener is None:  # another thread of somebody's program, whose main thread owns the signals
        yield lambda: 0
        return
    listener.noted, listener.holding = 0, True
    try:
        yield lambda: listener.noted
    finally:
        listener.noted, listener.holding = 0, False
        if own is not None:
            own.close()


def _leave_unsaved(number: int, _second: bool) -> None:
    say_last(f"left at once by a second {signal.Signals(number).name}; what was not saved is lost")
    os._exit(128 + number)


def _leave_closed_terminals() -> None:
    """Send what is still said to nowhere, for writing to a terminal that was closed is an error."""
    for number in (1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def say_last(text: str) -> None:
    """Print it to standard error, unless the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
