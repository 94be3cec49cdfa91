"""Damages real images little by little: a good metric notices."""

import io
from collections.abc import Callable

import numpy as np

from cmjax.metrics.functional import Images


def blurred(images: Images, strength: float, seed: int) -> np.ndarray:
    """Blurs by a Gaussian of `strength` pixels."""
    from PIL import Image, ImageFilter

    return _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(strength)), Image)


def noisy(images: Images, strength: float, seed: int) -> np.ndarray:
    """Adds Gaussian noise whose std is `strength` of the 255 grey levels."""
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    return np.clip(np.rint(images + 255 * strength * noise), 0, 255).astype(np.uint8)


def compressed(images: Images, strength: float, seed: int) -> np.ndarray:
    """Compresses by JPEG of quality 100 − `strength`."""
    from PIL import Image

    def through_jpeg(image):
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=round(100 - strength))
        with Image.open(io.BytesIO(content.getvalue())) as opened:
            return opened.convert(image.mode)

    return _each(images, through_jpeg, Image)


def fewer_modes(images: Images, labels: np.ndarray | None, strength: float, seed: int) -> np.ndarray:
    """Leaves out the fraction `strength` of the classes, those of the largest numbers; without labels, of the images
    by their brightness. Returns as many images, sampled again from the rest."""
    values = images.mean(axis=(1, 2, 3)) if labels is None else labels
    kinds = np.unique(values)
    most = kinds[max(round((1 - strength) * len(kinds)), 1) - 1]
    kept = np.flatnonzero(values <= most)
    return images[np.random.default_rng(seed).choice(kept, len(images))] if strength else images


def _each(images: np.ndarray, change: Callable, pillow) -> np.ndarray:
    """Applies `change` to each image as Pillow has it. pillow: the module PIL.Image."""
    opened = (pillow.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in images)
    return np.stack([np.asarray(change(image)) for image in opened]).reshape(images.shape)


STRENGTHS = {
    "blur": (0.0, 0.4, 0.6, 0.8, 1.2),
    "noise": (0.0, 0.15, 0.2, 0.3, 0.4),
    "JPEG": (0.0, 80.0, 88.0, 94.0, 98.0),
    "lost classes": (0.0, 0.1, 0.3, 0.5, 0.8),
}
"""Of each kind, from none to strong: pixels, fraction of the grey levels, 100 − quality, fraction of the classes."""


def damaged(kind: str, images: Images, labels: np.ndarray | None, strength: float, *, seed: int = 0) -> np.ndarray:
    """Damages images (n, h, w, c) uint8; at strength 0 they stay as they are."""
    if not strength:
        return images
    if kind == "lost classes":
        return fewer_modes(images, labels, strength, seed)
    return {"blur": blurred, "noise": noisy, "JPEG": compressed}[kind](images, strength, seed)
