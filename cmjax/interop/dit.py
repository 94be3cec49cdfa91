"""Diffusion transformers of latents: the files of DiT, SiT, REPA and LightningDiT, whose keys are nearly the same."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cmjax.interop.keys import Arrays, Foreign, ForeignError, Path, Source, UndeterminedError, assemble, width
from cmjax.nets.dit import SIZES, DiT
from cmjax.nets.dit_blocks import ROUNDED_FREQUENCIES, positions, rotations

FAMILY = ("dit", "sit", "repa", "lightningdit")
ASK = "--format=dit (predicts the noise), sit (the velocity, data at t = 1) or repa (the velocity, data at t = 0)"
LICENCES = {
    "dit": "Creative Commons BY-NC 4.0 (Meta, DiT): non-commercial use alone",
    "sit": "MIT (SiT); see its repository for the weights",
    "repa": "MIT (REPA); see its repository for the weights",
    "lightningdit": "MIT (LightningDiT); see its repository for the weights",
}
NOISE = {"path": "ddpm", "preconditioning": "epsilon"}
VELOCITY = {"path": "linear", "preconditioning": "linear"}
LAST_TIMES = {"ddpm": 0.999, "linear": 1.0}
"""DiT's steps are 0 to 999 of 1000."""
FLIPPED = ("sit", "lightningdit")
"""Those whose time is 1 − ours, and whose velocity is data − noise."""
BLOCK_LAYERS = {
    "modulation": "adaLN_modulation.1",
    "norm_0": "norm1",
    "norm_1": "norm2",
    "qkv": "attn.qkv",
    "q_norm": "attn.q_norm",
    "k_norm": "attn.k_norm",
    "proj": "attn.proj",
    "mlp_0": ("mlp.fc1", "mlp.w12"),
    "mlp_1": ("mlp.fc2", "mlp.w3"),
}
"""Our layers -> theirs, with GELU and with SwiGLU."""
TOP_LAYERS = {
    "patches": "x_embedder.proj",
    "dense_0": "t_embedder.mlp.0",
    "dense_1": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table",
    "out_modulation": "final_layer.adaLN_modulation.1",
    "out_norm": "final_layer.norm_final",
    "out": "final_layer.linear",
}
ROTATIONS = {"feat_rope.freqs_cos": np.cos, "feat_rope.freqs_sin": np.sin}


def peer_of(arrays: Arrays, name: str) -> str | None:
    """Tells whose file it is by its keys, or by its name, where the keys are DiT's and SiT's; None if neither does."""
    if "blocks.0.mlp.w12.weight" in arrays:
        return "lightningdit"
    if any(key.startswith("projectors.") for key in arrays):
        return "repa"
    words = set(re.split(r"[^a-z]+", name.lower())) & {"dit", "sit", "repa"}
    return words.pop() if len(words) == 1 else None


