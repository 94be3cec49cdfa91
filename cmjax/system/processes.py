"""The processes of one run: joining them, and what one of them does for all."""

import glob
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 20
"""A process that was silent for so long is taken for dead, and the others end."""


class OtherProcessError(RuntimeError):
    """What one process did for all of them failed there; the message is its error's."""


def join_processes() -> None:
    """Join the other processes of a run, where a launcher started some. Call it before anything that uses a device.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS name them one by one. SLURM, Open MPI and Cloud TPU
    tell JAX by themselves.

    Raises: ValueError where these variables are incomplete or no numbers, RuntimeError where nobody answers.
    """
    if "JAX_NUM_PROCESSES" in os.environ:
        number, process = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
        if number > 1 and not re.fullmatch(r".+:\d+", address := os.environ.get("JAX_COORDINATOR_ADDRESS", "")):
            said = f"{address!r}: must name" if address else " is missing: name"
            raise ValueError(f"JAX_COORDINATOR_ADDRESS{said} the first process, as localhost:8476")
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
    in_slurm_step = "SLURM_STEP_NODELIST" in os.environ and _number("SLURM_NTASKS", "1") > 1
    in_mpi = _number("OMPI_COMM_WORLD_SIZE", "1") > 1
    return in_slurm_step or in_mpi or _on_a_tpu()


def _on_a_tpu() -> bool:
    """Whether this machine's own TPU is to be used. JAX then asks the cloud which machines belong to its slice."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    there = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(there) and importlib.util.find_spec("libtpu") is not None


def _initialize(**processes: Any) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `signals`
    jax.distributed.initialize(**processes, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def on_first_process(action: Callable[[], Any]) -> Any:
    """The result of `action`, done by the first process alone, in all of them. All must call it.

    Args:    action: returns what JSON can hold.
    Raises:  in the first process what `action` raises, and OtherProcessError in the others.
    """
    if jax.process_count() == 1:
        return action()
    error, said = None, {}
    if is_first():
        try:
            said = {"result": action()}
        except Exception as raised:
            error, said = raised, {"error": str(raised)}
    said = json.loads(_from_first(json.dumps(said).encode()))
    if error is not None:
        raise error
    if "error" in said:
        raise OtherProcessError(said["error"])
    return said["result"]


def _from_first(content: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()


def say(text: str) -> None:
    """Print it, in the first process alone."""
    if is_first():
        print(text)


def all_agree(condition: bool) -> bool:
    """Whether `condition` holds in every process. All must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def leave_at_once(exit_code: int) -> NoReturn:
    """End this process without waiting for the others, who may be waiting for it in a collective.

    The first one leaves a little later, since all end when it does, and may have the same to say.
    """
    if is_first():
        time.sleep(2)
    os._exit(exit_code)
