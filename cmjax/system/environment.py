"""The environment's variables for JAX and XLA: nonsense in them is one line, and not a page as they answer it."""

import os
import re
import subprocess
import sys
from functools import lru_cache

from cmjax.system.files import problem_of_path

REFUSED = {
    "JAX_DISABLE_JIT": (r"1|t|true|on|yes|y", "whatever a run does is compiled"),
    "JAX_TRANSFER_GUARD(_.*)?": (r"disallow(_explicit)?", "batches go to the devices as they are made"),
}
"""Variables (a pattern), the values under which nothing here can run, and why."""


def check_environment() -> None:
    """Raise ValueError, naming the variable, where one holds what JAX or XLA does not take. No device is started."""
    names = [name for name in os.environ if name.startswith("JAX_")]
    if names:
        _check_jax(names)
    for pattern, (values, why) in REFUSED.items():
        for name in names:
            if re.fullmatch(pattern, name) and re.fullmatch(values, os.environ[name].lower()):
                raise ValueError(f"{name}={os.environ[name]}: {why}; leave the variable out")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if problem := problem_of_path(cache):
        raise ValueError(f"JAX_COMPILATION_CACHE_DIR={cache}: {problem}")
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and (complaint := _complaint_of_xla(flags)):
        raise ValueError(f"XLA_FLAGS={flags}: {complaint}")


def _check_jax(names: list[str]) -> None:
    """Import JAX, which reads its variables then."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        problem = str(error)
        name = next((name for name in names if re.search(rf"\b{name}\b", problem, re.IGNORECASE)), None)
        if name is None:
            raise
        kind = "must be true or false" if "truth value" in problem else "JAX knows no such value of it"
        raise ValueError(f"{name}={os.environ[name]}: {kind}; leave the variable out for JAX's own") from error


@lru_cache
def _complaint_of_xla(flags: str) -> str | None:
    """What XLA says against XLA_FLAGS, None where it takes them. It ends the process that asks: another one does."""
    ask = "from jaxlib import xla_client; xla_client.CompileOptions()"  # reads the flags
    answer = subprocess.run([sys.executable, "-c", ask], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    if not answer.returncode:
        return None
    said = answer.stderr.decode(errors="replace").splitlines()
    lines = [line.partition("] ")[2] for line in said if re.match(r"[EF]\d{4} ", line)]
    return next(filter(None, lines), "XLA does not take them")


def no_device(error: Exception | None = None) -> str | None:
    """Why no device can be used; None where one can. It starts them. error: what JAX raised, which it does once."""
    import jax

    try:
        if error is not None and str(error).startswith("Unable to initialize backend"):
            raise error
        jax.devices()
    except Exception as raised:  # RuntimeError, and AssertionError where there is no plugin of that name
        why = " ".join(str(raised).split()).partition(" (set JAX_PLATFORMS")[0].partition(" (you may need")[0]
        asked = os.environ.get("JAX_PLATFORMS")
        named = f"JAX_PLATFORMS={asked}: there is no such device here, or" if asked else "no device can be used:"
        return (
            f"{named} JAX cannot reach it{f' ({why})' if why else ''}; JAX_PLATFORMS=cpu uses the processor, and GPUs "
            "and TPUs need pip install 'cmjax[cuda12]' or 'cmjax[tpu]'"
        )
    return None
