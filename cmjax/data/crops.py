"""Ways to cut an image to a size: both scale it to cover the size and keep the centre."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from cmjax.data.base import DataError

if TYPE_CHECKING:
    from PIL import Image


def lanczos(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """Scales by Lanczos' filter once."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def adm(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """Halves by box filters while the shorter side is at least twice the size, then scales by a bicubic filter.

    It is what published models of ImageNet are trained on.   [Dhariwal & Nichol 2021, released code]

    Raises: DataError where the size is no square.
    """
    from PIL import Image

    if height != width:
        raise DataError(f"ADM's crop is a square, and {height}x{width} is asked for")
    while min(image.size) >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = height / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


CROPS: dict[str, Callable[["Image.Image", int, int], "Image.Image"]] = {"lanczos": lanczos, "adm": adm}
