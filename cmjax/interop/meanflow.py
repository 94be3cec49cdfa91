"""MeanFlow's JAX checkpoints: a DiT that takes the times t and t − r, whose output is noise − data."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cmjax.interop.keys import (
    Arrays,
    Foreign,
    ForeignError,
    FromKeys,
    Path,
    assemble,
    check_shapes_shown,
    refuse,
    width,
)
from cmjax.nets.dit import SIZES, DiT

LICENCE = "see its repository, Gsunshine/meanflow, for the weights"
MODEL = {"path": "linear", "preconditioning": "linear_flow"}
TIMES = {"t_min": 0.0, "t_max": 1.0}
SHOWN = {
    "x_embedder/proj/kernel": 4,
    "blocks/layers_0/mlp/fc1/_flax_linear/kernel": 2,
    "final_layer/linear/_flax_linear/kernel": 2,
    "y_embedder/embedding_table/_flax_embedding/embedding": 2,
}
"""The arrays that the sizes are read from, and their numbers of axes."""
BLOCK_LAYERS = {
    "modulation": "adaLN_modulation/layers_1",
    "qkv": "attn/qkv",
    "proj": "attn/proj",
    "mlp_0": "mlp/fc1",
    "mlp_1": "mlp/fc2",
}
EMBEDDERS = {"time": "t_embedder", "time_s": "h_embedder"}
DENSE = {"dense_0": "layers_0", "dense_1": "layers_2"}
TOP_LAYERS = {"out_modulation": "final_layer/adaLN_modulation/layers_1", "out": "final_layer/linear"}


def read_meanflow(arrays: Arrays, overrides: Mapping[str, Any]) -> Foreign:
    """Reads the network of MeanFlow's parameters: u(x, t, t − r) of latents, noise at t = 1.

    Args:   overrides: `image_size` of the latents; `head_channels`, where the width is none of the published ones.
    Raises: ForeignError listing all that is wrong with the arrays; UndeterminedError with all that they leave open.
    """
    check_shapes_shown(arrays, SHOWN)
    arrays = {key: array for key, array in arrays.items() if key != "pos_embed"}  # computed, where a file has it
    patch, _, channels, size = np.shape(arrays["x_embedder/proj/kernel"])
    side, head = overrides.get("image_size"), overrides.get("head_channels", _published_head(size))
    options = {
        "--arch-image_size=N, the height and width of the latents, 32 for images of 256": side is None,
        f"--arch-head_channels=N, the width of an attention head, a divisor of {size}": head is None,
    }
    problems: list[str] = []
    if head is not None and size % head:
        problems.append(f"head_channels={head} does not divide the width, {size}")
        # the arrays are checked all the same, with one head
        head = None
    network = _network(arrays, size // (head or size))
    # No array's shape shows the size of the latents and the heads: the others are checked whatever these are.
    shape = (side or patch, side or patch, channels)
    params = assembled(arrays, network, shape, _source, problems)
    refuse(problems, [option for option, is_open in options.items() if is_open])
    return Foreign(network, params, shape, "flow_map", LICENCE, TIMES, MODEL)


def assembled(
    arrays: Arrays, network: Any, shape: tuple[int, int, int], source: Callable[[Path], FromKeys], problems: list[str]
) -> Any:
    """Assembles as `assemble`, but adds what is wrong to the problems."""
    try:
        return assemble(arrays, network, shape, source)
    except ForeignError as error:
        problems.append(str(error))


def _network(arrays: Arrays, heads: int) -> DiT:
    patch, _, _, size = np.shape(arrays["x_embedder/proj/kernel"])
    hidden = width(arrays, "blocks/layers_0/mlp/fc1/_flax_linear/kernel", 1)
    return DiT(
        patch=patch,
        width=size,
        depth=len({key.split("/")[1] for key in arrays if key.startswith("blocks/")}),
        heads=heads,
        mlp_ratio=ratio_of(hidden, size),
        time_scale=1.0,
        rounded_frequencies=True,
        two_times=True,
        num_classes=width(arrays, "y_embedder/embedding_table/_flax_embedding/embedding") - 1,
    )


def ratio_of(hidden: int, size: int) -> float:
    """Gives the ratio r with int(r·size) = hidden."""
    ratio = hidden / size
    return ratio if int(ratio * size) == hidden else float(np.nextafter(ratio, np.inf))


def _published_head(size: int) -> int | None:
    return {fields["width"]: fields["width"] // fields["heads"] for fields in SIZES.values()}.get(size)


def _source(path: Path) -> FromKeys:
    *modules, leaf = path
    name = modules[0]
    if name.startswith("block_"):
        layer = f"blocks/layers_{name.removeprefix('block_')}/{BLOCK_LAYERS[modules[1]]}"
        return FromKeys((f"{layer}/_flax_linear/{leaf}",), np.asarray)
    if name in EMBEDDERS:
        return FromKeys((f"{EMBEDDERS[name]}/mlp/{DENSE[modules[1]]}/_flax_linear/{leaf}",), np.asarray)
    if name == "label":
        return FromKeys(("y_embedder/embedding_table/_flax_embedding/embedding",), np.asarray)
    if name == "patches":
        return FromKeys((f"x_embedder/proj/{leaf}",), of_patches)
    return FromKeys((f"{TOP_LAYERS[name]}/_flax_linear/{leaf}",), np.asarray)


def of_patches(array: np.ndarray) -> np.ndarray:
    """Turns the kernel (p, p, c, width) of a convolution into one of patches (p·p·c, width); a bias stays as it is."""
    return array.reshape(-1, array.shape[-1]) if array.ndim == 4 else array
