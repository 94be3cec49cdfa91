"""Opens TFDS data sets as sources, read and prepared without TensorFlow."""

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from cmjax.data.base import DataError, Source
from cmjax.data.decoding import decode_image
from cmjax.data.folder import read_image
from cmjax.data.labels import Numbering, number_labels
from cmjax.data.on_demand import CHUNK, MEMORY_LIMIT_BYTES, Damage, OnDemandSource, kept_if_small, parallel_map
from cmjax.data.values import spread
from cmjax.system.content import content_key, files_key
from cmjax.system.files import is_bucket

BUILDERS = {"cifar10": "Cifar10", "mnist": "Mnist"}
"""Data sets that can be prepared here: module of `cmjax.data.builders` -> class."""

KNOWN: dict[str, tuple[tuple[int, int, int], int | None]] = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "svhn_cropped": ((32, 32, 3), 10),
    "downsampled_imagenet/32x32": ((32, 32, 3), None),
    "downsampled_imagenet/64x64": ((64, 64, 3), None),
    "imagenet_resized/32x32": ((32, 32, 3), 1000),
    "imagenet_resized/64x64": ((64, 64, 3), 1000),
}
"""TFDS name -> (height, width, channels) of an example, and the number of classes where it has labels: for plans of
data that are not here."""

SMALL_PIXELS = 64 * 64
"""Images up to here are decoded on one thread: several spend longer waiting for Python's lock than decoding."""


LABELS_LOOKED_AT = 2000
BYTES_LOOKED_AT = 256 * 2**20
"""Records whose labels are read, to see which classes there are, and the most that is read for it."""


def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | Path,
    image_size: tuple[int, int] | None = None,
    crop: str = "lanczos",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
) -> Source:
    """Opens an image data set of TFDS: prepared in `data_dir`, or downloaded and prepared there (cifar10, mnist).

    Args:   name: "cifar10", "mnist", or any data set in `data_dir`, with "/config" or "/version" where it has them.
            split: as TFDS writes it: "train", "test", "train[:1000]". data_dir: the folder TFDS calls so.
            image_size, crop: height and width of images that have several sizes in the data set, and how they are
            resized to cover them, of `CROPS`.
            memory_limit_bytes: sets that take more once decoded are not kept in memory. max_corrupt: how many
            examples may be damaged; the next one in the data replaces each.
    Raises: DataError saying what is missing, and which file to put where when there is no network. The source's
            `gather` raises it where more than `max_corrupt` are damaged.
    """
    if is_bucket(data_dir):
        raise DataError(f"{data_dir}: TFDS's files are read from a disk; copy them to one, and name that folder")
    root = Path(data_dir).expanduser()
    if not is_prepared(root, name):
        if name not in BUILDERS:
            raise DataError(
                f'{root / name}: no data set "{name}" is prepared there. Prepared in {root}: '
                f"{', '.join(names_in(root)) or 'none'}; can be downloaded: {', '.join(BUILDERS)}"
            )
        from cmjax.data.builders.preparing import prepare

        prepare(getattr(importlib.import_module(f"cmjax.data.builders.{name}"), BUILDERS[name]), root)
    prepared = _prepared(root, name)
    if prepared is None:
        raise DataError(f"{root / name}: TFDS prepared it, yet no dataset_info.json is to be found there")
    source = _open(prepared, split, max_corrupt, image_size, crop)
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def names_in(root: Path) -> list[str]:
    """Lists the data sets that are prepared in TFDS's folder, sorted."""
    return sorted({str(info.parent.parent.relative_to(root)) for info in root.glob("*/*/dataset_info.json")})


def is_prepared(root: Path, name: str) -> bool:
    """Says whether a data set is prepared in TFDS's folder."""
    return _prepared(root, name) is not None


def _prepared(root: Path, name: str) -> Path | None:
    """Finds the newest version of `name` that is complete: TFDS writes dataset_info.json last."""
    base = root / name
    if (base / "dataset_info.json").is_file():
        return base
    versions = [info.parent for info in base.glob("*/dataset_info.json") if _version(info.parent.name)]
    return max(versions, key=lambda version: _version(version.name), default=None)


def _version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(int(part) for part in parts) if len(parts) == 3 and all(part.isdigit() for part in parts) else ()


