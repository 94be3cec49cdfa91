"""The networks with published weights that images are judged by: a row each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.data.batches import preprocess
from cmjax.interop.inception import load_inception
from cmjax.interop.lpips import load_lpips
from cmjax.interop.vit import load_clip, load_dinov2
from cmjax.nets.features.inception import Inception
from cmjax.nets.features.lpips import lpips
from cmjax.nets.features.vit import CLIP, DINOV2, clip_inputs, dinov2_inputs

Outputs = dict[str, Array]


@dataclass(frozen=True)
class Published:
    """A network whose weights are published.

    about: its name. files: alternatives, each the names of all files that it takes. source: where they come from.
    load: those files -> parameters. apply: (parameters, images (b, h, w, 3) uint8) -> outputs with a row for each.
    batch: images at once on a device.
    """

    about: str
    files: tuple[tuple[str, ...], ...]
    source: str
    load: Callable[..., Any]
    apply: Callable[[Any, Array], Outputs]
    batch: int


def _inception(params: Any, images: Array) -> Outputs:
    return Inception().apply({"params": params}, images)  # pyright: ignore[reportReturnType]


def _dinov2(params: Any, images: Array) -> Outputs:
    return {"features": jnp.asarray(DINOV2.apply({"params": params}, dinov2_inputs(images, DINOV2.side)))}


def _clip(params: Any, images: Array) -> Outputs:
    embedded = jnp.asarray(CLIP.apply({"params": params}, clip_inputs(images, CLIP.side)))
    return {"features": embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)}


LEAST_SIDE = 64
"""Smaller images are enlarged for LPIPS: four poolings leave nothing of them."""


def _pairs(params: Any, images: Array) -> Outputs:
    """Of every image its distance to the other of its pair."""
    pixels = preprocess(images, jnp.zeros(()), horizontal_flip=False)
    return {"distances": jnp.repeat(lpips(params, pixels[0::2], pixels[1::2], resize=LEAST_SIDE), 2)}


PUBLISHED: dict[str, Published] = {
    "inception": Published(
        "InceptionV3",
        (
            ("pt_inception-2015-12-05-6726825d.pth",),
            ("weights-inception-2015-12-05-6726825d.pth",),
            ("inception_v3_weights_fid.pickle",),
        ),
        "github.com/mseitzer/pytorch-fid (releases), github.com/toshas/torch-fidelity (releases) or "
        "github.com/matthias-wright/jax-fid, in this order",
        load_inception,
        _inception,
        batch=32,
    ),
    "dinov2": Published(
        "DINOv2 ViT-L/14",
        (("dinov2_vitl14_pretrain.pth",),),
        "dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        load_dinov2,
        _dinov2,
        batch=32,
    ),
    "clip": Published(
        "CLIP ViT-L/14@336",
        (("clip-vit-large-patch14-336.bin",), ("clip-vit-large-patch14-336.safetensors",)),
        "huggingface.co/openai/clip-vit-large-patch14-336 (pytorch_model.bin, under this name)",
        load_clip,
        _clip,
        batch=16,
    ),
    "vgg": Published(
        "LPIPS of VGG16",
        (("vgg16-397923af.pth", "vgg.pth"),),
        "download.pytorch.org/models and github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)",
        load_lpips,
        _pairs,
        batch=32,
    ),
}
