"""Latents as `--mode=encode` writes them: the layout of a folder, a source of means and deviations, and samples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.data.base import DataError, OfAnother, Source
from cmjax.data.on_demand import Damage, OnDemandSource
from cmjax.data.values import SAMPLED, fitting, read_npz, spread
from cmjax.system.content import content_key
from cmjax.system.files import is_bucket

MANIFEST = "manifest.json"
FORMAT = 1
"""The version of a manifest's format."""
NEEDED = ("split", "count", "shape", "mirrored", "class_names", "autoencoder", "scale", "shift", "shard_size")

TEXT = {"context": "<f2", "pooled": "<f2", "sizes": "<f4"}
"""A U-Net's input that comes from a caption -> its dtype in files. Sizes of pixels would not fit into float16."""
CAPTION_BYTES = 1024
"""The most bytes of a caption that are kept, in UTF-8; its embeddings are of all that the text encoder reads."""
EMPTY_PROMPT = "empty_prompt.npz"


def record_type(manifest: Mapping[str, Any]) -> np.dtype:
    """Describes the bytes of one example: its label (−1 without), mean and std (h, w, c), and the mirrored image's;
    of data with captions also the U-Net's inputs of it, by the shapes of "text", and the caption."""
    parts, text = ["mean", "std"] + ["mirrored_mean", "mirrored_std"] * manifest["mirrored"], manifest.get("text")
    fields: list[Any] = [("label", "<i4"), *((part, "<f2", tuple(manifest["shape"])) for part in parts)]
    if text:
        fields += [
            *((name, TEXT[name], tuple(shape)) for name, shape in text.items()),
            ("caption", f"S{CAPTION_BYTES}"),
        ]
    return np.dtype(fields)


def shards_of(manifest: Mapping[str, Any]) -> list[str]:
    """Lists the names of a folder's shards; shard i has the examples from i·shard_size on."""
    number = -(-manifest["count"] // manifest["shard_size"])
    return [f"latents-{i:05d}-of-{number:05d}.array_record" for i in range(number)]


@dataclass(frozen=True, kw_only=True)
class LatentSource(OnDemandSource):
    """Latents in a network's units: "image" is their mean, beside it "std", and of the mirrored image "mirrored" and
    "mirrored_std", each where the folder has it. `sample_latents` makes one array of them.

    autoencoder: the key of its weights, where it is recorded. encoding: what decodes them, JSON: "scale" and "shift" of
    each channel, and where they are known "autoencoder", its folder, and "images", the data set that was encoded.
    text_encoder: the key of what made the text embeddings, where there are any.
    """

    autoencoder: str | None = None
    text_encoder: str | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict)


def latents(data_dir: str | Path, split: str, *, max_corrupt: int | None = None) -> LatentSource:
    """Opens the latents of a split, `data_dir`/`split`, which are read by their index when they are asked for.

    Args:   max_corrupt: how many examples may be damaged; the next one stands in for each.
    Raises: DataError where they are not there, not whole, or cannot be latents.
    """
    folder = split_folder(data_dir, split)
    manifest = read_manifest(folder)
    if manifest.get("statistics") is None:
        raise DataError(f"{folder}: its encoding is not complete; the same command of --mode=encode goes on with it")
    paths = _whole_shards(folder, manifest)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        records = ArrayRecordDataSource([str(path) for path in paths])
        there = len(records)
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{folder}: a shard cannot be read: {error}") from error
    if there != manifest["count"]:
        raise DataError(f"{folder}: its shards hold {there} examples, and {MANIFEST} says {manifest['count']}")
    names = manifest["class_names"]
    source = _Shards(
        shape=tuple(manifest["shape"]),
        length=there,
        damage=Damage(str(folder), max_corrupt),
        class_names=None if names is None else tuple(names),
        autoencoder=manifest["autoencoder"],
        text_encoder=manifest.get("text_encoder"),
        records=records,
        manifest=manifest,
        encoding=_encoding(manifest),
    )
    check_latents(source, str(folder))
    return source


def _encoding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    origin, made = manifest.get("origin", {}), manifest.get("preprocessing", {})
    entries = {"scale": manifest["scale"], "shift": manifest["shift"], "autoencoder": origin.get("autoencoder", "")}
    if "data" in manifest and "image_shape" in made:
        images = {"name": manifest["data"], "data_dir": origin.get("data_dir", ""), "crop": made.get("crop", "none")}
        columns = {"columns": made["columns"]} if "columns" in made else {}
        entries["images"] = {**images, "shape": made["image_shape"], **columns}
    return entries


def split_folder(data_dir: str | Path, split: str) -> Path:
    """Finds the folder of a split: the subfolder of that name; `data_dir` itself is "train" where it holds the files.

    Raises: DataError where there is none.
    """
    if is_bucket(data_dir):
        raise DataError(f"{data_dir}: latents are read from a disk; copy them to one, and name that folder")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; a folder that --mode=encode wrote is needed, or of LightningDiT's")
    if (root / split).is_dir():
        return root / split
    if split == "train" and ((root / MANIFEST).is_file() or any(root.glob("*.safetensors"))):
        return root
    raise DataError(f'{root}: has no latents of the split "{split}": make them by --mode=encode --split={split}')


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a folder's manifest. Raises: DataError where there is none, or it is none of latents."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a folder that --mode=encode wrote is needed") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in NEEDED if name not in manifest] if isinstance(manifest, dict) else list(NEEDED)
    if missing:
        raise DataError(f"{path}: is no manifest of latents: it has no {', '.join(missing)}")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: has format {manifest.get('format')}, and format {FORMAT} is read here")
    return manifest


