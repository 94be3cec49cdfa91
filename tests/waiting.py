"""Waiting for what another process does."""

import time


def wait_for(happened, process, *, timeout_s=120, every_s=0.005):
    """Return when `happened()`; fail with what the process said where it ends before, or the time is up."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(every_s)
