"""A folder of PNG and JPEG files as a source, with class subfolders as labels."""

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmjax.data.base import DataError, Source
from cmjax.data.checks import spread
from cmjax.data.damage import Damage, first_whole
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES, OnDemandSource, kept_if_small, parallel_map
from cmjax.machine.files import AnyPath, files_below, is_bucket, to_path

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of the files that are read, in small or capital letters."""

HEADERS = 50
"""Pictures whose sizes are read, to suggest one."""


def folder(
    data_dir: str | AnyPath,
    split: str,
    *,
    image_size: int,
    channels: int = 3,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
) -> Source:
    """The PNG and JPEG files below a folder: short side resized to `image_size` (Lanczos), centre cropped, uint8.

    Labels are the names of the subfolders, sorted; files directly in the folder have none. A file that cannot be read
    is named in a warning, and the next one stands in for it.

    Args:   data_dir: the folder. split: "train" or "test": the subfolders of these names where both are there, else
            "test" is about a tenth of the files, chosen by a hash of their names, so that a file stays in its split
            when others are added. image_size: height and width of the examples, pixels. channels: 1 (grey) or 3 (RGB).
            memory_limit_bytes: sets that take more once decoded are not kept in memory. max_corrupt: how many files
            may be damaged; None: any number.
    Raises: DataError naming the folder or argument, where nothing can be read from it. The source's `gather` raises it
            where more than `max_corrupt` are damaged.
    """
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test", got "{split}"')
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if image_size < 1:
        raise DataError(f"image_size must be at least 1, got {image_size}")
    root = to_path(data_dir).expanduser()
    files, labels, num_classes = _files(root, split)
    damage = Damage(str(root), max_corrupt)
    reader = _Reader(root, files, labels, (image_size, image_size, channels), damage)
    source = OnDemandSource(reader.shape, num_classes, len(files), reader, damage)
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def check_folder(data_dir: str | AnyPath) -> None:
    """Raise DataError unless `data_dir` is a folder. One on a disk must have an image file in it."""
    root = to_path(data_dir).expanduser()
    _check_is_folder(root)
    if not is_bucket(root) and not any(map(_is_image, root.rglob("*"))):
        raise DataError(_without_images(root))


def picture_sizes(data_dir: str | AnyPath) -> list[tuple[int, int]]:
    """(width, height) of some pictures below a folder, read from the files' headers. Damaged files are left out."""
    from PIL import Image

    images = _listed(to_path(data_dir).expanduser())[0]
    sizes = []
    for file in (images[i] for i in spread(len(images), HEADERS)):
        # damaged files raise errors of many kinds
        with contextlib.suppress(Exception), file.open("rb") as opened, Image.open(opened) as image:
            sizes.append(image.size)
    return sizes


def _check_is_folder(root: AnyPath) -> None:
    if root.is_dir():
        return
    if root.is_file():
        raise DataError(f'{root}: is a file, and a folder of PNG or JPEG files is needed; .npz files are "arrays"')
    raise DataError(f"{root}: no such folder; a folder of PNG or JPEG files is needed")


def _files(root: AnyPath, split: str) -> tuple[list[AnyPath], np.ndarray | None, int | None]:
    """The image files of a split in sorted order, their labels, and how many classes there are over both splits."""
    _check_is_folder(root)
    own_folders = all((root / name).is_dir() for name in ("train", "test"))
    tops = {name: root / name if own_folders else root for name in ("train", "test")}
    listed = {top: _listed(top) for top in set(tops.values())}
    found = {top: images for top, (images, _) in listed.items()}
    top = tops[split]
    if not found[top]:
        raise DataError(_without_images(top))
    if split == "train":
        _say_what_is_left_out(top, *listed[top])
    files = found[top]
    if not own_folders:
        files = [file for file in files if _held_out(file.relative_to(root)) == (split == "test")]
        if not files:
            raise DataError(
                f'{root}: none of its {len(found[top])} images falls into split "{split}" (a tenth is held out by a '
                f'hash of the name); add images, or make the subfolders "train" and "test"'
            )
    in_class = [len(file.relative_to(top).parts) > 1 for file in files]
    if not any(in_class):
        return files, None, None
    if not all(in_class):
        loose = files[in_class.index(False)]
        raise DataError(f"{loose}: an image beside class subfolders; move it into one of them, or all out of them")
    classes = sorted({_class_name(file, top) for top in found for file in found[top]} - {""})
    number = {name: i for i, name in enumerate(classes)}
    return files, np.array([number[_class_name(file, top)] for file in files], np.int32), len(classes)