def read_dit(arrays: Arrays, overrides: Mapping[str, Any], peer: str | None) -> Foreign:
    """Reads the network of a state dict. Its time and its sign become ours: noise is at t = 1, v = noise − data.

    Args:   peer: one of `FAMILY`; None where the file leaves it open. overrides: image_size, head_channels.
    Raises: UndeterminedError with all that the file leaves open; ForeignError as `assemble`.
    """
    arrays = {key: array for key, array in arrays.items() if not key.startswith("projectors.")}
    channels, size = width(arrays, "x_embedder.proj.weight", 1), width(arrays, "x_embedder.proj.weight", 0)
    side, head = _side(arrays, overrides.get("image_size")), _head(arrays, size, overrides.get("head_channels"))
    open_facts = {
        ASK: peer is None,
        "--arch-image_size=N, the height and width of the latents": side is None,
        f"--arch-head_channels=N, the width of an attention head, a divisor of {size}": head is None,
    }
    if peer is None or side is None or head is None:
        raise UndeterminedError(*(option for option, is_open in open_facts.items() if is_open))
    if size % head:
        raise ForeignError(f"head_channels={head} does not divide the width, {size}")
    model = NOISE if peer == "dit" else VELOCITY
    network = _network(arrays, size // head, time_scale=1000.0 if peer == "dit" else 1.0)
    grid = side // network.patch
    _take_tables(arrays, grid, head)
    if "pos_embed" in arrays:
        fixed = positions(grid, grid, size)[None]
        if np.shape(arrays["pos_embed"]) == fixed.shape and np.allclose(arrays["pos_embed"], fixed, atol=1e-5):
            del arrays["pos_embed"]
        else:
            network = network.clone(learned_positions=True)
    params = assemble(
        arrays, network, (side, side, channels), lambda path: _source(path, network, channels, peer in FLIPPED)
    )
    times = {"t_min": 0.001, "t_max": LAST_TIMES[model["path"]]}
    return Foreign(network, params, (side, side, channels), "denoiser", LICENCES[peer], times, model)


def _network(arrays: Arrays, heads: int, time_scale: float) -> DiT:
    size, channels, patch = (width(arrays, "x_embedder.proj.weight", axis) for axis in (0, 1, 2))
    swiglu = "blocks.0.mlp.w12.weight" in arrays
    hidden = width(arrays, "blocks.0.mlp.w12.weight") * 3 // 4 if swiglu else width(arrays, "blocks.0.mlp.fc1.weight")
    ratio = hidden / size
    outputs = width(arrays, "final_layer.linear.weight") / patch**2
    if outputs not in (channels, 2 * channels):
        raise ForeignError(f"final_layer.linear.weight has {outputs:g} channels for each of {channels}, not one or two")
    return DiT(
        patch=patch,
        width=size,
        depth=len({key.split(".")[1] for key in arrays if key.startswith("blocks.")}),
        heads=heads,
        mlp_ratio=ratio if int(ratio * size) == hidden else float(np.nextafter(ratio, np.inf)),
        norm="rms" if "blocks.0.norm1.weight" in arrays else "layer",
        qk_norm="blocks.0.attn.q_norm.weight" in arrays,
        rope=any(key in arrays for key in ROTATIONS),
        mlp="swiglu" if swiglu else "gelu",
        time_scale=time_scale,
        rounded_frequencies=True,
        num_classes=width(arrays, "y_embedder.embedding_table.weight") - 1,
    )


def _side(arrays: Arrays, stated: int | None) -> int | None:
    """Height and width of latents: as stated, or of the table of positions; None where neither is there."""
    if "pos_embed" not in arrays:
        return stated
    side = round(width(arrays, "pos_embed", 1) ** 0.5) * width(arrays, "x_embedder.proj.weight", 2)
    if stated is not None and stated != side:
        raise ForeignError(f"pos_embed is of latents of {side}x{side}, not of --arch-image_size={stated}")
    return side


def _head(arrays: Arrays, size: int, stated: int | None) -> int | None:
    """The width of an attention head, which arrays of heads show, or the published sizes; None where it is open."""
    for key, axis in (("blocks.0.attn.q_norm.weight", 0), ("feat_rope.freqs_cos", 1)):
        if key in arrays:
            return width(arrays, key, axis)
    published = {fields["width"]: fields["width"] // fields["heads"] for fields in SIZES.values()}
    return stated if stated is not None else published.get(size)


def _take_tables(arrays: dict[str, np.ndarray], grid: int, head: int) -> None:
    """Removes the tables of rotations. Raises: ForeignError where they are others than ours."""
    for key, wave in ROTATIONS.items():
        if key in arrays and head % 4 == 0:
            ours = np.repeat(wave(rotations(grid, grid, head)), 2, axis=1)
            theirs = arrays.pop(key)
            if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-5):
                raise ForeignError(f"{key} holds other rotations than those by row and column of {grid}x{grid} patches")


def _source(path: Path, network: DiT, channels: int, flipped: bool) -> Source:
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if leaf == "positions":
        return Source(("pos_embed",), lambda array: array[0])
    if modules[0].startswith("block_"):
        layer: Any = BLOCK_LAYERS[modules[1]]
        layer = layer if isinstance(layer, str) else layer[network.mlp == "swiglu"]
        return Source((f"blocks.{modules[0].removeprefix('block_')}.{layer}.{end}",), np.transpose)
    read = {
        "patches": _patches,
        "label": np.asarray,
        "out": lambda array: _output(array, network.patch, channels) * (-1 if flipped else 1),
        "dense_0": _flipped_time if flipped else np.transpose,
    }.get(modules[-1], np.transpose)
    return Source((f"{TOP_LAYERS[modules[-1]]}.{end}",), read)


def _patches(array: np.ndarray) -> np.ndarray:
    """The weight (width, c, p, p) of a convolution -> (p·p·c, width) of patches; a bias as it is."""
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]) if array.ndim == 4 else array


def _output(array: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """The rows of the last layer that are of the prediction: those of a learned variance come after them."""
    rows = array.reshape(patch**2, -1, *array.shape[1:])[:, :channels]
    return rows.reshape(-1, *array.shape[1:]).T


def _flipped_time(array: np.ndarray) -> np.ndarray:
    """The layer behind cosines and sines of 1 − t, as one behind those of t, by the addition theorems."""
    if array.ndim == 1:
        return array
    of_cos, of_sin = np.split(array.T.astype(np.float64), 2)
    cos, sin = np.cos(ROUNDED_FREQUENCIES)[:, None], np.sin(ROUNDED_FREQUENCIES)[:, None]
    return np.concatenate([cos * of_cos + sin * of_sin, sin * of_cos - cos * of_sin])
