"""iMF's and pMF's JAX checkpoints: a transformer given t − r as tokens, with a second head for the velocity at t."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from cmjax.interop.keys import (
    Arrays,
    Foreign,
    ForeignError,
    FromKeys,
    Path,
    check_shapes_shown,
    refuse,
)
from cmjax.interop.meanflow import DENSE, TIMES, assembled, of_patches, ratio_of
from cmjax.nets.imf_dit import IMFDiT

LICENCES = {
    "imf": "see its repository, Lyy-iiis/imeanflow, for the weights",
    "pmf": "MIT (pMF); see its repository for the weights",
}
NOISE_SCALES = {(256, 768): 1.0, (256, 1024): 1.0, (256, 1280): 2.0, (512, 1280): 4.0}
"""(height of the image, width of the network) -> the noise scale of pMF's published model; no array holds it."""
OPEN_AT = 512
"""The height from which other models than these have noise scales from 2 to 4."""
PARTS = {"block": "shared_blocks", "head": "u_heads", "velocity_head": "v_heads"}
TOKENS = {
    "label": "class_tokens",
    "guidance": "omega_tokens",
    "first": "t_min_tokens",
    "last": "t_max_tokens",
    "time": "time_tokens",
}
EMBEDDERS = {
    "guidance_embedding": "omega_embedder",
    "first_embedding": "cfg_t_start_embedder",
    "last_embedding": "cfg_t_end_embedder",
    "time_embedding": "h_embedder",
}
LAST_LAYERS = {"out": "u_final_layer", "velocity": "v_final_layer"}
LABELS = "y_embedder/embedding_table/_flax_embedding/embedding"
LABELS_OF_PMF = "y_embedder/embedding_table/embedding"
KERNEL = "_flax_linear/kernel"


def read_imf(arrays: Arrays, overrides: Mapping[str, Any], peer: str) -> Foreign:
    """Reads the network of iMF's parameters, u and v of latents, or of pMF's, which gives images; noise is at t = 1.

    Where the velocity head was left out, as the released code does for evaluation, the network has none.

    Args:   peer: "imf" or "pmf". overrides: `image_size`, which iMF's shapes do not show; `noise_scale` of pMF.
    Raises: ForeignError listing all that is wrong with the arrays; UndeterminedError with all that they leave open.
    """
    arrays, first = _normalised(arrays), _first_block(arrays)
    patches = "x_embedder/proj1/kernel" if peer == "pmf" else "x_embedder/proj/kernel"
    shown = {patches: 4, f"{first}/attn/q_norm/kernel": 1, f"{first}/mlp/w1/{KERNEL}": 2, LABELS: 2}
    shown |= {"x_embedder/proj2/kernel": 4, "pos_embed": 2} if peer == "pmf" else {}
    check_shapes_shown(arrays, shown | dict.fromkeys(TOKENS.values(), 2))
    network = _network(arrays, patches, first)
    if not network.velocity_head:
        arrays = {key: array for key, array in arrays.items() if not key.startswith("v_final_layer/")}
    params, problems, options = None, list[str](), list[str]()
    side = _side(arrays, network, overrides.get("image_size"), problems)
    if side is None and peer == "imf":
        options.append("--arch-image_size=N, the height and width of the latents, 32 for images of 256")
    # No array's shape shows the size of the latents: the others are checked whatever it is.
    shape = (side or network.patch, side or network.patch, np.shape(arrays[patches])[2])
    if side or peer == "imf":
        source = partial(_source, bottleneck=bool(network.bottleneck))
        params = assembled(arrays, network, shape, source, problems)
    path, preconditioning = "linear", "linear_gap"
    if peer == "pmf":
        scale, preconditioning = overrides.get("noise_scale", _noise_scale(shape[0], network.width)), "clean_gap"
        if scale is None:
            options.append("--arch-noise_scale=N, the factor of its noise, in its recipe")
        path = "linear" if scale in (None, 1) else f"linear(noise_scale={scale:g})"
    refuse(problems, options)
    model = {"path": path, "preconditioning": preconditioning}
    return Foreign(network, params, shape, "flow_map", LICENCES[peer], TIMES, model)


def _normalised(arrays: Arrays) -> dict[str, np.ndarray]:
    """Gives the arrays without pMF's leading axes of 1, and its class embedding under iMF's key."""
    renamed = {LABELS if key == LABELS_OF_PMF else key: array for key, array in arrays.items()}
    of_one = (LABELS, "pos_embed", *TOKENS.values())
    return {
        key: array[0] if key in of_one and array.ndim == 3 and len(array) == 1 else array
        for key, array in renamed.items()
    }


def _first_block(arrays: Arrays) -> str:
    """Finds a block that there is: a network may be heads from its first layer on."""
    return next((f"{part}_0" for part in PARTS.values() if _count(arrays, part)), "shared_blocks_0")