def _listed(top: AnyPath) -> tuple[list[AnyPath], list[AnyPath]]:
    """The image files below a folder, and the other files, sorted.

    Raises: DataError where a folder cannot be listed.
    """
    try:
        files = files_below(top)
    except PermissionError as error:
        raise DataError(f"{error.filename or top}: cannot be read: permission denied") from error
    images = [file for file in files if _is_image(file)]
    return images, [file for file in files if not _is_image(file) and not file.name.startswith(".")]


def _is_image(file: AnyPath) -> bool:
    """By its name. Files whose names begin with a dot are an operating system's own."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _without_images(top: AnyPath) -> str:
    """What to say of a folder in which there is no image file."""
    if _locked(top):
        return f"{top}: cannot be read: permission denied"
    others = _listed(top)[1]
    if not others:
        return f"{top}: holds no image files ({', '.join(SUFFIXES)}); put images or class subfolders into it"
    return f"{top}: holds no image files ({', '.join(SUFFIXES)}), but {_such_as(top, others)}; convert them to PNG"


def _say_what_is_left_out(top: AnyPath, images: list[AnyPath], others: list[AnyPath]) -> None:
    """Warn of other files, of subfolders without pictures, and of classes that are one."""
    if others:
        log.warning("%s: %s, not read: neither PNG nor JPEG", top, _such_as(top, others))
    classes = {_class_name(file, top) for file in images}
    if not is_bucket(top):
        empty = {sub.name for sub in top.iterdir() if sub.is_dir() and not sub.name.startswith(".")} - classes
        for name in sorted(empty):
            why = "cannot be read: permission denied" if _locked(top / name) else "holds no image files"
            log.warning("%s: %s, and is no class", top / name, why)
    if len(classes) == 1 and classes != {""}:
        log.warning('%s: has one class subfolder, "%s"; its label tells nothing', top, *classes)


def _such_as(top: AnyPath, files: list[AnyPath]) -> str:
    name = files[0].relative_to(top)
    return f"1 other file, {name}" if len(files) == 1 else f"{len(files)} other files, such as {name}"


def _locked(folder: AnyPath) -> bool:
    """Whether a folder on a disk may not be listed."""
    return not is_bucket(folder) and not os.access(folder, os.R_OK | os.X_OK)


def _class_name(file: AnyPath, top: AnyPath) -> str:
    parts = file.relative_to(top).parts
    return parts[0] if len(parts) > 1 else ""


def _held_out(name: AnyPath) -> bool:
    return int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:8], "big") % 10 == 0


def read_image(
    file: AnyPath, shape: tuple[int, int, int], *, background: str = "white"
) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture fitted to `shape` (h, w, c), c of 1 or 3: turned upright, resized (Lanczos) and centre cropped, uint8.

    Args:    background: the colour behind what is transparent.
    Returns: it and the (height, width) that it had, upright.
    Raises:  DataError saying why the file cannot be read. An animation is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG, whose other pictures are previews
                raise DataError(f"it is an animation of {frames} pictures; save one of them as a file of its own")
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(_in_mode(upright, channels, background), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.uint8).reshape(shape), (upright.height, upright.width)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("it is no picture, or of a kind that is not known here") from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise DataError(f"{type(error).__name__}: {error}") from error


def _in_mode(image: "Image.Image", channels: int, background: str) -> "Image.Image":
    """The picture in 8-bit grey or RGB, what is transparent laid over `background`."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which `convert` clips instead of scaling
        levels, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError("its pixels have more than 16 bits")
        grey = Image.fromarray((levels >> 8).astype(np.uint8))
        alpha = Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
        image = grey if clear is None else Image.merge("LA", (grey, alpha))
    elif image.mode == "F":
        raise DataError("its pixels are floating-point numbers; 8 and 16 bits are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("L" if channels == 1 else "RGB")


@dataclass(frozen=True)
class _Reader:
    """What the source reads by; a class of the module, so that it can be sent to another process."""

    root: AnyPath
    files: list[AnyPath]
    labels: np.ndarray | None
    shape: tuple[int, int, int]
    damage: Damage

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        examples = parallel_map(self._whole, [int(i) for i in indices], run=4)
        images = [image for image, _ in examples]
        batch = {"image": np.stack(images) if images else np.empty((0, *self.shape), np.uint8)}
        if self.labels is not None:
            batch["label"] = self.labels[[place for _, place in examples]]
        return batch

    def _whole(self, index: int) -> tuple[np.ndarray, int]:
        """The image at a place among the files, or at the next where one can be read, and the place."""
        return first_whole(self._image, index, self._name, len(self.files), self.damage)

    def _image(self, index: int) -> tuple[np.ndarray, int]:
        return read_image(self.files[index], self.shape)[0], index

    def _name(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))