def _open(
    prepared: Path, split: str, max_corrupt: int | None, image_size: tuple[int, int] | None, crop: str
) -> OnDemandSource:
    """Opens the records that TFDS finds; parsing and decoding them here is four times as fast."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split=split, deserialize_method=raw)
        length = len(records)
    except Exception as error:
        raise DataError(
            f'{prepared}: cannot read split "{split}"; it has {", ".join(builder.info.splits)}: {error}'
        ) from error
    if length == 0:
        raise DataError(f'{prepared}: split "{split}" holds no examples')
    image_key, label_key = _feature_names(prepared, builder.info.features, cropped=image_size is not None)
    shape, cropped = builder.info.features[image_key].shape, None
    if image_size is not None and None in shape:
        shape, cropped = (*image_size, shape[2] or 3), crop
    classes = None if label_key is None else _classes(prepared, label_key, split)

    return TfdsSource(
        shape=shape,
        length=length,
        damage=Damage(f"{prepared}, {split}", max_corrupt),
        class_names=None if classes is None else classes.names,
        records=records,
        files=[(str(part.filename), part.skip, part.take) for part in builder.info.splits[split].file_instructions],
        image_key=image_key,
        label_key=label_key,
        classes=classes,
        crop=cropped,
    )


@functools.lru_cache(maxsize=16)
def _classes(prepared: Path, label_key: str, split: str) -> Numbering:
    """Finds the classes that can be trained on: those that the data set names, unless some are missing.

    Labels are read of some records, and of all where one of the classes is not among those, and they are not too large.
    """
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    # both splits are numbered by the classes of training
    split = "train" if "train" in builder.info.splits else split
    names = builder.info.features[label_key].names
    named = Numbering(np.arange(len(names)), tuple(names))
    records = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    # bytes of a record, on average
    size = (builder.info.splits[split].num_bytes or 0) / max(len(records), 1)
    for most in (LABELS_LOOKED_AT, len(records)):
        rows = [int(i) for i in spread(len(records), most)]
        if not rows or size * len(rows) > BYTES_LOOKED_AT:
            return named
        parse, labels = _example_parser(), set[int]()
        for start in range(0, len(rows), CHUNK):
            chunk = records.__getitems__(rows[start : start + CHUNK])
            labels |= {parse(record).features.feature[label_key].int64_list.value[0] for record in chunk}
        if len(labels) == len(names):
            return named
    return number_labels(np.array(sorted(labels)), f'{prepared}: "{label_key}" of split "{split}"', names=names)


@functools.cache
def _example_parser() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return cast(Any, tf_example_pb2).Example.FromString


@dataclass(frozen=True, kw_only=True)
class TfdsSource(OnDemandSource):
    """Examples of TFDS's records. files: (name, how many records are skipped, how many are taken) of each; crop: how
    images are resized, None where all have one size."""

    records: Any
    files: list[tuple[str, int, int]]
    image_key: str
    label_key: str | None
    classes: Numbering | None
    crop: str | None

    def key(self) -> str:
        """Computes a key of the files, and of which of their records are meant."""
        return content_key(files_key(Path(name) for name, _, _ in self.files), [rows for _, *rows in self.files])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Source.gather`."""
        chosen = indices.tolist()
        try:
            records = dict(zip(chosen, self.records.__getitems__(chosen), strict=True))
        except Exception:  # one that is damaged spoils the call for all; each is read on its own
            records = {}

        def example(index: int) -> tuple[np.ndarray, int]:
            return self._decoded(records[index] if index in records else self.records[index])

        whole = functools.partial(self.first_whole, example)
        on_threads = self.shape[0] * self.shape[1] > SMALL_PIXELS
        examples = parallel_map(whole, chosen) if on_threads else [whole(index) for index in chosen]
        images = [image for image, _ in examples]
        batch = {"image": np.stack(images) if images else np.empty((0, *self.shape), np.uint8)}
        if self.classes is not None:
            batch["label"] = self.classes.numbers(np.array([label for _, label in examples]))
        return batch

    def _decoded(self, record: bytes) -> tuple[np.ndarray, int]:
        features = _example_parser()(record).features.feature
        content = features[self.image_key].bytes_list.value[0]
        pixels = read_image(content, self.shape, crop=self.crop)[0] if self.crop else decode_image(content, self.shape)
        return pixels, 0 if self.label_key is None else features[self.label_key].int64_list.value[0]


def _feature_names(prepared: Path, features: Any, *, cropped: bool) -> tuple[str, str | None]:
    """Finds the names of the image and of its label, if it has one."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None:
        raise DataError(f'{prepared}: needs one image feature, or one called "image"; it has {images or "none"}')
    shape, dtype = features[image].shape, features[image].np_dtype
    if (None in shape and not cropped) or dtype != np.uint8:
        raise DataError(
            f'{prepared}: feature "{image}" is {dtype} of shape {shape}; '
            "it must be uint8, and of one size or "
            "cropped to config.data.image_size. Or save the images as files and read them as a folder, which resizes"
        )
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    return image, "label" if "label" in labels else labels[0] if len(labels) == 1 else None
