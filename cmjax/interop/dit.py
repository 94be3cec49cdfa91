"""Diffusion transformers of latents: PyTorch files of DiT and its relatives, whose keys are nearly the same."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmjax.interop.keys import Arrays, Foreign, ForeignError, FromKeys, Path, assemble, refuse, width
from cmjax.nets.dit import SIZES, DiT
from cmjax.nets.dit_blocks import ROUNDED_FREQUENCIES, positions, rotations

log = logging.getLogger(__name__)

NOISE = {"path": "ddpm", "preconditioning": "epsilon"}
VELOCITY = {"path": "linear", "preconditioning": "linear"}
MEAN_VELOCITY = {"path": "linear", "preconditioning": "linear_ends"}


@dataclass(frozen=True)
class Peer:
    """Says how a peer's files are read.

    model, kind: of a network of one time; with two it is a flow map. flipped: their time is 1 − ours, and their
    velocity data − noise. time_scale: the network's field. qk_norm: what scales of queries and keys are called.
    """

    licence: str
    model: Mapping[str, str]
    kind: str = "denoiser"
    flipped: bool = False
    time_scale: float = 1.0
    qk_norm: str = "weight"


PEERS = {
    "dit": Peer("Creative Commons BY-NC 4.0 (Meta, DiT): non-commercial use alone", NOISE, time_scale=1000.0),
    "sit": Peer("MIT (SiT); see its repository for the weights", VELOCITY, flipped=True),
    "repa": Peer("MIT (REPA); see its repository for the weights", VELOCITY),
    "lightningdit": Peer("MIT (LightningDiT); see its repository for the weights", VELOCITY, flipped=True),
    "dmf": Peer("not named by the file: see the repository kyungmnlee/dmf", MEAN_VELOCITY, qk_norm="scale"),
    "facm": Peer("not named by the file: see the repository ali-vilab/FACM", VELOCITY, "consistency", flipped=True),
}
ASK = (
    "--format=dit (predicts the noise), sit (the velocity, data at t = 1), repa (the velocity, data at t = 0) or dmf "
    "(the mean velocity between two times)"
)
LAST_TIMES = {"ddpm": 0.999, "linear": 1.0}
"""Path -> its last time; DiT's steps are 0 to 999 of 1000."""
SECOND_TIME_FROM = {28: 20}
"""The depth of decoupled MeanFlow's published networks -> the first block that sees the second time."""
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
EMBEDDINGS = {"time": "t_embedder", "time_s": "r_embedder"}
EMBEDDING_LAYERS = {"dense_0": "mlp.0", "dense_1": "mlp.2"}
TOP_LAYERS = {
    "patches": "x_embedder.proj",
    "label": "y_embedder.embedding_table",
    "out_modulation": "final_layer.adaLN_modulation.1",
    "out_norm": "final_layer.norm_final",
    "out": "final_layer.linear",
}
ROTATIONS = {"feat_rope.freqs_cos": np.cos, "feat_rope.freqs_sin": np.sin}

AUXILIARY, SWIGLU = "r_embedder.mlp.0.weight", "blocks.0.mlp.w12.weight"
LABELS = "y_embedder.embedding_table.weight"
ALIGNMENT, LOSS_WEIGHT = "projectors.", "logvar_linear."
"""Beginnings of keys of training alone: REPA's heads, and the learned weight of decoupled MeanFlow's loss."""