def empty_prompt(data_dir: str | Path) -> dict[str, np.ndarray]:
    """Reads the U-Net's inputs without a prompt, as the pipeline has them where no negative prompt is named.

    Args:    data_dir: the folder that --mode=encode wrote, or that of a split.
    Returns: "context" (n, d), and for SDXL "pooled" (p,), both float32; without "sizes", which are those of the images.
    Raises:  DataError where the latents have no text embeddings.
    """
    root = Path(data_dir).expanduser()
    folder = root if (root / MANIFEST).is_file() else split_folder(data_dir, "train")
    if not (folder / EMPTY_PROMPT).is_file():
        raise DataError(f"{folder}: has no {EMPTY_PROMPT}: encode captioned images by --mode=encode --pipeline=FOLDER")
    arrays = read_npz(folder / EMPTY_PROMPT, memory_limit_bytes=2**30)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def _whole_shards(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Lists the paths of all shards. Raises: DataError where one is missing or has another size than was written."""
    paths, sizes, keys = ([folder / name for name in shards_of(manifest)], *map(manifest.get, ("bytes", "keys")))
    if not isinstance(sizes, list) or not isinstance(keys, list) or not len(sizes) == len(keys) == len(paths):
        raise DataError(f"{folder / MANIFEST}: does not have the bytes and keys of its {len(paths)} shards")
    for path, size in zip(paths, sizes, strict=True):
        if not path.is_file():
            raise DataError(f"{path}: is missing; copy it again, or remove {MANIFEST} and encode again")
        if path.stat().st_size != size:
            raise DataError(f"{path}: has {path.stat().st_size} bytes of {size}; copy it again, or encode again")
    return paths


def check_latents(source: Source, where: str) -> None:
    """Raises DataError where some of the examples cannot be latents: not finite, or of no latents' range or layout."""
    batch = source.gather(spread(len(source), SAMPLED))
    for name in sorted(batch.keys() - {"label"}):
        images = batch[name]
        if not np.isfinite(images).all():
            raise DataError(f'{where}: "{name}" holds NaN or infinity; encode again')
        if name.endswith("std") and not (images >= 0).all():
            raise DataError(f'{where}: "{name}" holds a standard deviation below 0; encode again')
    fitting(batch["image"], where)


def about_latents(source: Source) -> dict[str, Any]:
    """Gives a record's entries of latents: "autoencoder", the key of its weights, and "text_encoder", that of
    `TextToImage.text_key`, where they are recorded, and "encoding", as `LatentSource` has it; {} of images."""
    while isinstance(source, OfAnother):
        source = source.source
    if not isinstance(source, LatentSource):
        return {}
    keys = {"autoencoder": source.autoencoder, "text_encoder": source.text_encoder}
    return {"encoding": dict(source.encoding)} | {name: key for name, key in keys.items() if key}


def sample_latents(batch: Mapping[str, Array | np.ndarray], key: Array) -> dict[str, Any]:
    """Returns a batch whose "image" is a sample mean + std·ε of each example's latents, with ε ~ N(0, 1).

    It is the mirrored image's with probability 1/2, where the batch has that. Text embeddings become float32. A batch
    of images stays as it is.
    """
    images, std = batch["image"], batch.get("std")
    # split even without a mirrored side: the noise is the same with and without it
    side_key, noise_key = jax.random.split(key)
    if "mirrored" in batch:
        side = jax.random.bernoulli(side_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(side, batch["mirrored"], images)
        std = None if std is None else jnp.where(side, batch["mirrored_std"], std)
    if std is not None:
        images = images + std * jax.random.normal(noise_key, images.shape, images.dtype)
    text = {name: jnp.asarray(batch[name], jnp.float32) for name in TEXT if name in batch}
    return {**batch, "image": images, **text}


@dataclass(frozen=True, kw_only=True)
class _Shards(LatentSource):
    """Latents of the records of a folder's shards."""

    records: Any
    manifest: dict[str, Any]

    def key(self) -> str:
        return content_key(*(self.manifest[name] for name in ("keys", "scale", "shift")))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        scale, shift = (np.asarray(self.manifest[name], np.float32) for name in ("scale", "shift"))
        rows = self._rows(indices.tolist())
        # a network's units, (x − shift)·scale; a deviation is not shifted
        batch = {"image": (rows["mean"].astype(np.float32) - shift) * scale, "std": rows["std"] * scale}
        if self.manifest["mirrored"]:
            batch["mirrored"] = (rows["mirrored_mean"].astype(np.float32) - shift) * scale
            batch["mirrored_std"] = rows["mirrored_std"] * scale
        # float16 as written: it travels to the devices in half the time
        batch |= {name: rows[name] for name in self.manifest.get("text", {})}
        if self.class_names is not None:
            batch["label"] = rows["label"].astype(np.int32)
        return batch

    def captions(self, indices: np.ndarray) -> list[str]:
        """Gives the captions of examples, very long ones cut; "" where there are none."""
        if "text" not in self.manifest:
            return [""] * len(indices)
        return [caption.decode(errors="ignore") for caption in self._rows(indices.tolist())["caption"]]

    def _rows(self, chosen: list[int]) -> np.ndarray:
        layout = record_type(self.manifest)

        def record(index: int) -> bytes:
            content = self.records[index]
            if len(content) != layout.itemsize:
                raise DataError(f"it has {len(content)} bytes, and an example of this shape has {layout.itemsize}")
            return content

        try:
            records = self.records.__getitems__(chosen) if chosen else []
        except Exception:  # one that is damaged spoils the call for all; each is read on its own
            records = []
        if len(records) != len(chosen) or any(len(each) != layout.itemsize for each in records):
            records = [self.first_whole(record, index) for index in chosen]
        return np.frombuffer(b"".join(records), layout)
