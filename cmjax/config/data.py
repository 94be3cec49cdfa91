"""Reads the section `data`: where images come from, and what is done to them and to their labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError, Fields, suggestion
from cmjax.config.samples import AS_ENCODED, Decoding, read_decoding
from cmjax.data import sources
from cmjax.data.base import DataError
from cmjax.data.checks import check_source
from cmjax.data.crops import CROPS
from cmjax.data.folder import check_folder, image_sizes
from cmjax.data.latents import MANIFEST, latents, split_folder
from cmjax.data.tfds import BUILDERS, KNOWN, is_prepared, names_in
from cmjax.data.values import check_is_file
from cmjax.system.files import is_bucket, to_path

COLUMNS = ("image_column", "label_column", "caption_column")
"""The fields that name the columns of tables."""
USUAL_SIZES = (8, 16, 28, 32, 64)  # heights and widths that models of pixels are trained at
MEMORY_LIMIT_BYTES = 4 * 10**9  # what images that are kept in memory may take, where nothing else is said
MOST_CORRUPT = 10  # how many examples may be damaged


@dataclass(frozen=True)
class Data:
    """Says which data set is used, and how. image_size: (height, width); None, and channels 0, for those of the data.
    captions: whether the examples have captions, too. image_column, …: of tables; "" for those that are found."""

    name: str
    data_dir: str
    image_size: tuple[int, int] | None
    channels: int
    memory_limit_bytes: int
    max_corrupt: int
    crop: str = "lanczos"
    captions: bool = False
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    decoding: Decoding = AS_ENCODED

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of sources that decode images."""
        return {name: getattr(self, name) for name in ("memory_limit_bytes", "max_corrupt", "crop")}

    @property
    def columns(self) -> dict[str, str]:
        """The columns of tables that are named."""
        return {name: column for name in COLUMNS if (column := getattr(self, name))}

    def open(self, split: str) -> sources.Source:
        """Opens the examples of a split.

        Raises: DataError where they cannot be read, or the training images are all the same; ConfigError where the
                images are of another size than asked for.
        """
        if self.captions and self.name not in CAPTIONED:
            raise DataError(f"the data {self.name!r} have no captions; these may: {', '.join(CAPTIONED)}")
        source = SOURCES.get(self.name, _tfds)(self, split)
        sizes = ("image_size", self.image_size, source.shape[:-1]), ("channels", self.channels, source.shape[-1])
        for field, wanted, there in sizes:
            if wanted and wanted != there:
                problem = f"the images of {self.name} are {source.shape}; set it to 0 or to theirs"
                raise ConfigError(f"config.data.{field}={wanted!r}: {problem}")
        if split == "train":
            check_source(source, self.data_dir or self.name)
        return source

    def count(self, split: str) -> int:
        """Counts the examples of a split, and reads as few of them as possible. Raises: DataError, as `open`."""
        limit = self.memory_limit_bytes if self.name in OF_ARRAYS else 0  # a compressed array is read whole either way
        return len(SOURCES.get(self.name, _tfds)(replace(self, memory_limit_bytes=limit), split))


def _images(open_source: Callable[..., sources.Source], data: Data, split: str) -> sources.Source:
    images = {"image_size": data.image_size or (0, 0), "channels": data.channels or 3}
    return open_source(data.data_dir, split, **images, **data.reading)


def _captioned(open_source: Callable[..., sources.Source], data: Data, split: str) -> sources.Source:
    options = {"captions": data.captions, "caption_column": data.caption_column}
    return _images(partial(open_source, **options), data, split)


# what opens tars and tables is imported where it is used: most runs need neither
def _tars(data: Data, split: str) -> sources.Source:
    from cmjax.data.tars import tars

    return _images(tars, data, split)


def _find_tars(root: Any) -> None:
    from cmjax.data.tars import find_tars

    find_tars(root)


def _webdataset(data: Data, split: str) -> sources.Source:
    from cmjax.data.webdataset import webdataset

    return _captioned(webdataset, data, split)


def _tables(kind: str, data: Data, split: str) -> sources.Source:
    from cmjax.data.tables import tables

    return _images(partial(tables, kind=kind, captions=data.captions, **data.columns), data, split)


