"""Turns Linen modules into the plain callables that the library takes, and initialises their parameters."""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from cmjax.nets.layers import Uniform
from cmjax.nets.magnitude import Normal


def as_net(module: nn.Module) -> Callable[..., Array]:
    """Makes the function net(params, x, c_noise, *, key=None, **conditions) -> F of a module.

    `key` draws dropout masks; None evaluates.
    """
    return functools.partial(_apply, module)


def _apply(module: nn.Module, params: Any, x: Array, c_noise: Array, *, key: Any = None, **conditions: Any) -> Any:
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, x, c_noise, deterministic=key is None, rngs=rngs, **conditions)


def parameter_shapes(module: nn.Module, shape: Sequence[int]) -> Any:
    """Gives the shapes and dtypes of the parameters for samples of `shape` (h, w, c). Nothing is computed."""
    return unflatten_dict(_parameters(module, shape)[0])


def count_parameters(params: Any) -> int:
    """Counts the parameters in a tree of arrays, or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def init_params(module: nn.Module, key: Key[Array, ""], shape: Sequence[int]) -> Any:
    """Initialises the parameters for samples of `shape` (h, w, c), as host arrays, to be placed by device_put.

    The network is traced, for its shapes, and never compiled, which for a U-Net takes longer than its first step. Each
    parameter's initialiser is its layer's attribute `<name>_init`, as in Linen's own layers, and its numbers depend on
    `key` and the parameter's path alone. A module with a parameter without such an attribute is initialised by
    its own `init` under jit.
    """
    shapes, initialisers = _parameters(module, shape)
    if not shapes.keys() <= initialisers.keys():
        return jax.tree.map(np.asarray, jax.jit(module.init)(key, *_inputs(shape))["params"])
    return unflatten_dict(
        {path: sample_parameter(initialisers[path], key, path, leaf) for path, leaf in shapes.items()}
    )


ByPath = dict[tuple[str, ...], Any]


def _parameters(module: nn.Module, shape: Sequence[int]) -> tuple[ByPath, ByPath]:
    """Finds the shape, the dtype and the initialiser of each parameter, where its layer has one.

    A start asks several times, and a large network takes a second to trace: what a module of these fields gave is kept.
    """
    try:
        hash(module)
    except TypeError:  # a field that has no hash
        # the cache hashes its arguments, so it is left out here
        traced = _traced.__wrapped__
    else:
        traced = _traced
    return traced(module, tuple(shape), x64=jax.config.read("jax_enable_x64"))


# x64 is not read: it belongs to the key, as the shapes' dtypes depend on it
@functools.lru_cache(maxsize=4)
def _traced(module: nn.Module, shape: tuple[int, ...], *, x64: bool) -> tuple[ByPath, ByPath]:
    initialisers: ByPath = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        for attribute in dir(type(layer)):
            if attribute.endswith("_init"):
                initialisers[(*layer.path, attribute.removesuffix("_init"))] = getattr(layer, attribute)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *_inputs(shape)))["params"]
    return dict(flatten_dict(shapes)), initialisers


def _inputs(shape: Sequence[int]) -> tuple[Array, Array]:
    # no parameter's shape depends on how many samples there are
    return jnp.zeros((1, *shape)), jnp.zeros(1)


def sample_parameter(initialiser: Any, key: Any, path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """One parameter. The usual initialisers in numpy, since jax compiles a program for each shape; the rest by jax."""
    if initialiser in (nn.initializers.zeros, nn.initializers.ones):
        return np.full(leaf.shape, float(initialiser is nn.initializers.ones), leaf.dtype)
    # from its own path: a parameter's numbers do not depend on which others a network has
    salt = zlib.crc32("/".join(path).encode())
    rng = np.random.default_rng([salt, *np.asarray(jax.random.key_data(key)).ravel().tolist()])
    if isinstance(initialiser, Normal):
        return (np.float32(initialiser.std) * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
    if isinstance(initialiser, Uniform):
        values = rng.random(math.prod(leaf.shape), np.float32).reshape(leaf.shape)
        return ((2 * values - 1) * np.float32(initialiser.bound(leaf.shape))).astype(leaf.dtype)
    return np.asarray(initialiser(jax.random.fold_in(key, salt), leaf.shape, leaf.dtype))
