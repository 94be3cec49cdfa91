"""Machines that are not there: the devices of a TPU slice by its name, for programs that are compiled and not run."""

import os
from typing import Any

import jax

from cmjax.system.libraries import MissingLibrary, how_to_install, is_installed

FAMILIES = {
    "v4": "v4:2x2x4",
    "v5e": "v5e:16x16",
    "v5p": "v5p:4x4x4",
    "v6e": "v6e:16x16",
    "tpu7x": "tpu7x:2x2x4",
}
"""TPUs that libtpu compiles for, each with an example of a slice."""

_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""What keeps libtpu from looking for a chip, for its cloud, and for other programs that use it."""


def topology_devices(name: str) -> list[Any]:
    """The devices of the slice `name`, as v5e:16x16, on which programs can be compiled. This machine's own are left.

    Call it before anything that uses a device.

    Raises: ValueError naming the families, where there is no such slice; MissingLibrary where libtpu is not installed.
    """
    family = name.partition(":")[0]
    if family not in FAMILIES:
        raise ValueError(f"is unknown: write a TPU and its slice, as {', '.join(FAMILIES.values())}")
    if not is_installed("libtpu"):
        raise MissingLibrary(f"needs the TPU's compiler: {how_to_install('libtpu')}")
    from jax.experimental import topologies

    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # of libtpu, by several names
        reason = str(error).strip().split("\n")[0].partition("INVALID_ARGUMENT: ")
        raise ValueError(f"is no slice of {family}, as {FAMILIES[family]} is: {reason[2] or reason[0]}") from error
