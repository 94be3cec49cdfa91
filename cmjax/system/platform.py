"""The platform that code is traced for: that of the devices here, unless another machine is being planned."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_planned: ContextVar[str | None] = ContextVar("planned", default=None)


def platform() -> str:
    """What the traced code is to run on: "cpu", "gpu" or "tpu"."""
    return _planned.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Within, `platform()` is `name`. What was traced before is not traced again: enter it first."""
    token = _planned.set(name)
    try:
        yield
    finally:
        _planned.reset(token)
