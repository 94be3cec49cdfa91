"""Who a process is, to others that read of it later: by its number alone it may be another one by then."""

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Its host, number, place and start, as JSON has them."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": this_place(),
        "process_start": process_start(os.getpid()),
    }


def this_place() -> list[str]:
    """Where a process's number means the same: host, start of the machine, and namespace of a container."""
    place = [socket.gethostname()]
    with contextlib.suppress(OSError):
        place += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return place


def process_start(pid: int) -> int | None:
    """When a process of this machine began, in ticks since that did; None where it is gone, or cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this place is there still, and its number not another's by now."""
    if process["process_start"] is not None:
        return process_start(process["pid"]) == process["process_start"]
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
