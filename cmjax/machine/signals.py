"""SIGTERM and Ctrl-C: noted while a run can save its state, and obeyed at once at any other moment.

A thread listens, so that a signal is heard while the main thread compiles or waits for a device.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT)

Leave = Callable[[int, bool], None]
"""(signal number, whether it is the second): ends the process."""


class _Listener:
    """Owns both signals from its making until `close`."""

    def __init__(self, leave: Leave):
        self.leave = leave
        self.holding = False
        self.noted: int = 0
        self._ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth = mouth
        # a handler of Python's own must exist; what it would do, the thread does
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in NUMBERS}
        self._wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True, name="signals")
        self._thread.start()

    def _listen(self) -> None:
        while heard := self._ear.recv(1):
            number = heard[0]
            if number not in NUMBERS:
                continue
            if self.holding and not self.noted:
                self.noted = number
            else:
                self.leave(number, bool(self.noted))

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._mouth.close()
        self._thread.join()
        self._ear.close()


_listener: _Listener | None = None


def leave_on_signals(leave: Leave) -> None:
    """From now on SIGTERM and Ctrl-C call `leave` in a thread, at any moment but within `stop_requests`."""
    global _listener
    if _listener is None:
        _listener = _Listener(leave)
    _listener.leave = leave


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Within, the first SIGTERM or Ctrl-C is noted, and a second leaves at once.

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
        listener.holding = False
        if own is not None:
            own.close()


def _leave_unsaved(number: int, _second: bool) -> None:
    print(f"left at once by a second {signal.Signals(number).name}; what was not saved is lost", file=sys.stderr)
    sys.stderr.flush()
    os._exit(128 + number)
