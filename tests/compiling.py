"""How XLA compiles in the tests: in less than half the time, for programs that are small and run a few times."""

import contextlib
from functools import partial
from importlib.metadata import version

QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    if version("jaxlib").startswith("0.10.")  # XLA aborts on flags that it does not know
    else ""
)
"""XLA_FLAGS that leave out LLVM's optimizations and the fusions' newer, slower emitters."""
AS_A_USER = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True} if QUICK else {}
"""The `compiler_options` of `jax.jit` that set XLA's defaults again."""


@contextlib.contextmanager
def as_a_user():
    """What jax.jit makes is compiled with XLA's own choices, for programs that must agree to the last bit."""
    import jax  # which reads XLA_FLAGS

    jit = jax.jit
    jax.jit = partial(jit, compiler_options=AS_A_USER)
    try:
        yield
    finally:
        jax.jit = jit


def on_devices(count):
    """XLA_FLAGS of a process with so many CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {QUICK}"
