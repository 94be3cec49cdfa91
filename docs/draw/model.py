"""Makes the model of the page that draws anew: trains `digits_ct` with classes, and writes digits.onnx and digits.json.

    pip install -e '.[onnx]'
    python docs/draw/model.py

It takes two minutes on two quiet CPU cores. `python docs/draw/model.py RUN NAME NOUN` writes the files of another
trained consistency model on the `ve` path, for `<div class="draw" data-model="NAME">`.

The graph is that of `--mode=export --format=onnx --function=model`: it has x (b, h, w, c), t (b,) and, of a model with
classes, label (b,), and gives f(x, t). Large weights are rounded to integers of 16 bits, half the bytes, and calculated
with in float32.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import cmjax
from cmjax.cli import exporting
from cmjax.runs.trained import open_trained

HERE = Path(__file__).parent
FILES = ("vendor/ort-wasm-simd-threaded.wasm.gz", "vendor/ort.wasm.bundle.min.mjs")
"""What a page loads beside the model."""
TOLERANCE = 1e-3
"""The most that rounding the weights may change in an estimate."""
MOST = 10_000
"""Numbers of an array that is not rounded: the smaller ones weigh little, and matter as much."""


def main(run: str = "", name: str = "digits", noun: str = "digit") -> None:
    if not run:
        run = "runs/digits_ct_classes"
        cmjax.train("digits_ct", run, net__class_conditional=True)
    trained = open_trained(run)
    model = trained.load()
    if model.kind != "consistency" or model.path is not cmjax.paths.ve:
        raise SystemExit(f"{run}: the page samples consistency models on the path `ve`, not a {model.kind}")
    with tempfile.TemporaryDirectory() as folder:
        exporting.run(run, "onnx", f"{folder}/model.onnx", function="model")
        graph = rounded(onnx.load(f"{folder}/model.onnx"))
    content = graph.SerializeToString()
    check(content, model, trained.num_classes or 0)
    (HERE / f"{name}.onnx").write_bytes(content)
    classes = list(trained.class_names) if trained.num_classes else None
    size = len(content) + sum((HERE / file).stat().st_size for file in FILES)
    about = {"noun": noun, "shape": model.shape, "t_min": model.t_min, "t_max": model.t_max, "classes": classes}
    (HERE / f"{name}.json").write_text(json.dumps({**about, "megabytes": round(size / 1e6, 1)}) + "\n")


def rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its large weights as int16, each followed by a cast and a float32 scale for each of the last axis.

    Weights are of one size, and need no exponent: of MNIST's estimates the error was a quarter of that of float16.
    """
    nodes, scales = [], []
    for tensor in graph.graph.initializer:
        array, name = numpy_helper.to_array(tensor), tensor.name
        if array.dtype == np.float32 and array.size > MOST:
            largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)), keepdims=True)
            scale = np.where(largest, largest, 1) / np.float32(32767)
            tensor.CopyFrom(numpy_helper.from_array(np.int16(np.round(array / scale)), f"{name}_int16"))
            scales.append(numpy_helper.from_array(np.float32(scale), f"{name}_scale"))
            nodes.append(helper.make_node("Cast", [f"{name}_int16"], [f"{name}_whole"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]))
    nodes.extend(graph.graph.node)
    del graph.graph.node[:], graph.graph.value_info[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(scales)
    onnx.checker.check_model(graph)
    return graph


def check(content: bytes, model: cmjax.BoundModel, num_classes: int) -> None:
    """Raises SystemExit where the graph's estimate is not the model's, at noise levels from t_min to t_max."""
    session = onnxruntime.InferenceSession(content)
    t = np.geomspace(model.t_min, model.t_max, 64, dtype=np.float32).clip(model.t_min, model.t_max)
    x = t[:, None, None, None] * np.random.default_rng(0).standard_normal((64, *model.shape), np.float32)
    label = {"label": np.arange(64, dtype=np.int32) % num_classes} if num_classes else {}
    error = np.abs(session.run(None, {"x": x, "t": t, **label})[0] - np.asarray(model(x, t, **label))).max()
    print(f"the graph's estimate differs from the model's by {error:.2g}")
    if not error <= TOLERANCE:
        raise SystemExit(f"{error:.2g} is more than {TOLERANCE:g}: nothing is written")


if __name__ == "__main__":
    main(*sys.argv[1:])