def _find_tables(kind: str, root: Any) -> None:
    from cmjax.data.tables import find_tables

    find_tables(root, kind)


def _find_samples(root: Any) -> None:
    from cmjax.data.webdataset import find_tars_of_samples

    find_tars_of_samples(root)


def _tfds(data: Data, split: str) -> sources.Source:
    return sources.tfds(data.name, split, data_dir=data.data_dir, image_size=data.image_size, **data.reading)


def _arrays(kind: str, data: Data, split: str) -> sources.Source:
    return sources.arrays(data.data_dir, split, kind=kind, memory_limit_bytes=data.memory_limit_bytes)


def _latents(data: Data, split: str) -> sources.Source:
    folder = split_folder(data.data_dir, split)
    # cmjax's own shards have a manifest; a folder of LightningDiT's has safetensors alone
    if not (folder / MANIFEST).is_file() and any(folder.glob("*.safetensors")):
        from cmjax.interop.lightning_latents import lightning_latents

        return lightning_latents(folder)
    return latents(data.data_dir, split, max_corrupt=data.max_corrupt)


SOURCES: dict[str, Callable[[Data, str], sources.Source]] = {
    "digits": lambda data, split: sources.digits(split),
    "arrays": partial(_arrays, "images"),
    "signals": partial(_arrays, "signals"),
    "points": partial(_arrays, "points"),
    "folder": partial(_captioned, sources.folder),
    "tars": _tars,
    "webdataset": _webdataset,
    "parquet": partial(_tables, "parquet"),
    "huggingface": partial(_tables, "huggingface"),
    "latents": _latents,
}
"""The readers of data by name; any other name is that of a data set of TFDS."""
OF_TABLES = ("parquet", "huggingface")
"""The names of data in tables, with columns."""
CAPTIONED = ("folder", "webdataset", *OF_TABLES)
"""The names of data whose images may have captions."""
OF_ANY_SIZE = ("folder", "tars", "webdataset", *OF_TABLES)
"""The names of data whose images are resized."""
FINDERS: dict[str, Callable[[Any], Any]] = {
    "tars": _find_tars,
    "webdataset": _find_samples,
    **{name: partial(_find_tables, name) for name in OF_TABLES},
}
"""Data by name -> the function that finds its files, and raises DataError where there are none."""
OF_ARRAYS = {"arrays": "images", "signals": "signals", "points": "points"}
"""The names of data in an .npz file, and of the array there."""
NO_IMAGES = ("signals", "points")
"""The names of data that are no images, and have other axes."""
OF_LATENTS = ("latents", "arrays")
"""The names of data that may be latents."""


def images_of(encoding: Mapping[str, Any]) -> Data:
    """Gives the data set that latents were encoded from, by `LatentSource.encoding`.

    Raises: DataError where it is not known.
    """
    if "images" not in encoding:
        raise DataError("nothing says which images the latents are of")
    name, data_dir, crop, shape = (encoding["images"][field] for field in ("name", "data_dir", "crop", "shape"))
    height, width, channels = shape
    # images that all had one size were not cropped, and any crop leaves them as they are
    crop = crop if crop in CROPS else Data.crop
    columns: dict[str, Any] = encoding["images"].get("columns", {})
    return Data(name, data_dir, (height, width), channels, MEMORY_LIMIT_BYTES, MOST_CORRUPT, crop, **columns)