def peer_of(arrays: Arrays, name: str) -> str | None:
    """Finds whose file it is by its keys, or by its name, where they are several peers'; None if neither does."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    if SWIGLU in arrays:
        if AUXILIARY not in arrays and ("facm" in words or re.search(r"\dep-stg2\b", name)):
            log.info("%s is taken for FACM's by its name; --format=lightningdit says otherwise", name)
            return "facm"
        return "facm" if AUXILIARY in arrays else "lightningdit"
    if any(key.startswith(LOSS_WEIGHT) or key.endswith(".q_norm.scale") for key in arrays):
        return "dmf"
    if any(key.startswith(ALIGNMENT) for key in arrays):
        return "repa"
    words &= {"dit", "sit", "repa", "dmf"}
    return words.pop() if len(words) == 1 else None


def read_dit(arrays: Arrays, overrides: Mapping[str, Any], peer: str | None) -> Foreign:
    """Reads the network of a state dict. Its time and its sign become ours: noise is at t = 1, v = noise − data.

    Args:   peer: one of `PEERS`; None where the file leaves it open.
            overrides: image_size, head_channels, and second_time_from of the peer "dmf".
    Raises: ForeignError with all that is wrong; it is an UndeterminedError, with all that is open, where anything is.
    """
    arrays = {key: array for key, array in arrays.items() if not key.startswith(ALIGNMENT)}
    if peer == "dmf" and (unused := [key for key in arrays if key.startswith(LOSS_WEIGHT)]):
        log.info("%s: the learned weight of the loss is left out, for sampling does not use it", ", ".join(unused))
        arrays = {key: array for key, array in arrays.items() if key not in unused}
    side, network, known = _described(arrays, overrides, peer)
    channels, grid = width(arrays, "x_embedder.proj.weight", 1), side // network.patch
    if not network.num_classes:  # the embedding of no class alone: a part of every time's
        bias, none = "t_embedder.mlp.2.bias", arrays.pop(LABELS)[0]
        arrays |= {bias: arrays[bias] + none} if bias in arrays else {}
    problems = _take_tables(arrays, grid, network.width // network.heads)
    fixed = positions(grid, grid, network.width)[None]
    if "pos_embed" in arrays and network.patch * grid == side:
        # computed places are no parameters of ours; any others were learned
        if np.allclose(arrays["pos_embed"], fixed, atol=1e-5):
            del arrays["pos_embed"]
        else:
            network = network.clone(learned_positions=True)
    shape, params = (side, side, channels), None
    try:
        params = assemble(arrays, network, shape, lambda path: source_of(path, network, channels, known))
    except ForeignError as error:
        problems.append(str(error))
    refuse(problems)
    model, kind = (MEAN_VELOCITY, "flow_map") if network.two_times else (known.model, known.kind)
    times = {"t_min": 0.001 if kind == "denoiser" else 0.0, "t_max": LAST_TIMES[model["path"]]}
    return Foreign(network, params, shape, kind, known.licence, times, model)


def _described(arrays: Arrays, overrides: Mapping[str, Any], peer: str | None) -> tuple[int, DiT, Peer]:
    """Finds height and width of the latents, their network, and whose it is. Raises: as `read_dit`."""
    hidden = SWIGLU if SWIGLU in arrays else "blocks.0.mlp.fc1.weight"
    shown_by = ("x_embedder.proj.weight", hidden, "final_layer.linear.weight", LABELS)
    refuse([f"the file has no {key}, which shows the architecture" for key in shown_by if key not in arrays])
    size, channels, patch = (width(arrays, "x_embedder.proj.weight", axis) for axis in (0, 1, 2))
    places = round(width(arrays, "pos_embed", 1) ** 0.5) * patch if "pos_embed" in arrays else None
    side: Any = overrides.get("image_size", places)
    head = _head(arrays, size, overrides.get("head_channels"))
    heads = size // head if head else None
    depth = len({key.split(".")[1] for key in arrays if key.startswith("blocks.")})
    second = overrides.get("second_time_from", SECOND_TIME_FROM.get(depth)) if peer == "dmf" else 0
    problems, outputs = [], width(arrays, "final_layer.linear.weight") / patch**2
    if places is not None and side != places:
        problems.append(f"pos_embed is of latents of {places}x{places}, not of --arch-image_size={side}")
    if head is not None and size % head:
        problems.append(f"head_channels={head} does not divide the width, {size}")
    # twice the channels: the network predicts a variance, too
    if outputs not in (channels, 2 * channels):
        problems.append(f"final_layer.linear.weight has {outputs:g} channels for each of {channels}, not one or two")
    open_facts = {
        ASK: peer is None,
        "--arch-image_size=N, the height and width of the latents": side is None,
        f"--arch-head_channels=N, the width of an attention head, a divisor of {size}": head is None,
        f"--arch-second_time_from=N, the first block that sees the second time, at most {depth}": second is None,
    }
    refuse(problems, [option for option, is_open in open_facts.items() if is_open])
    known, two_times = PEERS[str(peer)], peer == "dmf" or (peer == "facm" and AUXILIARY in arrays)
    fields = {"depth": depth, "heads": heads, "two_times": two_times, "second_time_from": second}
    return side, _network(arrays, time_scale=known.time_scale, **fields), known


def _network(arrays: Arrays, **fields: Any) -> DiT:
    """Makes the network whose fields are these and those that the arrays show."""
    size, patch = (width(arrays, "x_embedder.proj.weight", axis) for axis in (0, 2))
    swiglu = SWIGLU in arrays
    # w12 is two layers of two thirds of the hidden width each: 4/3 of it
    hidden = width(arrays, SWIGLU) * 3 // 4 if swiglu else width(arrays, "blocks.0.mlp.fc1.weight")
    ratio = hidden / size
    return DiT(
        patch=patch,
        width=size,
        # the network rounds down, and the ratio just above gives the same width back
        mlp_ratio=ratio if int(ratio * size) == hidden else float(np.nextafter(ratio, np.inf)),
        norm="rms" if "blocks.0.norm1.weight" in arrays else "layer",
        qk_norm=any(key.startswith("blocks.0.attn.q_norm.") for key in arrays),
        rope=any(key in arrays for key in ROTATIONS),
        mlp="swiglu" if swiglu else "gelu",
        rounded_frequencies=True,
        num_classes=width(arrays, LABELS) - 1,
        **fields,
    )


def _head(arrays: Arrays, size: int, stated: int | None) -> Any:
    """Finds the width of an attention head, which arrays of heads show, or the published sizes; None where it is
    open."""
    shown = (("blocks.0.attn.q_norm.weight", 0), ("blocks.0.attn.q_norm.scale", 0), ("feat_rope.freqs_cos", 1))
    for key, axis in shown:
        if key in arrays:
            return width(arrays, key, axis)
    published = {fields["width"]: fields["width"] // fields["heads"] for fields in SIZES.values()}
    return stated if stated is not None else published.get(size)


def _take_tables(arrays: dict[str, np.ndarray], grid: int, head: int) -> list[str]:
    """Removes the tables of rotations. Returns: the problems, where they are others than ours."""
    problems = []
    for key, wave in ROTATIONS.items():
        if key in arrays and head % 4 == 0:
            # theirs has each angle twice, once for each channel of a pair
            ours = np.repeat(wave(rotations(grid, grid, head)), 2, axis=1)
            theirs = arrays.pop(key)
            if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-5):
                problems.append(f"{key} holds other rotations than those by row and column of {grid}x{grid} patches")
    return problems


def source_of(path: Path, network: DiT, channels: int, peer: Peer) -> FromKeys:
    """Says where a parameter of ours is in a peer's file."""
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if leaf == "positions":
        return FromKeys(("pos_embed",), lambda array: array[0])
    if modules[0].startswith("block_"):
        layer: Any = BLOCK_LAYERS[modules[1]]
        layer = layer if isinstance(layer, str) else layer[network.mlp == "swiglu"]
        end = peer.qk_norm if modules[1] in ("q_norm", "k_norm") else end
        return FromKeys((f"blocks.{modules[0].removeprefix('block_')}.{layer}.{end}",), np.transpose)
    if modules[0] in EMBEDDINGS:
        read = flipped_time if peer.flipped and modules[1] == "dense_0" else np.transpose
        return FromKeys((f"{EMBEDDINGS[modules[0]]}.{EMBEDDING_LAYERS[modules[1]]}.{end}",), read)
    # a flipped peer predicts data − noise
    read = {
        "patches": _patches,
        "label": np.asarray,
        "out": lambda array: _output(array, network.patch, channels) * (-1 if peer.flipped else 1),
    }.get(modules[0], np.transpose)
    return FromKeys((f"{TOP_LAYERS[modules[0]]}.{end}",), read)


def _patches(array: np.ndarray) -> np.ndarray:
    """Turns the weight (width, c, p, p) of a convolution into one of patches (p·p·c, width); a bias stays as it is."""
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]) if array.ndim == 4 else array


def _output(array: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """Takes the rows of the last layer that belong to the prediction: those of a learned variance come after them."""
    rows = array.reshape(patch**2, -1, *array.shape[1:])[:, :channels]
    return rows.reshape(-1, *array.shape[1:]).T


def flipped_time(array: np.ndarray) -> np.ndarray:
    """Turns the layer behind cosines and sines of 1 − t into one behind those of t (addition theorem); its own inverse.

    array: a weight (width, 256), read as (256, width), or a bias.
    """
    if array.ndim == 1:
        return array
    of_cos, of_sin = np.split(array.T.astype(np.float64), 2)
    cos, sin = np.cos(ROUNDED_FREQUENCIES)[:, None], np.sin(ROUNDED_FREQUENCIES)[:, None]
    # cos f(1 − t) = cos f·cos ft + sin f·sin ft, and sin f(1 − t) = sin f·cos ft − cos f·sin ft
    return np.concatenate([cos * of_cos + sin * of_sin, sin * of_cos - cos * of_sin])
