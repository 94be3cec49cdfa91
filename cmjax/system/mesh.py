"""The mesh of devices, with the axes `data` and `fsdp`; how batches and parameters lie on it.

The last functions are for arrays over Explicit axes, which `jax.make_mesh` makes: each operation there must know how
its output lies, and some do not. Without such axes they change nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

SMALL = 2**16
"""Leaves of fewer elements are not split: each use would wait for the parts of other devices."""


def make_mesh(*, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh in which `fsdp` devices share one copy of the parameters, and the batch is split over all.

    Args:   devices: default: all devices of all processes.
    Raises: ValueError where the number of devices is not a multiple of `fsdp`.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} must divide the number of devices, {count}")
    # on a slice like 4×4×4, fsdp=2 must split an axis of four
    from jax.experimental.mesh_utils import create_device_mesh

    placed = create_device_mesh((count // fsdp, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(placed, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def over_steps(sharding: Any) -> NamedSharding:
    """Gives the sharding of batches of several steps, (steps, b, ...), each of which lies as `sharding` says."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(tree: Any, mesh: Mesh, *, over: tuple[str, ...] = ("fsdp",)) -> Any:
    """Gives the sharding of each leaf of a tree of arrays, or of shapes: the longest axis that the mesh's axes `over`
    divide is split over them. Leaves of fewer than `SMALL` elements, and those that cannot be split, are replicated."""
    parts = math.prod(mesh.shape[axis] for axis in over)

    def sharding(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < SMALL or not divisible:
            return replicated(mesh)
        spec: list[tuple[str, ...] | None] = [None] * len(leaf.shape)
        spec[max(divisible, key=leaf.shape.__getitem__)] = over
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, tree)


def shapes_on(tree: Any, shardings: Any) -> Any:
    """Gives the shapes and dtypes of a tree of arrays (or shapes), with where they are to lie."""
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, shardings)


def distribute(tree: Any, sharding: NamedSharding) -> Any:
    """Lays out a tree of host arrays that every process holds alike, each split over the devices as `sharding` says."""
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), tree)


def chunks(rows: Any, size: int) -> Iterator[Any]:
    """Yields the rows of a tree of host arrays (n, ...) in chunks of one size: a function of them compiles once.

    The last chunk is filled up with the last row.
    """
    rows = jax.tree.map(np.asarray, rows)
    num = len(jax.tree.leaves(rows)[0])
    for start in range(0, num, size):
        here = np.minimum(np.arange(start, start + size), num - 1)
        yield jax.tree.map(lambda row, here=here: row[here], rows)


def in_chunks(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """Applies `function` to the `chunks` of rows, and joins its results: a tree of host arrays (n, ...)."""
    # without the rows that filled up the last chunk
    num = len(jax.tree.leaves(rows)[0])
    results = [jax.tree.map(np.asarray, function(chunk)) for chunk in chunks(rows, size)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *results)


def move(tree: Any, shardings: Any) -> Any:
    """Lays out anew over the devices a tree of global arrays, or of host arrays that every process holds alike. Every
    process must call it."""
    # a compiled identity, since parts may have to travel between processes
    return jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Counts the bytes that one device holds of a tree of arrays, or shapes, that lie so."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )


def with_auto_axes(function: Callable[..., Any], *, rows_from: int = 0) -> Callable[..., Any]:
    """Wraps a function, so that within it the compiler chooses how arrays lie; its outputs (b, ...) are split as its
    inputs are.

    For what takes no shardings, such as Flax's layers, `jnp.interp`, and products between all samples.

    rows_from: the positional arguments before it have no axis of samples.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        mesh = _explicit_mesh(leaves)
        if mesh is None:
            return function(*args, **kwargs)
        axes = tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
        rows = NamedSharding(mesh, PartitionSpec(_axes_of_rows((args[rows_from:], kwargs))))

        def of_arrays(arrays: list[Any]) -> Any:
            all_leaves = [leaf if array is None else array for array, leaf in zip(arrays, leaves, strict=True)]
            args, kwargs = jax.tree.unflatten(tree, all_leaves)
            return function(*args, **kwargs)

        # numbers and functions among the arguments are no arrays that lie anywhere
        arrays = [leaf if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
        return jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=rows)(arrays)

    return call


def whole(x: Array) -> Array:
    """Gives x with all samples on every device."""
    mesh = _explicit_mesh(x)
    return x if mesh is None else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def split_as(x: Array, others: Any) -> Array:
    """Splits the samples of x (n, ...) over the devices as those of a tree of arrays are, where n divides."""
    mesh, axes = _explicit_mesh(others), _axes_of_rows(others)
    if mesh is None or axes is None:
        return x
    parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
    return x if x.shape[0] % parts else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(axes)))


def _axes_of_rows(tree: Any) -> Any:
    """Gives the Explicit axes over which the first axis of the tree's arrays is split; None where it is not."""
    # the first array that is split decides: all arrays of a batch lie alike
    return next((sharding.spec[0] for sharding in _explicit(tree) if sharding.spec[0] is not None), None)


def _explicit_mesh(tree: Any) -> Any:
    return next((sharding.mesh for sharding in _explicit(tree)), None)


def _explicit(tree: Any) -> Iterator[Any]:
    """Yield the shardings of the tree's arrays that are split over Explicit axes."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            sharding = jax.typeof(leaf).sharding
            split = any(axis is not None for axis in sharding.spec)
            if split and AxisType.Explicit in sharding.mesh.axis_types:
                yield sharding
