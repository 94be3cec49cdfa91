"""A folder of PNG and JPEG files as a source, with class subfolders as labels."""

import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cmjax.data.base import (
    MEMORY_LIMIT_BYTES,
    ArraySource,
    DataError,
    OnDemandSource,
    Progress,
    Source,
    decoded_bytes,
    parallel_map,
)
from cmjax.files import AnyPath, files_below, to_path

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of the files that are read, in small or capital letters."""


def folder(
    data_dir: str | AnyPath,
    split: str,
    *,
    image_size: int,
    channels: int = 3,
    progress: Progress | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
) -> Source:
    """The PNG and JPEG files below a folder: short side resized to `image_size` (Lanczos), centre cropped, uint8.

    Labels are the names of the subfolders, sorted; files directly in the folder have none. Files that cannot be read
    are skipped and named in a warning.

    Args:   data_dir: the folder. split: "train" or "test": the subfolders of these names where both are there, else
            "test" is about a tenth of the files, chosen by a hash of their names, so that a file stays in its split
            when others are added. image_size: height and width of the examples, pixels. channels: 1 (grey) or 3 (RGB).
            memory_limit_bytes: larger sets are decoded on demand. max_corrupt: how many files may be damaged.
    Raises: DataError naming the folder or argument, where nothing can be read from it.
    """
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test", got "{split}"')
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if image_size < 1:
        raise DataError(f"image_size must be at least 1, got {image_size}")
    root = to_path(data_dir).expanduser()
    files, labels, num_classes = _files(root, split)
    decoder = _Decoder(root, image_size, channels, max_corrupt)
    description = f"reading {root.name}"
    if decoded_bytes(len(files), decoder.shape) <= memory_limit_bytes:
        return _in_memory(decoder, files, labels, num_classes, description, progress)
    return _on_demand(decoder, files, labels, num_classes, description, progress)


def _files(root: AnyPath, split: str) -> tuple[list[AnyPath], np.ndarray | None, int | None]:
    """The image files of a split in sorted order, their labels, and how many classes there are over both splits."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data_dir must be a folder of PNG or JPEG files")
    own_folders = all((root / name).is_dir() for name in ("train", "test"))
    tops = {name: root / name if own_folders else root for name in ("train", "test")}
    found = {top: _images_below(top) for top in set(tops.values())}
    top = tops[split]
    if not found[top]:
        raise DataError(f"{top}: holds no image files ({', '.join(SUFFIXES)}); put images or class subfolders into it")
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


def _images_below(top: AnyPath) -> list[AnyPath]:
    """Files whose names begin with a dot are an operating system's own."""
    return [file for file in files_below(top) if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]


def _class_name(file: AnyPath, top: AnyPath) -> str:
    parts = file.relative_to(top).parts
    return parts[0] if len(parts) > 1 else ""


def _held_out(name: AnyPath) -> bool:
    return int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:8], "big") % 10 == 0