def read_data(fields: Fields, *, there: bool = True) -> Data:
    """Reads which data set is used. there: False where no images will be read, so that its folder may be absent.

    Raises: ConfigError, of the name and the folder first.
    """
    name, data_dir = fields.text("name"), fields.path("data_dir")
    if there:
        _check_there(fields, name, data_dir)
    size, channels = _read_size(fields), fields.integer("channels", at_least=0, at_most=4096)
    what = name if name in NO_IMAGES else "images"
    if what != "images" and (size or channels):
        raise fields.error("image_size" if size else "channels", f"is of images, and the data are {what}: set it to 0")
    if name == "digits" and data_dir:
        raise fields.error("data_dir", "the digits come with scikit-learn; leave it empty")
    limit = int(1e9 * fields.number("memory_limit_gb", above=0, absent=MEMORY_LIMIT_BYTES / 1e9))
    corrupt = fields.integer("max_corrupt", at_least=0, absent=MOST_CORRUPT)
    decoding = read_decoding(fields)
    if decoding.autoencoder and name not in OF_LATENTS:
        raise fields.error("autoencoder", f"decodes latents, and the data {name!r} are {what}; leave it empty")
    if decoding != AS_ENCODED and name not in OF_LATENTS:
        field = "decode_tile" if decoding.tile else "decode_dtype"
        raise fields.error(field, f"is of latents, and the data {name!r} are {what}")
    if name in OF_ANY_SIZE and not size:
        usual = _usual_size(data_dir) if name == "folder" else ""
        what = "a folder of images" if name == "folder" else "images that may have any size"
        raise fields.error("image_size", f"must be given for {what}, in pixels{usual}")
    columns = _read_columns(fields, name)
    return Data(name, data_dir, size, channels, limit, corrupt, decoding=decoding, **columns)


def _read_columns(fields: Fields, name: str) -> dict[str, Any]:
    """Reads the names of columns, "" for those that are found by their content."""
    columns = {column: fields.text(column, absent="") for column in COLUMNS}
    for column, chosen in columns.items():
        of = CAPTIONED if column == "caption_column" else OF_TABLES
        if chosen and name not in of:
            raise fields.error(column, f"is of {', '.join(of)}, and the data are {name!r}: leave it empty")
    return columns


def _read_size(fields: Fields) -> tuple[int, int] | None:
    """Reads (height, width), or one number for both; None where it is 0."""
    value = fields.value("image_size")
    if isinstance(value, tuple | list):
        sides = tuple(value)
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in sides):
            raise fields.error("image_size", "must be a height and a width in pixels, like (32, 48), or one number")
        return sides
    side = fields.integer("image_size", at_least=0, at_most=4096)
    return (side, side) if side else None


def _check_there(fields: Fields, name: str, data_dir: str) -> None:
    """Raise ConfigError where no data set has this name, or there is nothing of it where it should be."""
    _check_name(fields, name, data_dir)
    if name == "digits":
        return
    if not data_dir:
        raise fields.error("data_dir", f"must be given for config.data.name={name!r}")
    try:
        if name == "folder":
            check_folder(data_dir)
        elif name in OF_ARRAYS:
            check_is_file(to_path(data_dir).expanduser(), OF_ARRAYS[name])
        elif name in FINDERS:
            FINDERS[name](to_path(data_dir).expanduser())
        elif name == "latents":
            split_folder(data_dir, "train")
    except (DataError, ImportError) as error:
        raise ConfigError(f"config.data.data_dir={error}") from error
    except OSError as error:
        raise fields.error("data_dir", f"cannot be read: {error.strerror or error}") from error


def _check_name(fields: Fields, name: str, data_dir: str) -> None:
    if name in SOURCES or name in BUILDERS or (data_dir and is_bucket(data_dir)):
        return
    root = Path(data_dir).expanduser()
    if is_prepared(root, name) if data_dir else name in KNOWN:
        return
    known, prepared, where = [*SOURCES, *BUILDERS], list(KNOWN), "data_dir"
    if data_dir:
        prepared = names_in(root)
        where = f"config.data.data_dir={data_dir!r}, which has {', '.join(prepared) or 'none'}"
    hint = suggestion(name, [*known, *prepared])
    raise fields.error("name", f"must be one of {', '.join(known)}{hint}, or a TFDS data set prepared in {where}")


def _usual_size(data_dir: str) -> str:
    """Describes the sizes of a folder's images, and suggests one for training; "" where they are not known."""
    # a bucket's headers are not read for a suggestion: each would be a request
    there = data_dir and not is_bucket(data_dir) and Path(data_dir).expanduser().exists()
    sizes = sorted(set(image_sizes(data_dir)), key=lambda size: size[0] * size[1]) if there else []
    if not sizes:
        return ""
    (small, large), shortest = (sizes[0], sizes[-1]), min(map(min, sizes))
    span = "{}x{}".format(*small) + ("" if small == large else " to {}x{}".format(*large))
    fits = max((size for size in USUAL_SIZES if size <= shortest), default=shortest)
    return f"; the images are {span}; {fits} is a usual choice"
