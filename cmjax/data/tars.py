"""Opens tars of images as a source, a tar for each class, as ImageNet comes; nothing is unpacked."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cmjax.data.base import DataError, Source, check_split
from cmjax.data.folder import ImageSource, check_images
from cmjax.data.labels import held_out
from cmjax.data.layout import is_image, is_tools_own
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES, Damage, kept_if_small
from cmjax.data.tar_index import Member, members_of, read_member
from cmjax.system.content import content_key, files_key
from cmjax.system.files import AnyPath, to_path

TEST_FOLDERS = ("test", "val", "validation")


def tars(
    data_dir: str | AnyPath,
    split: str,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    crop: str = "lanczos",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    max_corrupt: int | None = None,
) -> Source:
    """Opens the images of a folder's tars, whose labels are the names of the tars, sorted: n01440764.tar, ….

    The tars are read in place, the bytes of one image at a time. Their headers are read at the first start alone, see
    `tar_index`. They must not be compressed. Splits are the folders train and test or val, else about a tenth by a hash
    of the names.

    Args:   data_dir: the folder. The others: as of `folder.folder`.
    Raises: DataError naming the folder or the tar, where nothing can be read from it.
    """
    check_split(split)
    shape = check_images(image_size, channels)
    root = to_path(data_dir).expanduser()
    train, test = find_tars(root)
    number = {tar.stem: i for i, tar in enumerate(train)}
    members = _images(train if split == "train" or not test else test)
    labels = np.array([number[member.tar.stem] for member in members], np.int32)
    if not test:
        held = held_out([f"{member.tar.stem}/{member.name}" for member in members], labels)
        chosen = np.flatnonzero(held == (split == "test"))
        members, labels = [members[i] for i in chosen], labels[chosen]
    if not members:
        raise DataError(f'{root}: none of the images of its tars falls into split "{split}"')
    source = TarSource(
        shape=shape,
        length=len(members),
        damage=Damage(str(root), max_corrupt),
        class_names=tuple(number),
        labels=labels,
        members=members,
        crop=crop,
    )
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def find_tars(root: AnyPath) -> tuple[list[AnyPath], list[AnyPath]]:
    """Finds the tars to train on, and those held out, () where there is no folder of them; sorted.

    Raises: DataError where there is no such folder, it has no tars, or a held-out class is not among the others.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; a folder with a .tar of images for each class is needed")
    where = root / "train" if (root / "train").is_dir() else root
    train = _tars_in(where)
    if not train:
        raise DataError(f"{where}: has no .tar files; a folder with a .tar of images for each class is needed")
    if len(train) == 1:
        others = 'or for a shard of samples, 000.jpg beside 000.cls or 000.txt, config.data.name="webdataset"'
        raise DataError(f"{train[0]}: is the only tar; unpack it once, into the tars of its classes, {others}")
    test = next((found for name in TEST_FOLDERS if (found := _tars_in(root / name))), [])
    if unknown := sorted({tar.stem for tar in test} - {tar.stem for tar in train}):
        raise DataError(f"{test[0].parent}: has the tar {unknown[0]}.tar, of a class that {where} has not")
    return train, test


def _tars_in(folder: AnyPath) -> list[AnyPath]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in there if path.suffix == ".tar" and not is_tools_own(path.name)), key=str)


def _images(files: list[AnyPath]) -> list[Member]:
    """Lists the images of tars, in their order. Raises: DataError naming the tar that has none."""
    images: list[Member] = []
    for tar, members in members_of(files).items():
        known = len(images)
        for member in members:
            name = PurePosixPath(member.name)
            if is_image(name) and not any(map(is_tools_own, name.parts)):
                images.append(member)
            elif name.suffix in (".txt", ".cls"):
                shard = 'a shard of samples, which config.data.name="webdataset" reads'
                raise DataError(f"{tar}: has {name} beside images: it is {shard}, and not a class")
        if len(images) == known:
            raise DataError(f"{tar}: holds no PNG or JPEG files")
    return images


@dataclass(frozen=True, kw_only=True)
class TarSource(ImageSource):
    """Examples of images within tars."""

    members: list[Member]

    def key(self) -> str:
        """Computes a key of the tars' content and the labels."""
        files = sorted({member.tar for member in self.members}, key=str)
        return content_key(files_key(files), self.labels, self.crop)

    def name(self, index: int) -> str:
        """Gives the image's name in its tar."""
        return f"{self.members[index].tar.name}: {self.members[index].name}"

    def file(self, index: int) -> bytes:
        """See `ImageSource`."""
        return read_member(self.members[index])