def read_image(file: AnyPath, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture fitted to `shape` (h, w, c), c of 1 or 3: turned upright, resized (Lanczos) and centre cropped, uint8.

    Returns: it and the (height, width) that it had. Raises: DataError saying why the file cannot be read.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(_in_mode(upright, channels), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted, np.uint8).reshape(shape), (upright.height, upright.width)
    except Exception as error:  # damaged files raise errors of many kinds
        raise DataError(f"{type(error).__name__}: {error}") from error


@dataclass
class _Decoder:
    """Reads one file at a time, and says which ones it could not."""

    root: AnyPath
    image_size: int
    channels: int
    max_corrupt: int | None
    named: set[AnyPath] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def read(self, file: AnyPath) -> np.ndarray | str:
        """The image, or why it cannot be read."""
        try:
            return read_image(file, self.shape)[0]
        except DataError as error:
            return str(error)

    def check_header(self, file: AnyPath) -> str | None:
        """Why the file's header cannot be read, without decoding the pixels."""
        from PIL import Image

        try:
            with file.open("rb") as opened, Image.open(opened):
                return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def warn(self, unreadable: dict[AnyPath, str]) -> None:
        """Name at most 10 files, then say how many there are; a file is not named twice."""
        unreadable = {file: why for file, why in unreadable.items() if file not in self.named}
        if not unreadable:
            return
        self.named.update(unreadable)
        lines = [f"  {file}: {why}" for file, why in list(unreadable.items())[:10]]
        if len(unreadable) > 10:
            lines.append(f"  and {len(unreadable) - 10} more")
        logging.getLogger(__name__).warning(
            "%s: skipped %d image files that cannot be read:\n%s", self.root, len(unreadable), "\n".join(lines)
        )
        if self.max_corrupt is not None and len(self.named) > self.max_corrupt:
            raise DataError(
                f"{self.root}: {len(self.named)} image files cannot be read; repair or remove them, or allow more by "
                f"config.data.max_corrupt, which is {self.max_corrupt}"
            )


def _in_mode(image: "Image.Image", channels: int) -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which `convert` clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _in_memory(decoder, files, labels, num_classes, description, progress, *, chunk: int = 1024) -> ArraySource:
    images = np.empty((len(files), *decoder.shape), np.uint8)
    unreadable = {}
    for start in range(0, len(files), chunk):
        part = files[start : start + chunk]
        for i, result in enumerate(parallel_map(decoder.read, part, run=8), start):
            if isinstance(result, str):
                unreadable[files[i]] = result
            else:
                images[i] = result
        if progress is not None:
            progress(description, start + len(part), len(files))
    decoder.warn(unreadable)
    kept = _kept(decoder.root, files, unreadable)
    if unreadable:
        images, labels = images[kept], None if labels is None else labels[kept]
    return ArraySource(images, labels, num_classes)


def _on_demand(decoder, files, labels, num_classes, description, progress, *, chunk: int = 4096) -> OnDemandSource:
    """Only headers are checked beforehand. A file whose pixels prove damaged stands aside for its successor in the
    list, so that a batch remains a function of (seed, step)."""
    unreadable = {}
    for start in range(0, len(files), chunk):
        part = files[start : start + chunk]
        reasons = parallel_map(decoder.check_header, part)
        unreadable |= {file: why for file, why in zip(part, reasons, strict=True) if why is not None}
        if progress is not None:
            progress(description, start + len(part), len(files))
    decoder.warn(unreadable)
    kept = _kept(decoder.root, files, unreadable)
    files, labels = [files[i] for i in kept], None if labels is None else labels[kept]

    return OnDemandSource(decoder.shape, num_classes, len(files), _Reader(decoder, files, labels))


@dataclass(frozen=True)
class _Reader:
    """What an on-demand source reads by; a class of the module, so that it can be sent to another process."""

    decoder: _Decoder
    files: list[AnyPath]
    labels: np.ndarray | None

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        chosen = [int(i) for i in indices]
        images = parallel_map(self.decoder.read, [self.files[i] for i in chosen], run=4)
        for position, image in enumerate(images):
            tries = 0
            while isinstance(image, str):
                self.decoder.warn({self.files[chosen[position]]: image})
                tries += 1
                if tries == len(self.files):
                    raise DataError(f"{self.decoder.root}: not one image file can be read: {image}")
                chosen[position] = (chosen[position] + 1) % len(self.files)
                image = self.decoder.read(self.files[chosen[position]])
            images[position] = image
        batch = {"image": np.stack(images) if images else np.empty((0, *self.decoder.shape), np.uint8)}
        if self.labels is not None:
            batch["label"] = self.labels[chosen]
        return batch


def _kept(root: AnyPath, files: list[AnyPath], unreadable: dict[AnyPath, str]) -> np.ndarray:
    kept = np.array([i for i, file in enumerate(files) if file not in unreadable], np.int64)
    if len(kept) == 0:
        file, why = next(iter(unreadable.items()))
        raise DataError(f"{root}: none of its {len(files)} image files can be read; the first is {file}: {why}")
    return kept
