"""Devices: one mesh with the axes `data` and `fsdp`, and how batches and parameters lie on it."""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(*, fsdp: int = 1) -> Mesh:
    """All devices of all processes: `fsdp` of them share one copy of the parameters, the batch is split over all.

    Raises: ValueError where the number of devices is not a multiple of `fsdp`.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} must divide the number of devices, {count}")
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """For each leaf of a tree of arrays (or shapes) its sharding: the longest axis that `fsdp` divides is split over
    it, and what cannot be split is replicated."""

    def shard(leaf):
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % mesh.shape["fsdp"] == 0 and size > 1]
        if mesh.shape["fsdp"] == 1 or not divisible:
            return replicated(mesh)
        spec: list[str | None] = [None] * len(leaf.shape)
        spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(shard, tree)


def initialize_processes() -> None:
    """Join the other processes of a run, where a launcher says that there are some.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS name them one by one; CMJAX_DISTRIBUTED=1 lets JAX
    ask the cluster (SLURM, Cloud TPU, GKE, Open MPI).
    """
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    elif os.environ.get("CMJAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()
