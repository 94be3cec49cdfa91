"""JAX's and XLA's variables, the platform that code is traced for, and the loggers of libraries."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

from cmjax.system.errors import UserError
from cmjax.system.files import path_problem
from cmjax.system.libraries import version_of


class EnvironmentVariableError(UserError, ValueError):
    """A variable of the environment has a value that cannot be used."""


REFUSED = {
    "JAX_DISABLE_JIT": (r"1|t|true|on|yes|y", "whatever a run does is compiled"),
    "JAX_TRANSFER_GUARD(_.*)?": (r"disallow(_explicit)?", "batches go to the devices as they are made"),
}
"""Pattern of a variable -> the pattern of values with which cmjax cannot run, and why."""


def check_environment() -> None:
    """Raise EnvironmentVariableError, naming the variable, where JAX or XLA does not accept its value."""
    names = [name for name in os.environ if name.startswith("JAX_")]
    try:
        if names:
            import jax  # noqa: F401  # it reads its variables then
    except ValueError as error:
        problem = str(error)
        name = next((name for name in names if re.search(rf"\b{name}\b", problem, re.IGNORECASE)), None)
        if name is None:
            raise
        kind = "must be true or false" if "truth value" in problem else "JAX knows no such value of it"
        message = f"{name}={os.environ[name]}: {kind}; leave the variable out for JAX's own"
        raise EnvironmentVariableError(message) from error
    for pattern, (values, why) in REFUSED.items():
        for name in names:
            if re.fullmatch(pattern, name) and re.fullmatch(values, os.environ[name].lower()):
                raise EnvironmentVariableError(f"{name}={os.environ[name]}: {why}; leave the variable out")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if problem := path_problem(cache):
        raise EnvironmentVariableError(f"JAX_COMPILATION_CACHE_DIR={cache}: {problem}")
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and (complaint := _complaint_of_xla(flags)):
        raise EnvironmentVariableError(f"XLA_FLAGS={flags}: {complaint}")


@lru_cache
def _complaint_of_xla(flags: str) -> str | None:
    """XLA's complaint about XLA_FLAGS; None where it accepts them. XLA aborts on bad flags, so a subprocess asks."""
    # XLA reads the flags then, and no device is started
    ask = "from jaxlib import xla_client; xla_client.CompileOptions()"
    answer = subprocess.run([sys.executable, "-c", ask], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    if not answer.returncode:
        return None
    errors = answer.stderr.decode(errors="replace").splitlines()
    # a line of XLA's log begins with a letter and the date, and its message stands behind a bracket
    lines = [line.partition("] ")[2] for line in errors if re.match(r"[EF]\d{4} ", line)]
    return next(filter(None, lines), "XLA does not take them")


def no_device(error: Exception | None = None) -> str | None:
    """Explain why no device can be used; None where one can. Starts the devices.

    error: what JAX raised before; it raises the reason only once.
    """
    import jax

    try:
        if error is not None and str(error).startswith("Unable to initialize backend"):
            raise error
        jax.devices()
    except Exception as raised:  # RuntimeError, and AssertionError where there is no plugin of that name
        # JAX's own advice is cut off; ours follows
        why = " ".join(str(raised).split()).partition(" (set JAX_PLATFORMS")[0].partition(" (you may need")[0]
        asked = os.environ.get("JAX_PLATFORMS")
        named = f"JAX_PLATFORMS={asked}: there is no such device here, or" if asked else "no device can be used:"
        return (
            f"{named} JAX cannot reach it{f' ({why})' if why else ''}; JAX_PLATFORMS=cpu uses the processor, and GPUs "
            "and TPUs need pip install 'cmjax[cuda12]' or 'cmjax[tpu]'"
        )
    return None


FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
SLOW_CONVOLUTIONS = ("0.10.",)
"""Versions of jaxlib whose YNNPACK convolutions were measured to use one core where channels are few."""


def prefer_fast_convolutions() -> None:
    """Set XLA_FLAGS so that a CPU uses XLA's own kernels for convolutions and matrix products. Call it before JAX runs
    anything.

    On two cores small U-Nets then train a quarter faster and sample half again as fast. Changes nothing where the user
    sets this flag or a file of flags, where an accelerator's plugin is installed, and for a jaxlib that may not know
    the flag: XLA aborts on unknown flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    accelerated = any(find_spec(name) for name in ("jax_plugins", "libtpu"))
    # XLA_FLAGS may name a file of flags instead
    of_a_file = flags.strip() and not flags.strip().startswith("-")
    if FUSIONS in flags or of_a_file or accelerated:
        return
    if (version_of("jaxlib") or "").startswith(SLOW_CONVOLUTIONS):
        os.environ["XLA_FLAGS"] = f"{flags} {FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE".strip()


_planned: ContextVar[str | None] = ContextVar("planned", default=None)


def platform() -> str:
    """Gives the platform that traced code will run on: "cpu", "gpu" or "tpu". It is that of the devices here, unless
    code is traced for another machine."""
    import jax

    return _planned.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Sets `platform()` to `name` in the block. Enter it before tracing: JAX does not trace a function twice."""
    token = _planned.set(name)
    try:
        yield
    finally:
        _planned.reset(token)


LEVELS = {
    **dict.fromkeys(("jax", "orbax", "gcsfs", "fsspec", "huggingface_hub", "httpx"), logging.ERROR),
    # Orbax logs a page for each failed save
    **dict.fromkeys(("absl", "asyncio"), logging.CRITICAL),
}


def quiet_libraries() -> None:
    """Silence libraries below errors, and the errors that the checkpointer reports itself."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    sys.unraisablehook = _report_unless_known


def _report_unless_known(unraisable: "sys.UnraisableHookArgs") -> None:
    """Drop a harmless error: TensorStore still runs for a moment after Orbax gave up a write."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
