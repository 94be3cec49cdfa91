"""MNIST from its official idx files.   [LeCun, Cortes, Burges: The MNIST database of handwritten digits]"""

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cmjax.data.base import DataError

BASE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FILES = {
    "train": (BASE + "train-images-idx3-ubyte.gz", BASE + "train-labels-idx1-ubyte.gz"),
    "test": (BASE + "t10k-images-idx3-ubyte.gz", BASE + "t10k-labels-idx1-ubyte.gz"),
}


class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """70,000 digits 28x28x1; folder, version and features are those of TFDS's own builder."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    URLS = tuple(url for urls in FILES.values() for url in urls)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The MNIST database: 60,000 training and 10,000 test handwritten digits of 28x28.",
            homepage="http://yann.lecun.com/exdb/mnist/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        paths: Any = dl_manager.download(FILES)
        return {split: self._generate_examples(*paths[split]) for split in FILES}

    def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_idx(images_path, rank=3), read_idx(labels_path, rank=1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise DataError(f"{images_path}: images {images.shape} do not fit the labels {labels.shape}")
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "png", compress_level=1)
            encoded.seek(0)
            yield key, {"image": encoded, "label": int(label)}


def read_idx(path: Any, *, rank: int) -> np.ndarray:
    """Reads a gzipped idx file of bytes: 0, 0, 8 (unsigned byte), the rank, each size as big-endian int32, the values.

    Raises: DataError naming the file where it is damaged or its rank is another.
    """
    try:
        with gzip.open(path) as file:
            contents = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from error
    offset = 4 + 4 * rank
    if contents[:4] != bytes([0, 0, 8, rank]) or len(contents) < offset:
        raise DataError(f"{path}: not an idx file of rank {rank}: it begins with {contents[:4].hex()}")
    sizes = [int(size) for size in np.frombuffer(contents, ">i4", rank, offset=4)]
    if len(contents) - offset != int(np.prod(sizes)):
        raise DataError(f"{path}: its header says {sizes}, but {len(contents) - offset} values follow")
    return np.frombuffer(contents, np.uint8, offset=offset).reshape(sizes)
