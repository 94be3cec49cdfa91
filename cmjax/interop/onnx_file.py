"""Writes a function of arrays as ONNX, by jax2onnx, and compares onnxruntime's outputs with JAX's."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cmjax.interop.keys import ForeignError
from cmjax.interop.stablehlo import Specs, write_description
from cmjax.system.environment import tracing_for
from cmjax.system.files import write_atomically

OPSET = 21
MOST = 2**31 - 1
"""The most bytes of an ONNX file: protobuf counts with 32 bits."""
TOLERANCE = 1e-4
"""The largest difference from JAX's outputs, as a fraction of their largest value where that is above 1."""
CHECKED = 3  # samples: a number that no axis of an image has


def write_onnx(
    path: Path,
    function: Callable[[Any, Mapping[str, Any]], Any],
    weights: Any,
    specs: Specs,
    about: Mapping[str, Any],
    *,
    name: str,
) -> float:
    """Writes `path`, the graph, and `path`.json, what it is. Nothing is written unless its outputs are those of JAX.

    Args:    function: (weights, {name: input}) -> output. specs: batch -> the inputs. name: of the network, for errors.
    Returns: the largest difference of an output from JAX's.
    Raises:  ForeignError where an operation has no ONNX, or the outputs differ by more than `TOLERANCE`.
    """
    import onnx
    from jax2onnx import to_onnx

    (batch,) = export.symbolic_shape("b")
    inputs, weights = specs(batch), jax.tree.map(jnp.asarray, weights)

    def program(*arrays: Any) -> Any:
        return function(weights, dict(zip(inputs, arrays, strict=True)))

    # without jit loops are unrolled, and no function of jax.numpy is left that the converter would replace by its own
    with tracing_for("cpu"), jax.disable_jit():
        traced = jax.make_jaxpr(program)(*inputs.values())
    try:
        with _quiet():
            graph = to_onnx(_evaluated(traced), list(inputs.values()), model_name=path.stem, opset=OPSET)
    except Exception as error:  # the converter's, of any kind
        raise ForeignError(f"the network {name} cannot be written as ONNX: {_why(error)}") from error
    if len(graph.graph.input) != len(inputs):
        raise ForeignError(f"the network {name} does not use all of {', '.join(inputs)}")
    _rename(graph, [*inputs], about["output"]["name"])
    content = graph.SerializeToString()
    if len(content) > MOST:
        raise ForeignError(f"the network {name} has {len(content) / 2**30:.1f} GiB, and a file of ONNX at most 2")
    onnx.checker.check_model(graph)
    difference = _difference(content, program, specs(CHECKED))
    write_atomically(path, content)
    write_description(path, about, {"format": "onnx", "opset": OPSET, "difference": difference})
    return difference


def _evaluated(traced: Any) -> Callable[..., Any]:
    """Makes the function that evaluates a program's operations, those without ONNX by others."""

    def evaluate(*arrays: Any) -> Any:
        values = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        values |= dict(zip(traced.jaxpr.invars, arrays, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else values[atom]

        for equation in traced.jaxpr.eqns:
            operation, parts = equation.primitive, [read(atom) for atom in equation.invars]
            if operation.name == "stack":
                axis = equation.params["axis"]
                made = jax.lax.concatenate([jax.lax.expand_dims(part, (axis,)) for part in parts], axis)
            else:
                made = operation.bind(*parts, **operation.get_bind_params(equation.params))
            values |= dict(zip(equation.outvars, made if operation.multiple_results else [made], strict=True))
        return [read(atom) for atom in traced.jaxpr.outvars]

    return evaluate


def _why(error: Exception) -> str:
    said = " ".join(str(error).split())
    operation = re.search(r"No plugins registered for primitive '(\w+)'", said)
    return f"jax2onnx has none for the operation {operation[1]}" if operation else said[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the converter's log while the block runs: it lists its parts that this version of JAX lacks."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rename(graph: Any, inputs: Sequence[str], output: str) -> None:
    """Gives the inputs and the output of a graph, in their order, these names."""
    body = graph.graph
    names = {old.name: new for old, new in zip(body.input, inputs, strict=True)} | {body.output[0].name: output}
    for value in (*body.input, *body.output):
        value.name = names.get(value.name, value.name)
    for node in body.node:
        for ends in (node.input, node.output):
            for i, end in enumerate(ends):
                ends[i] = names.get(end, end)


def _difference(content: bytes, program: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    """Runs the file on random inputs. Returns: the largest difference from JAX's outputs. Raises: ForeignError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    rng = np.random.default_rng(0)
    given = {
        name: (rng.standard_normal(spec.shape) if spec.ndim > 1 else rng.uniform(0.1, 1, spec.shape)).astype(spec.dtype)
        for name, spec in inputs.items()
    }
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        theirs = session.run(None, given)[0]
    except Exception as error:  # of onnxruntime, of any kind
        raise ForeignError(f"onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from error
    ours = np.asarray(jax.jit(program)(*map(jnp.asarray, given.values())))
    if ours.shape != np.shape(theirs):
        raise ForeignError(f"onnxruntime makes outputs of {np.shape(theirs)}, and JAX of {ours.shape}")
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
        raise ForeignError(f"onnxruntime's outputs differ from JAX's by {difference:.2g}, more than {TOLERANCE:g}")
    return difference
