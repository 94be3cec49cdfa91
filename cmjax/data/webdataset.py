"""Opens tars of samples, as WebDataset writes them, as a source: 000.jpg, 000.txt, 000.json, 000.cls are a sample."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cmjax.data.base import DataError, Source, check_split
from cmjax.data.captions import caption_in, caption_of, no_caption_among
from cmjax.data.folder import check_images
from cmjax.data.labels import held_out, number_labels
from cmjax.data.layout import SUFFIXES, is_tools_own
from cmjax.data.on_demand import MEMORY_LIMIT_BYTES, Damage, kept_if_small
from cmjax.data.shards import find_shards
from cmjax.data.tar_index import Member, members_of, read_member
from cmjax.data.tars import TarSource
from cmjax.system.files import AnyPath, to_path

WANTED = "a folder of .tar files of samples, 000.jpg beside 000.txt, …"
LABEL = "cls"
"""The end of the file that has a sample's label."""
OF_CAPTIONS = ("txt", "json")
"""The ends of files that have a sample's caption."""

Sample = dict[str, Member]
"""The files of a sample by what follows the first dot of their names."""


def webdataset(
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
    """Opens the samples of a folder's tars, or of one tar: an image each, with the label of its .cls file, if any.

    The tars are read in place and by index, see `tar_index`; they must not be compressed. Splits are in their names, or
    in those of folders, see `shards`, else about a tenth is held out, by a hash of the names.

    Args:   data_dir: the folder. captions: whether the samples have captions too, in a .txt or .json file.
            caption_column: the key of the caption in the .json files; "" takes the .txt file, or one of the usual keys.
            The others: as of `folder.folder`.
    Raises: DataError naming the folder or the tar, where nothing can be read from it.
    """
    check_split(split)
    shape = check_images(image_size, channels)
    root = to_path(data_dir).expanduser()
    samples, labels, names = _split(root, split)
    if not samples:
        raise DataError(f'{root}: none of the samples of its tars falls into split "{split}"')
    source = SampleSource(
        shape=shape,
        length=len(samples),
        damage=Damage(str(root), max_corrupt),
        class_names=names,
        labels=labels,
        members=[_image(sample) for sample in samples],
        crop=crop,
        captions=_captions(samples, caption_column) if captions else None,
        caption_column=caption_column,
    )
    return kept_if_small(source, memory_limit_bytes=memory_limit_bytes)


def _split(root: AnyPath, split: str) -> tuple[list[Sample], np.ndarray | None, tuple[str, ...] | None]:
    """Reads the samples of a split, and their classes, which are those of training."""
    train, held = find_tars_of_samples(root)
    samples = _samples(train)
    labels = _labels(samples)
    classes = None if labels is None else number_labels(labels, f"{root}: .{LABEL} files", say=split == "train")
    if not held:
        out = held_out([f"{member.tar.stem}/{key}" for key, member in map(_named, samples)], labels)
        chosen = np.flatnonzero(out == (split == "test"))
        samples, labels = [samples[i] for i in chosen], None if labels is None else labels[chosen]
    elif split == "test":
        samples = _samples(held[0])
        labels = _labels(samples)
        if (labels is None) != (classes is None):
            raise DataError(f"{root}: of its splits one has labels, .{LABEL} files, and the other none")
    if labels is None or classes is None:
        return samples, None, None
    numbers = classes.numbers(labels)
    known = [sample for sample, number in zip(samples, numbers, strict=True) if number >= 0]
    return known, numbers[numbers >= 0], classes.names


def find_tars_of_samples(root: AnyPath) -> tuple[list[AnyPath], list[list[AnyPath]]]:
    """Finds the tars to train on, and those that may be held out. Raises: DataError where there are none."""
    return find_shards(root, (".tar",), WANTED)


def _samples(tars: Sequence[AnyPath]) -> list[Sample]:
    """Lists the samples of tars that have an image, in their order.

    Raises: DataError naming a tar without images.
    """
    samples = []
    for folder in dict.fromkeys(tar.parent for tar in tars):
        for tar, members in members_of([tar for tar in tars if tar.parent == folder]).items():
            by_key: dict[str, Sample] = {}
            for member in members:
                path = PurePosixPath(member.name)
                if not any(map(is_tools_own, path.parts)):
                    key, _, end = path.name.partition(".")
                    by_key.setdefault(str(path.parent / key), {})[end.lower()] = member
            there = [sample for sample in by_key.values() if _ends_of_images(sample)]
            if not there:
                such = f"; it has {members[0].name}" if members else ""
                raise DataError(f"{tar}: holds no PNG or JPEG files{such}")
            samples += there
    return samples


def _ends_of_images(sample: Sample) -> list[str]:
    # "jpg" before "mask.png"
    return sorted((end for end in sample if f".{end}".endswith(SUFFIXES)), key=len)


def _image(sample: Sample) -> Member:
    return sample[_ends_of_images(sample)[0]]


def _named(sample: Sample) -> tuple[str, Member]:
    """Gives the key of a sample, and a member of it."""
    member = _image(sample)
    path = PurePosixPath(member.name)
    return str(path.parent / path.name.partition(".")[0]), member


def _labels(samples: Sequence[Sample]) -> np.ndarray | None:
    """Reads the labels (n,) of samples from their files; None without such files.

    Raises: DataError where some samples have none, or one is no whole number.
    """
    with_label = [sample for sample in samples if LABEL in sample]
    if not with_label:
        return None
    if len(with_label) < len(samples):
        key, member = _named(next(sample for sample in samples if LABEL not in sample))
        raise DataError(f"{member.tar}: the sample {key} has no .{LABEL} file, and others have")
    labels = np.empty(len(samples), np.int64)
    for i, sample in enumerate(samples):
        member = sample[LABEL]
        text = member.text or read_member(member).decode(errors="replace").strip()
        try:
            labels[i] = int(text)
        except ValueError:
            raise DataError(f"{member.tar}: {member.name} holds {text[:20]!r}, and no whole number") from None
    return labels


def _captions(samples: Sequence[Sample], column: str) -> list[Member | None]:
    """Finds the file of each sample's caption; None where it has none. Raises: DataError naming a tar that has none."""
    ends = ("json",) if column else OF_CAPTIONS
    found = [next((sample[end] for end in ends if end in sample), None) for sample in samples]
    tars = {_image(sample).tar: None for sample in samples}
    with_captions = {member.tar for member in found if member is not None}
    if absent := [tar for tar in tars if tar not in with_captions]:
        raise DataError(
            f"{absent[0]}: holds no captions: no {' or '.join(f'.{end}' for end in ends)} beside its images"
        )
    first = next(member for member in found if member is not None)
    if first.name.lower().endswith(".json"):
        # all captions would be absent, one by one
        entries = _entries(first)
        if caption_in(entries, column) is None:
            raise DataError(f"{first.tar}: {first.name} has no caption, {no_caption_among(entries, column)}")
    return found


def _entries(member: Member) -> Mapping[str, object]:
    try:
        entries = json.loads(read_member(member))
    except ValueError as error:
        raise DataError(f"{PurePosixPath(member.name).name} is no JSON") from error
    if not isinstance(entries, dict):
        raise DataError(f"{PurePosixPath(member.name).name} is no JSON object")
    return entries


@dataclass(frozen=True, kw_only=True)
class SampleSource(TarSource):
    """Examples of samples within tars."""

    caption_column: str

    def caption(self, index: int) -> str:
        """See `ImageSource`."""
        member = self.captions[index]
        if member is None:
            raise DataError("it has no caption")
        if member.name.lower().endswith(".json"):
            return caption_of(caption_in(_entries(member), self.caption_column))
        return caption_of(read_member(member))
