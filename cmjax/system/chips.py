"""The published peaks of chips, and the devices of TPU slices that need not be there.

TPUs: the pages v2 to v6e and tpu7x of the Cloud TPU documentation (docs.cloud.google.com/tpu/docs); v2 and the links of
v4 from Jouppi et al. 2020 and 2023. JAX has two devices for each chip of TPU v2, v3 and 7x: theirs is half of it.
GPUs: NVIDIA's data sheets, dense arithmetic. V100 and T4 know no bfloat16; their peak is that of float16.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

from cmjax.system.libraries import MissingLibrary, how_to_install, is_installed

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Holds the published peaks of one JAX device.

    peak_flops: bfloat16 operations per second, two for each multiply-add. hbm_bytes: its memory. hbm_bandwidth: bytes
    per second. link_bandwidth: bytes per second that it sends to other chips over all of its links together; None where
    none is published, or it depends on how the chips are put together.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float | None = None


CHIPS = {
    "TPU v2": Chip("TPU v2 core", 23e12, 8 * GIB, 350e9),
    "TPU v3": Chip("TPU v3 core", 61.5e12, 16 * GIB, 450e9),
    "TPU v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 400e9),
    "TPU v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 400e9),
    "TPU7x": Chip("TPU7x core", 1153.5e12, 96 * GIB, 3690e9, 300e9),
    "Tesla T4": Chip("T4", 65e12, 16 * GIB, 320e9),
    "Tesla V100-PCIE-16GB": Chip("V100 PCIe", 112e12, 16 * GIB, 900e9),
    "Tesla V100-PCIE-32GB": Chip("V100 PCIe", 112e12, 32 * GIB, 900e9),
    "Tesla V100-SXM2-16GB": Chip("V100 SXM2", 125e12, 16 * GIB, 900e9),
    "Tesla V100-SXM2-32GB": Chip("V100 SXM2", 125e12, 32 * GIB, 900e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 PCIe", 312e12, 40 * GIB, 1555e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 SXM", 312e12, 40 * GIB, 1555e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe", 312e12, 80 * GIB, 1935e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 SXM", 312e12, 80 * GIB, 2039e9),
    "NVIDIA L4": Chip("L4", 121e12, 24 * GIB, 300e9),
    "NVIDIA L40S": Chip("L40S", 362e12, 48 * GIB, 864e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80 * GIB, 2000e9),
    "NVIDIA H100 NVL": Chip("H100 NVL", 835.5e12, 94 * GIB, 3900e9),
    "NVIDIA H100": Chip("H100 SXM", 989.5e12, 80 * GIB, 3350e9),
    "NVIDIA H200 NVL": Chip("H200 NVL", 835.5e12, 141 * GIB, 4800e9),
    "NVIDIA H200": Chip("H200 SXM", 989.5e12, 141 * GIB, 4800e9),
}
"""Keyed by the beginning of `device_kind`, as libtpu and CUDA spell it."""


def chip_of(device_kind: str) -> Chip | None:
    """Look up a `jax.Device.device_kind` by the longest name that it begins with; None for a CPU, a part of a GPU (MIG)
    and a chip that is not in the table."""
    if " MIG " in device_kind:
        return None
    # not within a word: "NVIDIA L4" is no beginning of "NVIDIA L40S"
    begun = [name for name in CHIPS if re.match(re.escape(name) + r"(?![\w.])", device_kind)]
    return CHIPS[max(begun, key=len)] if begun else None


FAMILIES = {
    "v4": "v4:2x2x4",
    "v5e": "v5e:16x16",
    "v5p": "v5p:4x4x4",
    "v6e": "v6e:16x16",
    "tpu7x": "tpu7x:2x2x4",
}
"""TPUs that libtpu compiles for, each with an example of a slice."""

_WITHOUT_HARDWARE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""Variables that stop libtpu from looking for a chip, for its cloud, and for other programs that use it."""


def topology_devices(name: str) -> list[Any]:
    """Gives the devices of the slice `name`, as v5e:16x16: programs compile for them, and cannot run. Call it before
    anything that uses a device.

    Raises: ValueError naming the families, where there is no such slice; MissingLibrary where libtpu is not installed.
    """
    family = name.partition(":")[0]
    if family not in FAMILIES:
        raise ValueError(f"is unknown: write a TPU and its slice, as {', '.join(FAMILIES.values())}")
    if not is_installed("libtpu"):
        raise MissingLibrary(f"needs the TPU's compiler: {how_to_install('libtpu')}")
    import jax
    from jax.experimental import topologies

    # libtpu reads them when it is loaded
    for variable, value in _WITHOUT_HARDWARE.items():
        os.environ.setdefault(variable, value)
    # else JAX would start libtpu's own backend, which wants a chip
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # of libtpu, by several names
        reason = str(error).strip().split("\n")[0].partition("INVALID_ARGUMENT: ")
        raise ValueError(f"is no slice of {family}, as {FAMILIES[family]} is: {reason[2] or reason[0]}") from error
