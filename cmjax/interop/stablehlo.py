"""Writes a function of arrays as StableHLO, by `jax.export`: one file for CPUs, NVIDIA GPUs and TPUs, which jax alone
runs."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

from cmjax.interop.keys import ForeignError
from cmjax.system.environment import tracing_for
from cmjax.system.files import to_json, write_atomically

PLATFORMS = ("cpu", "cuda", "tpu")
MOST = 2**31 - 1
"""Bytes that a serialized program may have: its format counts with 32 bits."""
Specs = Callable[[Any], Mapping[str, jax.ShapeDtypeStruct]]


def write_stablehlo(
    path: Path,
    function: Callable[[Any, Mapping[str, Any]], Any],
    weights: Any,
    specs: Specs,
    about: Mapping[str, Any],
) -> None:
    """Writes `path`, the program, and `path`.json, what it is.

    Args:   function: (weights, {name: input}) -> output. specs: batch -> the inputs; it is called with a symbolic one.
    Raises: ForeignError where the function cannot be exported.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    if size > MOST // 2:
        raise ForeignError(
            f"its weights have {size / 2**30:.1f} GiB, and a program holds at most 1; --format=hub has no limit"
        )
    (batch,) = export.symbolic_shape("b")
    inputs = specs(batch)

    def program(*arrays: Any) -> Any:
        # behind the barrier they are inputs to the compiler, which then folds none of them in other arithmetic
        held = jax.lax.optimization_barrier(weights)
        return jax.lax.platform_dependent(held, dict(zip(inputs, arrays, strict=True)), **_by_platform(function))

    try:
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(*inputs.values())
    except Exception as error:  # of a library that the network calls, or of a shape that must be a number
        raise ForeignError(f"the program cannot be exported: {' '.join(str(error).split())[:300]}") from error
    content = bytes(exported.serialize())
    write_atomically(path, content)
    more = {"platforms": list(PLATFORMS), "jax": jax.__version__, "version": exported.calling_convention_version}
    write_description(path, about, {"format": "stablehlo", **more})


def _by_platform(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Gives the function as it is traced on each platform: attention differs between them."""

    def traced(name: str) -> Callable[..., Any]:
        def of(weights: Any, given: Mapping[str, Any]) -> Any:
            with tracing_for(name):
                return function(weights, given)

        return of

    return {"cpu": traced("cpu"), "cuda": traced("gpu"), "tpu": traced("tpu")}


def write_description(path: Path, about: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Writes what a file is as JSON beside it, with its size and its SHA-256."""
    content = path.read_bytes()
    of_file = {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(path.with_name(f"{path.name}.json"), to_json({**more, **of_file, **about}))
