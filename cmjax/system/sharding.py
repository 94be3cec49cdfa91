"""Arrays over the Explicit axes of a mesh, which `jax.make_mesh` makes: there each operation must know how its output
lies, and some do not. Without such axes nothing here changes anything."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def with_auto_axes(function: Callable[..., Any], *, rows_from: int = 0) -> Callable[..., Any]:
    """The function, within which the compiler chooses how arrays lie; its outputs (b, ...) are split as its inputs are.

    For what takes no shardings, such as Flax's layers, `jnp.interp`, and products between all samples.

    rows_from: the positional arguments before it have no axis of samples.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        mesh = next((mesh for leaf in leaves if (mesh := _explicit_mesh(leaf)) is not None), None)
        if mesh is None:
            return function(*args, **kwargs)
        axes = tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
        rows = NamedSharding(mesh, PartitionSpec(_axes_of_rows((args[rows_from:], kwargs))))

        def of_arrays(arrays: list[Any]) -> Any:
            all_leaves = [leaf if array is None else array for array, leaf in zip(arrays, leaves, strict=True)]
            args, kwargs = jax.tree.unflatten(tree, all_leaves)
            return function(*args, **kwargs)

        arrays = [leaf if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
        return jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=rows)(arrays)

    return call


def whole(x: Array) -> Array:
    """x, of which every device has all samples."""
    mesh = _explicit_mesh(x)
    return x if mesh is None else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def split_as(x: Array, others: Any) -> Array:
    """x (n, ...), its samples split over the devices as those of a tree of arrays are, where n divides."""
    mesh = next((mesh for other in jax.tree.leaves(others) if (mesh := _explicit_mesh(other)) is not None), None)
    axes = _axes_of_rows(others)
    if mesh is None or axes is None:
        return x
    parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
    return x if x.shape[0] % parts else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(axes)))


def _axes_of_rows(tree: Any) -> Any:
    """The Explicit axes over which the first axis of the tree's arrays is split; None where it is not."""
    split = (jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(tree) if _explicit_mesh(leaf) is not None)
    return next((spec[0] for spec in split if spec and spec[0] is not None), None)


def _explicit_mesh(x: Any) -> Any:
    """The mesh over whose Explicit axes x is split; None where it is not."""
    if not isinstance(x, jax.Array):
        return None
    sharding = jax.typeof(x).sharding
    split = any(axis is not None for axis in sharding.spec)
    return sharding.mesh if split and AxisType.Explicit in sharding.mesh.axis_types else None
