"""The memory of devices: how much is free, and what to say where it is too little."""

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

GIB = 2**30
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Files of a container's limit and of what it uses, of both versions."""
FOR_PARAMETERS = "make the network smaller, or divide the parameters over devices by config.mesh.fsdp"
FOR_ACTIVATIONS = (
    "lower config.batch_size, raise config.grad_accumulation, or set config.net.remat=True where the network has it"
)


def free_bytes() -> int | None:
    """What is free on one of this process's devices; None where that cannot be told.

    Devices of a CPU share the machine's memory, or the part of it that this process may have.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        free = [told["bytes_limit"] - told.get("bytes_in_use", 0) for told in stats if "bytes_limit" in told]
        return min(free, default=None)
    free = free_on_host()
    return free if free is None else free // len(devices)


def free_on_host() -> int | None:
    """What this process may still take of the machine's own memory; None where that cannot be told."""
    limits = (_available(), _left_in_cgroup(), _left_of_addresses())
    return min((limit for limit in limits if limit is not None), default=None)


def program_bytes(compiled: Any) -> int:
    """What running a compiled program takes on one device beside its arguments: temporaries, results and code."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes + max(results, 0) + analysis.generated_code_size_in_bytes


def too_little(what: str, needed: int, helps: str) -> str | None:
    """A line where a device has less free than `needed` bytes, and what helps; None where it has enough."""
    free = free_bytes()
    if free is None or needed <= free:
        return None
    return f"{what} takes {needed / GIB:,.1f} GiB, and {free / GIB:,.1f} GiB of the device are free: {helps}"


def out_of_memory(error: BaseException) -> str | None:
    """What to say of an error that a lack of memory caused; None of any other."""
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        told = " ".join(text.split()).removeprefix("RESOURCE_EXHAUSTED: ")[:200]
        return f"out of memory on {jax.local_devices()[0].device_kind} ({told}): {FOR_ACTIVATIONS}; or {FOR_PARAMETERS}"
    return None


def _available() -> int | None:
    """Linux's own figure; elsewhere the whole memory."""
    try:
        lines: Iterable[str] = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _left_in_cgroup() -> int | None:
    """Of a container: the limit, less what is used and could not be given back."""
    for limit, used in CGROUPS:
        try:
            taken = int(used.read_text()) - _given_back(used.with_name("memory.stat"))
            return int(limit.read_text()) - taken
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return None


def _given_back(stat: Path) -> int:
    """Pages of files, which a container gives up when it needs the room."""
    told = dict(line.split() for line in stat.read_text().splitlines())
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))


def _left_of_addresses() -> int | None:
    """Under `ulimit -v`: the limit, less the addresses that are taken."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return limit
