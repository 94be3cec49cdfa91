"""The free memory of devices and the host, and messages for where it is too small."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Any

from cmjax.system.chips import GIB

CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Files with a container's limit and its use, of cgroup versions 2 and 1."""
FOR_PARAMETERS = "make the network smaller, or divide the parameters over devices by config.mesh.fsdp"
FOR_ACTIVATIONS = (
    "lower config.batch_size, raise config.grad_accumulation, or set config.net.remat=True where the network has it"
)


def free_bytes() -> int | None:
    """Gives the free bytes on one of this process's devices; None where unknown.

    Devices of a CPU share the machine's memory, or the part of it that this process may use.
    """
    import jax

    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        free = [one["bytes_limit"] - one.get("bytes_in_use", 0) for one in stats if "bytes_limit" in one]
        # the fullest device decides: a program takes as much on each
        return min(free, default=None)
    free = free_on_host()
    return free if free is None else free // len(devices)


def free_on_host() -> int | None:
    """Gives the bytes of the machine's memory that this process may still take; None where unknown."""
    limits = (_available(), _left_in_cgroup(), _left_of_addresses())
    return min((limit for limit in limits if limit is not None), default=None)


def program_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes on one device beside its arguments: temporaries, results and code."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    # results that take an argument's place need no memory of their own
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes + max(results, 0) + analysis.generated_code_size_in_bytes


def too_little(what: str, needed: int, helps: str) -> str | None:
    """Writes an error message, with the remedy `helps`, where a device has fewer than `needed` bytes free; else
    None."""
    free = free_bytes()
    if free is None or needed <= free:
        return None
    return f"{what} takes {needed / GIB:,.1f} GiB, and {free / GIB:,.1f} GiB of the device are free: {helps}"


def out_of_memory(error: BaseException) -> str | None:
    """Writes an error message for an exception that a lack of memory caused; None for any other."""
    import jax

    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        reason = " ".join(text.split()).removeprefix("RESOURCE_EXHAUSTED: ")[:200]
        kind = jax.local_devices()[0].device_kind
        return f"out of memory on {kind} ({reason}): {FOR_ACTIVATIONS}; or {FOR_PARAMETERS}"
    return None


def _available() -> int | None:
    """Reads MemAvailable on Linux; elsewhere the whole memory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_cgroup() -> int | None:
    """Reads a container's limit, less what is used and cannot be reclaimed."""
    for limit, used in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            fields = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
            # cached files, which a container gives up when it needs the memory
            reclaimable = int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
            return int(limit.read_text()) - int(used.read_text()) + reclaimable
    return None


def _left_of_addresses() -> int | None:
    """Reads the limit of `ulimit -v`, less the addresses in use."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return limit
