"""CIFAR-10 from its official archive.   [Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images]"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cmjax.data.base import DataError
from cmjax.system.pickles import load_pickle

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 images 32x32x3 of 10 classes; folder, version and features are those of TFDS's own builder."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    URLS = (URL,)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes.",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        archive = dl_manager.download(URL)
        return {
            "train": self._generate_examples(archive, "data_batch_", "train"),
            "test": self._generate_examples(archive, "test_batch", "test"),
        }

    def _generate_examples(self, archive: Any, prefix: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                file = members.extractfile(member) if member.name.split("/")[-1].startswith(prefix) else None
                if file is None:
                    continue
                for image, label in zip(*read_batch(file, member.name), strict=True):
                    encoded = io.BytesIO()
                    # PNG keeps every pixel at any level of compression, and level 1 is fast
                    Image.fromarray(image).save(encoded, "png", compress_level=1)
                    encoded.seek(0)
                    key = f"{split}_{number:05d}"
                    number += 1
                    yield key, {"id": key, "image": encoded, "label": int(label)}
        if number == 0:
            raise DataError(f"{archive}: holds no file {prefix}*; it is not CIFAR-10's python archive")


def read_batch(file: Any, name: str) -> tuple[np.ndarray, list[int]]:
    """Reads one of the archive's files: a pickled dict of "data" (n, 3072) uint8, planes of 32x32, and "labels" (n).

    Returns: images (n, 32, 32, 3) uint8 and labels.
    Raises:  DataError naming the file where it is anything else; nothing in it is run.
    """
    try:
        contents = load_pickle(file, name)
        # Python 2 wrote the keys as text, Python 3 writes them as bytes.
        data, labels = (contents.get(key, contents.get(key.encode())) for key in ("data", "labels"))
        images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or not all(type(label) is int and 0 <= label < 10 for label in labels):
            raise ValueError("data must be uint8 and labels 0..9")
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: not a CIFAR-10 batch: {error}") from error
    return np.ascontiguousarray(images), labels
