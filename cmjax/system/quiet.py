"""What libraries say on a terminal: nothing that cmjax says better itself."""

import logging
import sys

LEVELS = {
    **dict.fromkeys(("jax", "orbax", "gcsfs", "fsspec"), logging.ERROR),
    **dict.fromkeys(("absl", "asyncio"), logging.CRITICAL),  # a page for each failed save
}


def quiet_libraries() -> None:
    """Let libraries speak of errors alone, and not of those that the checkpointer reports."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    sys.unraisablehook = _say_unless_known


def _say_unless_known(unraisable: "sys.UnraisableHookArgs") -> None:
    """TensorStore goes on for a moment where Orbax has given up a write, and misses its loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
