"""The processes of one run: joining them, and actions of one process for all.

jax is imported where it is used: what only reads files imports this module too.
"""

import glob
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

from cmjax.system.errors import OtherProcessError
from cmjax.system.libraries import is_installed

HEARTBEAT_SECONDS = 20
"""A process that is silent for so long counts as dead, and the others end."""


def join_processes() -> None:
    """Join the other processes of a run, if a launcher started some. Call it before anything that uses a device.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS describe them. Under SLURM, Open MPI and on a TPU
    JAX finds them by itself.

    Raises: ValueError where these variables are incomplete or no numbers, RuntimeError where nobody answers.
    """
    if "JAX_NUM_PROCESSES" in os.environ:
        number, process = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
        if number > 1 and not re.fullmatch(r".+:\d+", address := os.environ.get("JAX_COORDINATOR_ADDRESS", "")):
            problem = f"{address!r}: must name" if address else " is missing: name"
            raise ValueError(f"JAX_COORDINATOR_ADDRESS{problem} the first process, as localhost:8476")
        if not process < max(number, 1):
            raise ValueError(f"JAX_PROCESS_ID={process}: must be below JAX_NUM_PROCESSES={number}")
        if number > 1:
            _initialize(num_processes=number, process_id=process)
    elif _launched_with_others():
        _initialize()


def _number(variable: str, absent: str = "") -> int:
    text = os.environ.get(variable, absent)
    if not text.isdecimal():
        raise ValueError(f"{variable}={text!r}: must be a whole number")
    return int(text)


def _launched_with_others() -> bool:
    if "SLURM_STEP_NODELIST" in os.environ and _number("SLURM_NTASKS", "1") > 1:
        return True
    if _number("OMPI_COMM_WORLD_SIZE", "1") > 1:
        return True
    # a TPU that will be used: JAX then asks the cloud which machines belong to its slice
    wanted = "tpu" in os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    there = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return wanted and bool(there) and is_installed("libtpu")


def _initialize(**processes: Any) -> None:
    import jax

    # it would take SIGTERM from `signals`
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**processes, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def is_first() -> bool:
    """Says whether this process is the one that writes files and prints."""
    import jax

    return jax.process_index() == 0


def on_first_process(action: Callable[[], Any]) -> Any:
    """Do `action` in the first process alone; all return its result. All must call it.

    Args:    action: returns what JSON can hold.
    Raises:  in the first process what `action` raises, and OtherProcessError in the others.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return action()
    error, answer = None, {}
    # an error is broadcast too: the others would wait for a result that never comes
    if is_first():
        try:
            answer = {"result": action()}
        except Exception as raised:
            error, answer = raised, {"error": str(raised)}
    content = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    # its size goes first: all must broadcast arrays of one shape
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = content if is_first() else np.zeros(size, np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if error is not None:
        raise error
    if "error" in answer:
        raise OtherProcessError(answer["error"])
    return answer["result"]


def say(text: str) -> None:
    """Print it, in the first process alone."""
    if is_first():
        print(text)


def all_agree(condition: bool) -> bool:
    """Says whether `condition` holds in every process. All must call it."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def leave_at_once(exit_code: int) -> NoReturn:
    """End this process without waiting for the others, which may be waiting for it in a collective.

    The first one leaves a little later, since all end when it does, and they may have the same message to print.
    """
    if is_first():
        time.sleep(2)
    # not sys.exit: JAX's own exit handler waits for the other processes
    os._exit(exit_code)
