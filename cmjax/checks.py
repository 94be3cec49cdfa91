"""Checks the arguments of the library as far as they are known while a function is traced: shapes, dtypes, and
values that are no tracers. Each raises one line with the argument, its value and what is allowed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer
from jaxtyping import Array, Int

SLACK = 1e-6  # the relative slack of a range of times, which float32 may have rounded


def known(value: Any) -> np.ndarray | None:
    """Gives the value on the host; None where it is traced, or lies with other processes."""
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, Tracer) or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            return None
    return np.asarray(value)


def as_key(key: Any, count: int | None = None) -> Any:
    """Gives the key, or the keys, as typed ones: what `jax.random.PRNGKey` gives is turned into them.

    Args:   count: samples, each of which may have its key; None where one key serves all.
    Raises: TypeError where it is no key, ValueError where there are others than `count`.
    """
    wanted = "a key, as of jax.random.key(0)" + ("" if count is None else f", or {count}, one for each sample")
    if not hasattr(key, "dtype"):
        raise TypeError(f"key must be {wanted}, got {key!r} of the type {type(key).__name__}")
    if key.dtype == np.uint32 and key.ndim:
        try:
            key = jax.random.wrap_key_data(jnp.asarray(key))
        except (TypeError, ValueError):
            raise ValueError(f"key must be {wanted}, got uint32 numbers of the shape {key.shape}") from None
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be {wanted}, got {key.dtype} numbers of the shape {key.shape}")
    if key.ndim and key.shape != (count,):
        raise ValueError(f"key must be {wanted}, got keys of the shape {key.shape}")
    return key


def descending(
    times: Any,
    *,
    least: int = 1,
    lowest: float = 0.0,
    highest: float = np.inf,
    positive: bool = False,
    may_stay: bool = False,
) -> Array:
    """Turns a sampler's times into an array (n,) of floats: `least` of them or more, descending, within [lowest,
    highest].

    positive: whether the last must be above 0. may_stay: whether one may be that before it.
    """
    array, values = jnp.asarray(times, float), known(times)
    if array.ndim != 1 or array.shape[0] < least:
        count = "one noise std" if least == 1 else "two noise stds"
        raise ValueError(f"times must be a sequence of at least {count}, got shape {array.shape}")
    if values is None:
        return array
    shown = [f"{time:g}" for time in values]
    problem = f"got {', '.join(shown if len(shown) < 8 else [*shown[:3], '…', *shown[-3:]])}"
    falls = values[:-1] >= values[1:] if may_stay else values[:-1] > values[1:]
    if not np.all(falls) or not np.all(np.isfinite(values)):
        raise ValueError(f"times must descend, {problem}")
    if values[-1] < lowest * (1 - SLACK) or values[0] > highest * (1 + SLACK):
        raise ValueError(f"times must {_range(lowest, highest)}, {problem}")
    if positive and values[-1] <= 0:
        raise ValueError(f"times must be positive, {problem}")
    return array


def within(name: str, times: Any, lowest: float, highest: float) -> None:
    """Raise ValueError where known times lie outside [lowest, highest]."""
    values = known(times)
    if values is None:
        return
    inside = (values >= lowest * (1 - SLACK)) & (values <= highest * (1 + SLACK)) & np.isfinite(values)
    if not np.all(inside):
        raise ValueError(f"{name} must {_range(lowest, highest)}, got {_shown(values)}")


def ordered(earlier: Any, later: Any, names: str, *, apart: bool = False) -> None:
    """Raise ValueError unless known times `earlier` <= `later`, or < where they must lie `apart`. names: "r t"."""
    low, high = known(earlier), known(later)
    if low is None or high is None:
        return
    wrong = ~(low < high) if apart else ~(low <= high)
    if np.any(wrong):
        first, second = names.split()
        shown = ", ".join(f"{n}={_shown(np.broadcast_to(v, wrong.shape)[wrong][:1])}" for n, v in
                          ((first, low), (second, high)))  # fmt: skip
        raise ValueError(f"times.{first} must be {'below' if apart else 'at most'} times.{second}, got {shown}")


def per_sample_shape(name: str, value: Any, count: Any, *, scalar: bool = True) -> None:
    """Raise ValueError unless it has a value for each of `count` samples, or is one for all where that is allowed."""
    if jnp.shape(value) not in ((count,), *([()] if scalar else [])):
        one = "a scalar or " * scalar
        raise ValueError(f"{name} must be {one}of the shape ({count},), one for each sample, got {jnp.shape(value)}")


def floating(name: str, x: Any) -> None:
    """Raise TypeError for data that are no floats, such as pixels of 8 bits."""
    if not jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating):
        problem = "floats, images in [-1, 1]: x / 127.5 - 1 of 8-bit pixels"
        raise TypeError(f"{name} must be {problem}, got {jnp.asarray(x).dtype}")


def same_shape(name: str, shape: Any, expected: Any, of: str) -> None:
    """Raise ValueError where what must have the shape of something else would only broadcast with it."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have the shape of {of}, {tuple(expected)}, got {tuple(shape)}")


def as_labels(label: Any, count: Any, classes: int | None = None) -> Int[Array, " b"]:
    """Gives labels (b,) of whole numbers from −1, no class, to classes − 1; one label is that of all samples."""
    allowed = "whole numbers from 0" + ("" if classes is None else f" to {classes - 1}") + ", or -1 for no class"
    label = jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(f"label must be {allowed}, got {label.dtype}")
    per_sample_shape("label", label, count)
    values = known(label)
    if values is not None and np.any((values < -1) | (values >= (np.inf if classes is None else classes))):
        raise ValueError(f"label must be {allowed}, got {_shown(values)}")
    return jnp.broadcast_to(label, (count,))


def known_size(count: Any, what: str) -> None:
    """Raise ValueError where a size is symbolic, as in `jax.export`, and what is done needs its number."""
    if export.is_symbolic_dim(count):
        raise ValueError(f"{what} needs the batch size as a number: {count} is symbolic")


def sample_shape(shape: Any) -> tuple[Any, ...]:
    """Gives the shape (b, ...) of samples."""
    try:
        return tuple(shape)
    except TypeError:
        raise TypeError(f"shape must be that of the samples, such as (16, 32, 32, 3), got {shape!r}") from None


def enough_noises(noises: Array, shape: Any, count: int) -> None:
    """Raise ValueError where there are fewer noises (k, b, ...) than `count`, or they are not of the samples' shape."""
    if noises.ndim < 1 or noises.shape[0] < count:
        raise ValueError(f"noises must be {count} or more, each of the shape {tuple(shape)}, got {len(noises)}")
    if count:
        same_shape("each of noises", noises.shape[1:], shape, "the samples")


def _range(lowest: float, highest: float) -> str:
    return f"lie in [{lowest:g}, {highest:g}]" if highest < np.inf else f"be finite numbers of at least {lowest:g}"


def _shown(values: np.ndarray) -> str:
    """Lists the different values, or the first and the last of many."""
    different = [f"{value:g}" for value in np.unique(values)]
    return ", ".join(different) if len(different) <= 4 else f"{different[0]} to {different[-1]}"
