"""Damages real images little by little: a good metric notices."""

import io

import numpy as np
from PIL import Image, ImageFilter

from cmjax.metrics.functional import Images

STRENGTHS = {
    "blur": (0.0, 0.4, 0.6, 0.8, 1.2),
    "noise": (0.0, 0.15, 0.2, 0.3, 0.4),
    "JPEG": (0.0, 80.0, 88.0, 94.0, 98.0),
    "lost classes": (0.0, 0.1, 0.3, 0.5, 0.8),
}
"""Kind of damage -> its strengths, from none to strong: the blur's std in pixels, the noise's as a fraction of the 255
grey levels, 100 − quality, the fraction of the classes that is left out."""


def damaged(kind: str, images: Images, labels: np.ndarray | None, strength: float) -> np.ndarray:
    """Damages images (n, h, w, c) uint8; at strength 0 they stay as they are."""
    if not strength:
        return images
    # one seed for all strengths, so that they differ in strength alone
    rng = np.random.default_rng(0)
    if kind == "lost classes":
        return _fewer_modes(images, labels, strength, rng)
    if kind == "noise":
        return np.clip(np.rint(images + 255 * strength * rng.standard_normal(images.shape)), 0, 255).astype(np.uint8)
    # Pillow has no grey images with an axis of channels
    opened = (Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in images)
    blur = ImageFilter.GaussianBlur(strength)
    changed = (image.filter(blur) if kind == "blur" else _through_jpeg(image, strength) for image in opened)
    return np.stack([np.asarray(image) for image in changed]).reshape(images.shape)


def _through_jpeg(image: Image.Image, strength: float) -> Image.Image:
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=round(100 - strength))
    with Image.open(content) as opened:
        return opened.convert(image.mode)


def _fewer_modes(images: Images, labels: np.ndarray | None, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Leaves out the classes of the largest numbers; without labels, of the images by their brightness. Returns as many
    images, sampled again from the rest."""
    values = images.mean(axis=(1, 2, 3)) if labels is None else labels
    kinds = np.unique(values)
    most = kinds[max(round((1 - strength) * len(kinds)), 1) - 1]
    return images[rng.choice(np.flatnonzero(values <= most), len(images))]
