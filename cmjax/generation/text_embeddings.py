"""Embeds captions as inputs of a pipeline's U-Net, to be written beside the latents of their images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmjax.data.base import DataError
from cmjax.data.latents import CAPTION_BYTES
from cmjax.interop.text_to_image import Conditions, TextToImage
from cmjax.system.mesh import batch_sharding, replicated

log = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float16).max)
SHOWN = 3
"""How many warnings show what is cut from a caption."""

Embed = Callable[[Mapping[str, Any], tuple[int, int]], dict[str, np.ndarray]]


def about_text(pipeline: TextToImage) -> dict[str, Any]:
    """Gives a manifest's entries of text embeddings: "text_encoder", a key of what makes them, and "text", the shape of
    each for one caption."""
    shapes = jax.eval_shape(lambda: pipeline.conditions(pipeline.tokens([""]), (0, 0)))
    return {"text_encoder": pipeline.text_key, "text": {name: list(one.shape[1:]) for name, one in shapes.items()}}


def embedder(pipeline: TextToImage, mesh: Mesh) -> Embed:
    """Makes the function (batch, size) -> the text embeddings of its captions, and the captions in UTF-8.

    The batch has "caption" (b,) and "size" (b, 2), of the images before they were cut to `size`. Embeddings are
    float32: "context", and for SDXL "pooled" and "sizes".
    """
    weights = jax.device_put(replace(pipeline, params={}, autoencoder=None), replicated(mesh))
    warn = _Few()

    def embed(batch: Mapping[str, Any], size: tuple[int, int]) -> dict[str, np.ndarray]:
        tokens = jax.device_put(pipeline.tokens(batch["caption"].tolist(), warn=warn), batch_sharding(mesh))
        values = {name: np.asarray(value) for name, value in _conditions(weights, tokens).items()}
        if "sizes" in values:
            values["sizes"] = sizes_of(batch["size"], size)
        return values | {"caption": np.array([_cut(caption) for caption in batch["caption"]])}

    return embed


@partial(jax.jit)
def _conditions(pipeline: TextToImage, tokens: Sequence[Any]) -> Conditions:
    return pipeline.conditions(tokens, (0, 0))


def sizes_of(original: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Makes SDXL's sizes, (b, 6) float32: the images' original height and width, the top and left corner of the centre
    that is kept of the scaled image, and the final height and width.   [Podell et al. 2023, sec. 2.2]"""
    target = np.broadcast_to(np.array(size, np.float64), original.shape)
    # scaled to cover the target, as `crops` does
    scaled = original * (target / original).max(axis=1, keepdims=True)
    return np.concatenate([original, np.floor((scaled - target) / 2 + 1e-6), target], axis=1).astype(np.float32)


def empty_prompt_of(pipeline: TextToImage) -> dict[str, np.ndarray]:
    """Computes the U-Net's inputs without a prompt, in float16 as captions' embeddings are.

    Raises: DataError where it is beyond float16.
    """
    arrays = {name: np.asarray(value) for name, value in pipeline.no_prompt().items()}
    for name, values in arrays.items():
        if not (np.abs(values) <= LARGEST).all():
            raise DataError(f"the empty prompt: its {name} is not finite, or beyond float16")
    return {name: values.astype(np.float16) for name, values in arrays.items()}


def _cut(caption: str) -> bytes:
    """Encodes a caption in UTF-8, cut between two characters where it is very long."""
    return caption.encode()[:CAPTION_BYTES].decode(errors="ignore").encode()


class _Few:
    """Logs the first warnings alone."""

    def __init__(self):
        self.count = 0

    def __call__(self, *message: Any) -> None:
        self.count += 1
        if self.count <= SHOWN:
            log.warning(*message)
        elif self.count == SHOWN + 1:
            log.warning("more captions are cut, which are not shown")
