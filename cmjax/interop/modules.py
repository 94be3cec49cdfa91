"""The classes of PyTorch's networks that a file may name, and the parameters of such a network under PyTorch's keys."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmjax.system.unpickle import Global, PickledObject, check_state

LAYERS = {
    "module": "Module",
    "container": "Sequential ModuleList ModuleDict ParameterList ParameterDict",
    "linear": "Linear Identity Bilinear",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "normalization": "GroupNorm LayerNorm RMSNorm",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "sparse": "Embedding",
    "activation": "ReLU ReLU6 LeakyReLU PReLU ELU SELU GELU SiLU Mish Sigmoid Tanh Softplus Softmax MultiheadAttention",
    "dropout": "Dropout Dropout1d Dropout2d Dropout3d",
    "pooling": "MaxPool1d MaxPool2d AvgPool1d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d",
    "upsampling": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
    "padding": "ZeroPad2d ReflectionPad2d ReplicationPad2d",
    "pixelshuffle": "PixelShuffle PixelUnshuffle",
    "flatten": "Flatten Unflatten",
}
"""torch.nn.modules' files and the classes of theirs that are read as records."""

DEPTH, ENTRIES, NAME = 64, 100_000, 128
"""The most levels, entries and letters of a name in a network: records can hold one another any number of times."""


def state_dict(module: PickledObject) -> dict[str, np.ndarray]:
    """Collects parameters and persistent buffers under PyTorch's keys, in its order: a module's, then its parts'.

    Raises: ValueError naming a part that is not a network of PyTorch's, or where they are nested without end.
    """
    arrays: dict[str, np.ndarray] = {}
    visited = 0

    def visit(part: Any, prefix: str, depth: int) -> None:
        nonlocal visited
        own, children, size = _content(part, prefix)
        # each visit counts: one part may hang in many places
        visited += 1 + size
        if visited > ENTRIES or depth > DEPTH:
            raise ValueError(f"the network has more than {ENTRIES} entries or {DEPTH} levels")
        for name in (*own, *children):
            if type(name) is not str or "." in name or not name.isprintable() or len(name) > NAME:
                raise ValueError(f"{prefix or 'the network'} has a part whose name is not one of PyTorch's")
        for name, value in own.items():
            if type(value) is not np.ndarray:
                raise ValueError(f"{prefix}{name} is a {type(value).__name__}, not a tensor")
            arrays[f"{prefix}{name}"] = value
        for name, child in children.items():
            visit(child, f"{prefix}{name}.", depth + 1)

    visit(module, "", 0)
    return arrays


def _content(part: Any, prefix: str) -> tuple[dict[Any, Any], dict[Any, Any], int]:
    """Collects a module's parameters and persistent buffers, its parts, and the number of all entries; None is left
    out."""
    state = part.state if isinstance(part, PickledObject) else {}
    entries: list[Any] = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    # buffers that PyTorch's own state dict leaves out
    passing = state.get("_non_persistent_buffers_set", set())
    if not all(isinstance(each, dict) for each in entries) or not isinstance(passing, set):
        kind = part.class_name if isinstance(part, PickledObject) else type(part).__name__
        raise ValueError(f"{prefix or 'the object'} is a {kind}, not a network of PyTorch's")
    parameters, buffers, children = ({k: v for k, v in each.items() if v is not None} for each in entries)
    own = {**parameters, **{name: value for name, value in buffers.items() if name not in passing}}
    return own, children, sum(map(len, entries))


def init_arguments(module: PickledObject) -> dict[str, Any]:
    """Gives the keyword arguments that made a network of NVIDIA's; positional ones, if any, as the list `_init_args`.

    Raises: ValueError where they were not recorded.
    """
    named, positional = module.state.get("_init_kwargs"), module.state.get("_init_args") or ()
    if not isinstance(named, dict) or not isinstance(positional, tuple | list):
        raise ValueError(f"{module.class_name} does not say which arguments made it")
    return {**named, "_init_args": list(positional)} if positional else dict(named)


def non_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Lists the keys of arrays that have a NaN or an infinity."""
    return [key for key, array in arrays.items() if not np.isfinite(array).all()]


def _network(meta: Any) -> PickledObject:
    """Makes an object of a class whose source code the file carries; the code is left alone."""
    if type(meta) is not dict or meta.get("type") != "class":
        raise ValueError("it has an object that is not understood")
    name, state = meta.get("class_name"), meta.get("state")
    if type(name) is not str or not name.isidentifier() or len(name) > NAME or type(state) is not dict:
        raise ValueError("it has an object without a class's name or a state")
    check_state(state)
    return PickledObject(name, state)


def _layer(name: str) -> Global:
    return Global(name, lambda: PickledObject(name, {}))


OBJECTS: dict[tuple[str, str], Global] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Global("_reconstruct_persistent_obj", _network),
    ("dnnlib.util", "EasyDict"): Global("EasyDict", lambda: {}),
    ("argparse", "Namespace"): _layer("Namespace"),  # a run's options, which some checkpoints hold
    **{(f"torch.nn.modules.{file}", name): _layer(name) for file, names in LAYERS.items() for name in names.split()},
}
"""(module, name) in a pickle -> what makes a record in its place."""
