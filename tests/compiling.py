"""How the tests compile: more than twice as fast, since what they run is small."""

from importlib.metadata import version

QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    if version("jaxlib").startswith("0.10.")  # XLA aborts on flags that it does not know
    else ""
)

AS_A_USER = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True} if QUICK else {}
"""`compiler_options` of `jax.jit` that take it back."""


def on_devices(count):
    """XLA_FLAGS of a process with so many CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {QUICK}"
