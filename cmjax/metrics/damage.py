"""Real images made worse, little by little: what a metric must notice."""

import io
from collections.abc import Callable

import numpy as np

from cmjax.metrics.functional import Images


def blurred(images: Images, strength: float, seed: int) -> np.ndarray:
    """A Gaussian blur of `strength` pixels."""
    from PIL import Image, ImageFilter

    return _by_picture(images, lambda picture: picture.filter(ImageFilter.GaussianBlur(strength)), Image)


def noisy(images: Images, strength: float, seed: int) -> np.ndarray:
    """Gaussian noise whose std is `strength` of the 255 grey levels."""
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    return np.clip(np.rint(images + 255 * strength * noise), 0, 255).astype(np.uint8)


def compressed(images: Images, strength: float, seed: int) -> np.ndarray:
    """JPEG of quality 100 − `strength`."""
    from PIL import Image

    def through_jpeg(picture):
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=round(100 - strength))
        with Image.open(io.BytesIO(content.getvalue())) as opened:
            return opened.convert(picture.mode)

    return _by_picture(images, through_jpeg, Image)


def fewer_modes(images: Images, labels: np.ndarray | None, strength: float, seed: int) -> np.ndarray:
    """Leaves out the fraction `strength` of the classes, those of the largest numbers; without labels, of the images
    by their brightness. Returns as many images, sampled again from the rest."""
    values = images.mean(axis=(1, 2, 3)) if labels is None else labels
    kinds = np.unique(values)
    most = kinds[max(round((1 - strength) * len(kinds)), 1) - 1]
    kept = np.flatnonzero(values <= most)
    return images[np.random.default_rng(seed).choice(kept, len(images))] if strength else images


def _by_picture(images: np.ndarray, change: Callable, image) -> np.ndarray:
    pictures = (image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in images)
    return np.stack([np.asarray(change(picture)) for picture in pictures]).reshape(images.shape)


STRENGTHS = {
    "blur": (0.0, 0.4, 0.6, 0.8, 1.2),
    "noise": (0.0, 0.15, 0.2, 0.3, 0.4),
    "JPEG": (0.0, 80.0, 88.0, 94.0, 98.0),
    "lost classes": (0.0, 0.1, 0.3, 0.5, 0.8),
}
"""Of each kind, from none to strong: pixels, fraction of the grey levels, 100 − quality, fraction of the classes."""


def damaged(kind: str, images: Images, labels: np.ndarray | None, strength: float, *, seed: int = 0) -> np.ndarray:
    """The images (n, h, w, c) uint8 made worse; as they are at strength 0."""
    if not strength:
        return images
    if kind == "lost classes":
        return fewer_modes(images, labels, strength, seed)
    return {"blur": blurred, "noise": noisy, "JPEG": compressed}[kind](images, strength, seed)
