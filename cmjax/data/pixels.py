"""From a model's units to pixels: the rules of published code, which do not agree."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, UInt8

from cmjax.data.batches import to_uint8


def edm_uint8(images: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to 0..255 by 127.5x + 128, clipped and then truncated, as EDM and OpenAI's codes do.

    Rounding up where `to_uint8` rounds to even, it differs from it at exact halves alone.
    """
    return np.clip(np.asarray(images, np.float32) * 127.5 + 128, 0, 255).astype(np.uint8)


def truncated_uint8(images: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to 0..255 by 127.5x + 127.5, clipped and then truncated, as the released JAX code of consistency models
    does: half a grey level darker than the others on average."""
    return np.clip((np.asarray(images, np.float32) + 1) * 127.5, 0, 255).astype(np.uint8)


UINT8: dict[str, Callable[..., np.ndarray]] = {"round": to_uint8, "edm": edm_uint8, "truncate": truncated_uint8}
RULES = {
    "round": "127.5x + 127.5, rounded and clipped",
    "edm": "127.5x + 128, clipped and truncated",
    "truncate": "127.5x + 127.5, clipped and truncated",
}
"""What is said of each rule beside a figure."""