def _count(arrays: Arrays, part: str) -> int:
    return len({key.partition("/")[0] for key in arrays if key.startswith(f"{part}_")})


def _network(arrays: Arrays, patches: str, first: str) -> IMFDiT:
    patch, size = np.shape(arrays[patches])[0], np.shape(arrays[TOKENS["time"]])[1]
    head, hidden = len(arrays[f"{first}/attn/q_norm/kernel"]), np.shape(arrays[f"{first}/mlp/w1/{KERNEL}"])[1]
    if size % head:
        raise ForeignError(f"attention heads of {head} channels do not divide the width, {size}")
    count = {ours: len(arrays[theirs]) for ours, theirs in TOKENS.items()}
    head_depth = _count(arrays, "u_heads")
    in_pixels = patches.endswith("proj1/kernel")
    return IMFDiT(
        patch=patch,
        bottleneck=np.shape(arrays[patches])[3] if in_pixels else 0,
        width=size,
        # a sample goes through the shared blocks and then those of one head
        depth=_count(arrays, "shared_blocks") + head_depth,
        heads=size // head,
        head_depth=head_depth,
        mlp_ratio=ratio_of(hidden, size),
        class_tokens=count["label"],
        guidance_tokens=count["guidance"],
        interval_tokens=count["first"],
        time_tokens=count["time"],
        rope="patches" if in_pixels else "tokens",
        learned_positions="pos_embed" in arrays,
        rounded_frequencies=True,
        guided=True,
        guided_interval=True,
        velocity_head=bool(_count(arrays, "v_heads")),
        # the table has a row more, of no class
        num_classes=len(arrays[LABELS]) - 1,
    )


def _side(arrays: Arrays, network: IMFDiT, stated: int | None, problems: list[str]) -> int | None:
    """Finds height and width of samples: from the learned places of patches, or as stated; None without either."""
    if "pos_embed" not in arrays:
        return stated
    places, before = len(arrays["pos_embed"]), sum(len(arrays[key]) for key in TOKENS.values())
    rows = round(max(places - before, 0) ** 0.5)
    if rows < 1 or rows**2 != places - before:
        problems.append(f"pos_embed has {places} places, {before} of them of tokens: the others are no square")
        return None
    side = rows * network.patch
    if stated not in (None, side):
        problems.append(f"pos_embed is of images of {side}x{side}, not of --arch-image_size={stated}")
    return side


def _noise_scale(side: int, size: int) -> float | None:
    """Gives the scale of pMF's noise: that of a published model, or 1, its code's default; None where it is open."""
    return NOISE_SCALES.get((side, size), 1.0 if side < OPEN_AT else None)


def _source(path: Path, bottleneck: bool) -> FromKeys:
    *modules, leaf = path
    name = modules[0] if modules else leaf
    part, _, index = name.rpartition("_")
    if part in PARTS and index.isdigit():
        return _of_block(f"{PARTS[part]}_{index}", modules[1:], leaf)
    if leaf == "tokens":
        return FromKeys((TOKENS[name.removesuffix("_tokens")],), np.asarray)
    if name in EMBEDDERS:
        return FromKeys((f"{EMBEDDERS[name]}/mlp/{DENSE[modules[1]]}/_flax_linear/{leaf}",), np.asarray)
    if name.removesuffix("_norm") in LAST_LAYERS:
        layer = LAST_LAYERS[name.removesuffix("_norm")]
        return FromKeys(
            (f"{layer}/norm/kernel" if name.endswith("_norm") else f"{layer}/linear/_flax_linear/{leaf}",), np.asarray
        )
    if name in ("bottleneck", "patches"):
        layer = ("proj1" if name == "bottleneck" else "proj2") if bottleneck else "proj"
        return FromKeys((f"x_embedder/{layer}/{leaf}",), of_patches)
    return FromKeys(({"label": LABELS, "positions": "pos_embed"}[name],), np.asarray)


def _of_block(block: str, modules: list[str], leaf: str) -> FromKeys:
    if not modules:
        return FromKeys((f"{block}/{'attn' if leaf == 'attention_gate' else 'mlp'}_scale",), np.asarray)
    if modules[0] in ("qkv", "mlp_0"):
        layers = [f"attn/{name}_proj" for name in "qkv"] if modules[0] == "qkv" else ["mlp/w1", "mlp/w3"]
        return FromKeys(tuple(f"{block}/{layer}/{KERNEL}" for layer in layers), _side_by_side)
    layer = {
        "norm_0": "norm1/kernel",
        "norm_1": "norm2/kernel",
        "q_norm": "attn/q_norm/kernel",
        "k_norm": "attn/k_norm/kernel",
        "proj": f"attn/out_proj/{KERNEL}",
        "mlp_1": f"mlp/w2/{KERNEL}",
    }[modules[0]]
    return FromKeys((f"{block}/{layer}",), np.asarray)


def _side_by_side(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)
