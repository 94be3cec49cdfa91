"""The section `data`: where images come from, and what is done to them and to their labels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Array

from cmjax.config.fields import ConfigError, Fields
from cmjax.data import augment, sources
from cmjax.data.base import DataError
from cmjax.data.workers import check_grain

AUGMENTATIONS = {"edm": augment.edm}


@dataclass(frozen=True)
class Data:
    """Which data set, and how it is read. image_size, channels: 0 for those of the data."""

    name: str
    data_dir: str
    image_size: int
    channels: int
    memory_limit_bytes: int
    max_corrupt: int

    def open(self, split: str, progress: Callable[..., Any] | None = None) -> sources.Source:
        """The examples of a split. progress: (description, done, total), called now and then.

        Raises: DataError where they cannot be read; ConfigError where the images are of another size than asked for.
        """
        source = SOURCES.get(self.name, _tfds)(self, split, progress)
        for field, size, found in (
            ("image_size", self.image_size, source.shape[:2]),
            ("channels", self.channels, source.shape[2:]),
        ):
            if size and size not in found:
                problem = f"the images of {self.name} are {source.shape}; set it to 0 or to theirs"
                raise ConfigError(f"config.data.{field}={size!r}: {problem}")
        return source


def _digits(data: Data, split: str, progress: Callable[..., Any] | None) -> sources.Source:
    return sources.digits(split)


def _arrays(data: Data, split: str, progress: Callable[..., Any] | None) -> sources.Source:
    return sources.arrays(data.data_dir, split, memory_limit_bytes=data.memory_limit_bytes)


def _folder(data: Data, split: str, progress: Callable[..., Any] | None) -> sources.Source:
    size = {"image_size": data.image_size, "channels": data.channels or 3}
    return sources.folder(data.data_dir, split, **size, **_decoding(data, progress))


def _tfds(data: Data, split: str, progress: Callable[..., Any] | None) -> sources.Source:
    return sources.tfds(data.name, split, data_dir=data.data_dir, **_decoding(data, progress))


def _decoding(data: Data, progress: Callable[..., Any] | None) -> dict[str, Any]:
    limits = {"memory_limit_bytes": data.memory_limit_bytes, "max_corrupt": data.max_corrupt}
    return {"progress": progress, **limits}


SOURCES: dict[str, Callable[[Data, str, Callable[..., Any] | None], sources.Source]] = {
    "digits": _digits,
    "arrays": _arrays,
    "folder": _folder,
}
"""What reads the data by their name; any other name is that of a data set of TFDS."""


def read_data(fields: Fields, *, there: bool = True) -> Data:
    """The section's data set. there: False where nothing will be read, so that its folder need not be told."""
    name, data_dir = fields.text("name"), fields.text("data_dir")
    size, channels = fields.integer("image_size", at_least=0), fields.integer("channels", at_least=0)
    if name != "digits" and not data_dir and there:
        raise fields.error("data_dir", f"must be given for config.data.name={name!r}")
    if name == "digits" and data_dir:
        raise fields.error("data_dir", "the digits come with scikit-learn; leave it empty")
    limit = int(1e9 * (fields.number("memory_limit_gb", above=0) if fields.has("memory_limit_gb") else 4.0))
    corrupt = fields.integer("max_corrupt", at_least=0) if fields.has("max_corrupt") else 10
    if name == "folder" and not size:
        raise fields.error("image_size", "must be given for a folder of images, in pixels")
    return Data(name, data_dir, size, channels, limit, corrupt)


def read_label_dropout(data: Fields, net: Fields) -> float:
    """The share of labels that training leaves out, for classifier-free guidance."""
    rate = data.number("label_dropout", at_least=0)
    if rate >= 1:
        raise data.error("label_dropout", "must be below 1: the share of labels that are left out")
    if rate and not net.boolean("class_conditional"):
        raise data.error("label_dropout", "config.net.class_conditional=False: there are no labels to leave out")
    return rate


def read_workers(data: Fields) -> int:
    workers = data.integer("workers", at_least=0) if data.has("workers") else 0
    try:
        check_grain(workers)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return workers


def read_augment(data: Fields, net: Fields, kind: str) -> Callable[..., tuple[Array, Array]] | None:
    """(images, key) -> (images, labels); the network must take the labels, for it models images without."""
    if not data.text("augment"):
        return None
    probabilities = data.call("augment", AUGMENTATIONS)
    if kind != "denoiser":
        problem = (
            "only config.objective.name='denoising' trains with augmentation; a student is given images as they are"
        )
        raise data.error("augment", f"{problem}: leave it empty")
    if data.boolean("horizontal_flip"):
        problem = "config.data.augment mirrors images too, and tells the network of it"
        raise data.error("horizontal_flip", f"{problem}: set it to False")
    if not net.has("augment_dim"):
        raise data.error("augment", f"config.net.name={net.text('name')!r} has no input for its labels; leave it empty")
    size, takes = augment.label_size(probabilities), net.integer("augment_dim", at_least=0)
    if takes != size:
        problem = f"it gives each image {size} labels, and the network takes config.net.augment_dim={takes}"
        raise data.error("augment", f"{problem}: set that to {size}")
    return partial(augment.augment, probabilities=probabilities)
