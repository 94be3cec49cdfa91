"""Devices: one mesh with the axes `data` and `fsdp`, and how batches and parameters lie on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SMALL = 2**16
"""Elements of a leaf below which it is not worth splitting: each use would wait for the others' parts."""


def make_mesh(*, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """`fsdp` devices share one copy of the parameters, the batch is split over all.

    Args:   devices: all of all processes where None.
    Raises: ValueError where the number of devices is not a multiple of `fsdp`.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} must divide the number of devices, {count}")
    # Split: on a slice like 4×4×4 two devices fraction parameters along one of its axes, which is of four.
    placed = create_device_mesh((count // fsdp, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(placed, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def over_steps(sharding: Any) -> NamedSharding:
    """The sharding of batches of several steps, (steps, b, ...), each of which lies as `sharding` says."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """For each leaf of a tree of arrays (or shapes) its sharding: the longest axis that `fsdp` divides is split over
    it. Leaves of fewer than `SMALL` elements, and those that cannot be split, are replicated."""
    return jax.tree.map(lambda leaf: _longest_axis_split(leaf.shape, mesh, ("fsdp",), SMALL), tree)


def reading_shardings(tree: Any, mesh: Mesh) -> Any:
    """As `parameter_shardings`, over all devices: each process reads its own part of a file, and `move` then lays the
    arrays as they are used."""
    return jax.tree.map(lambda leaf: _longest_axis_split(leaf.shape, mesh, ("data", "fsdp"), SMALL), tree)


def _longest_axis_split(shape: tuple[int, ...], mesh: Mesh, axes: tuple[str, ...], small: int) -> NamedSharding:
    parts = math.prod(mesh.shape[axis] for axis in axes)
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < small or not divisible:
        return replicated(mesh)
    spec: list[tuple[str, ...] | None] = [None] * len(shape)
    spec[max(divisible, key=shape.__getitem__)] = axes
    return NamedSharding(mesh, PartitionSpec(*spec))


def shapes_on(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of a tree of arrays (or shapes), with where they are to lie."""
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, shardings)


def distribute(tree: Any, sharding: NamedSharding) -> Any:
    """A tree of host arrays that every process holds alike, each array split over the devices as `sharding` says."""
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), tree)


def move(tree: Any, shardings: Any) -> Any:
    """A tree of global arrays, or of host arrays that every process holds alike, laid out anew over the devices. Every
    process must call it."""
    return jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """What one device holds of a tree of arrays, or shapes, that lie so."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )
