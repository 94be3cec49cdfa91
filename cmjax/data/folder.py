"""Opens a folder of PNG and JPEG files as a source, with class subfolders as labels."""

import contextlib
import io
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cmjax.data.base import DataError, Source, check_split
from cmjax.data.crops import CROPS
from cmjax.data.layout import is_image, is_tools_own, list_files, read_split, without_images
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES, Damage, OnDemandSource, kept_if_small, parallel_map
from cmjax.data.values import spread
from cmjax.system.content import content_key, files_key
from cmjax.system.files import AnyPath, is_bucket, iterate_files, to_path
from cmjax.system.zips import ZipPath, is_zip

if TYPE_CHECKING:
    from PIL import Image

HEADERS = 50
"""Images whose sizes are read, to suggest one."""


def folder(
    data_dir: str | AnyPath,
    split: str,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    crop: str = "lanczos",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
    captions: bool = False,
    caption_column: str = "",
) -> Source:
    """Opens the PNG and JPEG files below a folder: resized to cover `image_size`, centre cropped, uint8.

    Labels are the names of the subfolders, sorted, or those of a `dataset.json`; files directly in the folder have
    none. Subfolders that are splits by their names, train beside test, val, …, are taken as they are; see `layout`. A
    file that cannot be read is named in a warning, and the next one replaces it.

    Args:   data_dir: the folder, or a .zip of one, which is read in place. split: "train" or "test". Without subfolders
            for them, "test" is about a tenth of the files, chosen by a hash of their names, so that a file stays in its
            split when others are added; it is never all of a class. image_size: of the examples, pixels: height and
            width, or both in one number. channels: 1 (grey) or 3 (RGB). crop: how they are resized, of `CROPS`.
            memory_limit_bytes: sets that take more once decoded are not kept in memory. max_corrupt: how many files
            may be damaged; None: any number. captions: whether the examples have captions, too, see `ImageSource`.
            caption_column: the name of the caption in metadata.jsonl, "" for "text" and the like.
    Raises: DataError naming the folder or argument, where nothing can be read from it, or its layout can be read in
            several ways. The source's `gather` raises it where more than `max_corrupt` are damaged.
    """
    check_split(split)
    shape = check_images(image_size, channels)
    root = _root_of(data_dir)
    listed, texts = read_split(root, split, captions=captions), None
    if captions:
        from cmjax.data.captions import FolderCaptions

        texts = FolderCaptions(root, caption_column)
    source = FolderSource(
        shape=shape,
        length=len(listed.files),
        damage=Damage(str(root), max_corrupt),
        class_names=listed.class_names,
        labels=listed.labels,
        root=root,
        files=listed.files,
        crop=crop,
        captions=texts,
    )
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def check_images(image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
    """Gives the shape (height, width, channels) of images. Raises: DataError naming the argument that is out of
    range."""
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise DataError(f"image_size must be at least 1, got {image_size}")
    return height, width, channels


def check_folder(data_dir: str | AnyPath) -> None:
    """Raises DataError unless `data_dir` is a folder, or a .zip. One on a disk must have an image file in it."""
    root = _root_of(data_dir)
    files = root.files() if isinstance(root, ZipPath) else [] if is_bucket(root) else iterate_files(root, is_tools_own)
    if not is_bucket(root) and not any(map(is_image, files)):
        raise DataError(without_images(root))


def image_sizes(data_dir: str | AnyPath) -> list[tuple[int, int]]:
    """Reads (width, height) of some images below a folder from the files' headers. Damaged files are left out."""
    from PIL import Image

    images = list_files(_root_of(data_dir))[0]
    sizes = []
    for file in (images[i] for i in spread(len(images), HEADERS)):
        # damaged files raise errors of many kinds
        with contextlib.suppress(Exception), file.path.open("rb") as opened, Image.open(opened) as image:
            sizes.append(image.size)
    return sizes


def _root_of(data_dir: str | AnyPath) -> AnyPath:
    """Gives the path of a folder, or of a .zip as one. Raises: DataError where there is none."""
    root = to_path(data_dir).expanduser()
    if root.is_dir():
        return root
    if is_zip(root) and is_bucket(root):
        raise DataError(f"{root}: a .zip is read from a disk; copy it to one")
    if root.is_file():
        if not is_zip(root):
            other = f"{root}: is a file, and a folder of PNG or JPEG files is needed, or a .zip of one"
            raise DataError(f'{other}; .npz files are "arrays"')
        try:
            ZipPath(root).files()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{root}: is no .zip file, or only a part of it is here ({error})") from error
        return cast(AnyPath, ZipPath(root))
    raise DataError(f"{root}: no such folder; a folder of PNG or JPEG files is needed")


def read_image(
    file: AnyPath | bytes, shape: tuple[int, int, int], *, background: str = "white", crop: str = "lanczos"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads an image and fits it to `shape` (h, w, c), c of 1 or 3: upright, resized, centre cropped, uint8.

    Args:    file: its path, or its content. background: the colour behind what is transparent. crop: of `CROPS`.
    Returns: it and the (height, width) that it had, upright.
    Raises:  DataError saying why the file cannot be read. An animation is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened, Image.open(opened) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG, whose other images are previews
                raise DataError(f"it is an animation of {frames} images; save one of them as a file of its own")
            # a camera stores a photograph as its sensor was held, and the turn in a tag
            upright = ImageOps.exif_transpose(image)
            fitted = CROPS[crop](_in_mode(upright, channels, background), height, width)
        return np.asarray(fitted, np.uint8).reshape(shape), (upright.height, upright.width)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("it is no image, or of a kind that is not known here") from error
    except Exception as error:  # damaged files raise errors of many kinds
        why = error.strerror if isinstance(error, OSError) else None  # without the path, which the caller adds
        raise DataError(why or f"{type(error).__name__}: {error}") from error


def _in_mode(image: "Image.Image", channels: int, background: str) -> "Image.Image":
    """Converts an image to 8-bit grey or RGB, what is transparent laid over `background`."""
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


@dataclass(frozen=True, kw_only=True)
class ImageSource(OnDemandSource):
    """Examples of encoded images, each resized by `crop`. A subclass says where an image is.

    Where there are `captions`, `gather` gives "caption" (n,), texts, and "size" (n, 2), height and width of the images
    before they were cut.
    """

    crop: str
    captions: Any = None

    def file(self, index: int) -> AnyPath | bytes:
        """Gives the path or the content of an image."""
        raise NotImplementedError

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""

        def example(index: int) -> tuple[Any, ...]:
            caption = None if self.captions is None else self.caption(index)
            return *read_image(self.file(index), self.shape, crop=self.crop), caption, index

        # The place of the image that was read comes with it: it may be another than was asked for, with another label.
        examples = parallel_map(partial(self.first_whole, example), indices.tolist(), run=4)
        images, sizes, captions, places = zip(*examples, strict=True) if examples else ((),) * 4
        batch = {"image": np.stack(images) if images else np.empty((0, *self.shape), np.uint8)}
        if self.labels is not None:
            batch["label"] = self.labels[list(places)]
        if self.captions is not None:
            batch |= {"caption": np.array(captions, object), "size": np.array(sizes, np.int64).reshape(-1, 2)}
        return batch

    def caption(self, index: int) -> str:
        """Gives the caption of an example. Raises: DataError where it has none."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FolderSource(ImageSource):
    """Examples of image files below `root`."""

    root: AnyPath
    files: list[AnyPath]

    def key(self) -> str:
        """Computes a key of the files' content and their labels."""
        # the first crop is not named, so that it keeps the keys that it had alone
        return content_key(files_key(self.files), self.labels, *([] if self.crop == "lanczos" else [self.crop]))

    def name(self, index: int) -> str:
        """Gives the file's path from the folder on."""
        return str(self.files[index].relative_to(self.root))

    def file(self, index: int) -> AnyPath:
        """See `ImageSource`."""
        return self.files[index]

    def caption(self, index: int) -> str:
        """See `ImageSource`."""
        return self.captions[self.files[index]]
