"""Encodes a data set's images once, as shards of latents: over all devices and processes, resumable at any kill."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.config.fields import ConfigError
from cmjax.data.base import DataError, Source, class_names, kind_of
from cmjax.data.batches import preprocess
from cmjax.data.latents import EMPTY_PROMPT, FORMAT, MANIFEST, read_manifest, record_type, shards_of
from cmjax.generation.latent_shards import facts_of, write_shard
from cmjax.generation.text_embeddings import LARGEST, about_text, embedder, empty_prompt_of
from cmjax.interop.text_to_image import TextToImage
from cmjax.nets.latents import Autoencoder
from cmjax.runs.workdir import unwritable
from cmjax.system.files import to_json, write_atomically
from cmjax.system.lock import AlreadyRunning, FolderLock
from cmjax.system.mesh import batch_sharding, chunks, make_mesh, replicated
from cmjax.system.npz import npz_bytes
from cmjax.system.processes import all_agree, leave_at_once, on_first_process
from cmjax.system.progress import ProgressBar, Update, no_progress

SPARE = 512
"""The most bytes of a shard for each example beside its arrays."""
CHANGEABLE = ("statistics", "bytes", "keys", "scale", "shift", "origin")
"""Entries of a manifest that are written at the end, or that the shards do not depend on."""

OF_WEIGHTS = {
    "autoencoder": "an autoencoder of other weights",
    "text_encoder": "text embeddings of another text encoder or tokenizer",
}
"""Entry of a manifest that is a key of weights -> its name in messages."""
MOMENTS = ("mean", "std", "mirrored_mean", "mirrored_std")

Encode = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


def encode_source(
    source: Source,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    about: Mapping[str, Any],
    pipeline: TextToImage | None = None,
    mirrored: bool = False,
    tile: int = 0,
    batch_size: int = 64,
    shard_size: int = 4096,
    bar: ProgressBar = no_progress,
) -> dict[str, Any]:
    """Writes mean and std of each image's latents in float16, and of its caption what a pipeline's U-Net sees.
    Continues a folder that was begun. Returns the manifest. Every process must call it, with one folder for all.

    Where the autoencoder leaves its scale open, latents are scaled to mean 0 and std 1 in each channel.

    Args:   about: further entries of the manifest, JSON: "split", "preprocessing", "origin". pipeline: what encodes the
            captions, which the source then has. mirrored: whether the mirrored image is encoded too. tile: side of the
            squares of latents in which images are encoded, 0 for whole images. batch_size: of one process; a multiple
            of its devices. shard_size: examples.
    Raises: ConfigError where the folder was begun otherwise, is in use, or cannot be written; DataError where the
            images do not fit the autoencoder, cannot be read, or have latents beyond float16.
    """
    check_fits(source, autoencoder)
    manifest = _manifest(source, autoencoder, mirrored, shard_size) | dict(about)
    if tile:
        manifest["tile"] = tile
    if pipeline is not None:
        manifest |= about_text(pipeline)
    encode = _encoder(autoencoder, pipeline, batch_size, mirrored=mirrored, tile=tile)
    layout = record_type(manifest)
    folder = folder.absolute()
    lock = FolderLock(folder, on_lost=partial(leave_at_once, 1))
    try:
        on_first_process(lock.take)
    except AlreadyRunning as error:
        raise ConfigError(f"--out={error}") from error
    except OSError as error:
        raise unwritable(folder, error, "--out") from error
    with lock:
        on_first_process(lambda: _begin(folder, manifest, pipeline))
        shards = shards_of(manifest)
        # shards go to the processes in turn; one whose facts are written is whole, and stays
        assigned = [i for i in range(len(shards)) if i % jax.process_count() == jax.process_index()]
        missing = [i for i in assigned if facts_of(folder / shards[i]) is None]
        rows, done = [_rows(i, manifest) for i in missing], 0
        with bar(max(1, sum(map(len, rows)))) as update:
            for i, examples in zip(missing, rows, strict=True):
                batches = _encoded(source, encode, batch_size, examples, layout)
                more = partial(_update, update, done)
                write_shard(folder / shards[i], batches, count=len(examples), update=more)
                done += len(examples)
        all_agree(True)  # waits for the shards of the others
        return on_first_process(lambda: _finish(folder, manifest))


def _update(update: Update, before: int, done: int) -> None:
    update(before + done, "")


def check_fits(source: Source, autoencoder: Autoencoder) -> None:
    """Raises DataError where an autoencoder cannot encode images of a source's shape."""
    if len(source.shape) != 3:
        raise DataError(f"it encodes images, and the data are {kind_of(source.shape)}")
    height, width, channels = source.shape
    if channels != autoencoder.module.channels:
        remedy = f"; set config.data.channels={autoencoder.module.channels}"
        raise DataError(f"the images have {channels} channels, and it encodes {autoencoder.module.channels}{remedy}")
    factor = autoencoder.factor
    if height % factor or width % factor:
        near = max(factor, height // factor * factor), max(factor, width // factor * factor)
        size = near[0] if near[0] == near[1] else near
        raise DataError(
            f"the images are {height}x{width}, and height and width must be multiples of its factor {factor}; set "
            f"config.data.image_size={size}, where the data are cropped"
        )


def _manifest(source: Source, autoencoder: Autoencoder, mirrored: bool, shard_size: int) -> dict[str, Any]:
    height, width, _ = source.shape
    names = class_names(source)
    return {
        "format": FORMAT,
        "count": len(source),
        "shape": [height // autoencoder.factor, width // autoencoder.factor, autoencoder.latent_channels],
        "mirrored": mirrored,
        "class_names": None if names is None else list(names),
        "autoencoder": autoencoder.weights_key,
        "scale": autoencoder.scale,
        "shift": autoencoder.shift,
        "shard_size": shard_size,
    }


def _begin(folder: Path, manifest: Mapping[str, Any], pipeline: TextToImage | None) -> None:
    """Checks what is in the folder, removes what a kill left, and writes the manifest and the empty prompt where there
    are none."""
    try:
        # temporary files of writers that were killed
        for left in folder.glob(".latents-*"):
            left.unlink(missing_ok=True)
        if (folder / MANIFEST).exists():
            _check_same(folder, manifest)
        elif others := sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "running"))):
            raise ConfigError(f"--out={folder}: holds {others[0]} and no {MANIFEST}; name another folder")
        absent = [i for i, name in enumerate(shards_of(manifest)) if facts_of(folder / name) is None]
        # refused now, and not when the disk is full after hours
        size = record_type(manifest).itemsize + SPARE
        needed, free = size * sum(len(_rows(i, manifest)) for i in absent), shutil.disk_usage(folder).free
        if needed > free:
            raise ConfigError(
                f"--out={folder}: takes {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free there"
            )
        empty = None
        if pipeline is not None and not (folder / EMPTY_PROMPT).exists():
            # computed before anything is written: it may be beyond float16
            empty = npz_bytes(empty_prompt_of(pipeline))
        if not (folder / MANIFEST).exists():
            write_atomically(folder / MANIFEST, to_json(manifest))
        if empty is not None:
            write_atomically(folder / EMPTY_PROMPT, empty)
    except OSError as error:
        raise unwritable(folder, error, "--out") from error


def _check_same(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ConfigError where the folder was begun with other images, weights or options."""
    try:
        old = read_manifest(folder)
    except DataError as error:
        raise ConfigError(f"--out={error}") from error
    # through JSON, as the file went: tuples are lists there
    new = json.loads(to_json(manifest))
    for name in (name for name in {**old, **new} if name not in CHANGEABLE and old.get(name) != new.get(name)):
        there, here = (str(one.get(name))[:100] for one in (old, new))
        what = OF_WEIGHTS.get(name, f"another {name}")
        raise ConfigError(f"--out={folder}: was begun with {what}, {there}, and this is {here}; name another folder")
    if (
        new["scale"] is not None
        and old.get("statistics")
        and (old["scale"], old["shift"]) != (new["scale"], new["shift"])
    ):
        raise ConfigError(
            f"--out={folder}: has the scale {old['scale']} and the shift {old['shift']}; name another folder"
        )


def _rows(shard: int, manifest: Mapping[str, Any]) -> np.ndarray:
    """Numbers the examples of a shard."""
    start = shard * manifest["shard_size"]
    return np.arange(start, min(start + manifest["shard_size"], manifest["count"]))


def _encoder(
    autoencoder: Autoencoder, pipeline: TextToImage | None, batch_size: int, *, mirrored: bool, tile: int
) -> Encode:
    """Gives a function of a source's batch, over this process's devices: the fields of its records but the label."""
    mesh = make_mesh(devices=jax.local_devices())
    if batch_size < 1 or batch_size % mesh.size:
        raise ConfigError(f"--batch_size={batch_size}: must be a multiple of the devices of a process, {mesh.size}")
    rows, weights = batch_sharding(mesh), jax.device_put(replace(autoencoder, scale=None, shift=None), replicated(mesh))
    embed = None if pipeline is None else embedder(pipeline, mesh)

    def encode(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        images = batch["image"]
        moments = _moments(weights, jax.device_put(images, rows), mirrored=mirrored, tile=tile)
        fields: dict[str, Any] = dict(zip(MOMENTS, np.asarray(moments).swapaxes(0, 1), strict=False))
        return fields if embed is None else fields | embed(batch, images.shape[1:3])

    return encode


@partial(jax.jit, static_argnames=("mirrored", "tile"))
def _moments(autoencoder: Autoencoder, images: Array, *, mirrored: bool, tile: int) -> Array:
    """Encodes images (b, h, w, c): mean and std of latents, and of the mirrored images', (b, 2 or 4, h, w, l)."""
    images = preprocess(images, jax.random.key(0), horizontal_flip=False)
    parts = []
    for side in (images, images[:, :, ::-1])[: 1 + mirrored]:
        mean, logvar = autoencoder.encode_tiled(side, tile=tile) if tile else autoencoder.encode(side)
        # the encoder gives the log of the variance
        parts += [mean, jnp.exp(logvar / 2)]
    return jnp.stack(parts, axis=1).astype(jnp.float32)


def _encoded(
    source: Source, encode: Encode, batch_size: int, rows: np.ndarray, layout: np.dtype
) -> Iterator[np.ndarray]:
    """Yields the records of examples, a batch at a time. The next images are decoded meanwhile."""
    parts = list(chunks(rows, batch_size))
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
        ahead = thread.submit(source.gather, parts[0])
        for number, part in enumerate(parts):
            batch, start = ahead.result(), number * batch_size
            if number + 1 < len(parts):
                ahead = thread.submit(source.gather, parts[number + 1])
            # the last batch is filled up with repeats, which are no examples
            records = np.empty(min(len(part), len(rows) - start), layout)
            # -1 stands for no label
            records["label"] = batch["label"][: len(records)] if "label" in batch else -1
            for name, values in encode(batch).items():
                values = values[: len(records)]
                if layout[name].base == np.float16:
                    _check_range(values, name, part)
                records[name] = values
            yield records


def _check_range(values: np.ndarray, name: str, examples: np.ndarray) -> None:
    """Raises DataError unless values can be written as float16, where larger ones would turn into inf."""
    good = (np.abs(values) <= LARGEST).reshape(len(values), -1).all(axis=1)
    if not good.all():
        what = "latents" if name in MOMENTS else "text embeddings"
        raise DataError(f"example {examples[np.argmin(good)]}: its {what} are not finite, or beyond float16")


def _finish(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest with the statistics of all shards."""
    facts = {name: facts_of(folder / name) for name in shards_of(manifest)}
    whole = [known for known in facts.values() if known is not None]
    if len(whole) < len(facts):
        absent = next(name for name, known in facts.items() if known is None)
        raise ConfigError(f"--out={folder}: {absent} is missing: all processes must write to one folder")
    height, width, _ = manifest["shape"]
    values = manifest["count"] * height * width
    mean = sum(np.array(known["sums"]) for known in whole) / values
    # the variance of latents as training samples them: E[mean² + std²] − E[mean]², per channel
    std = np.sqrt(np.maximum(sum(np.array(known["squares"]) for known in whole) / values - mean**2, 0))
    scale, shift = manifest["scale"], manifest["shift"]
    if scale is None:
        if not (std > 0).all():
            raise DataError(
                f"{folder}: channel {np.argmin(std)} of the latents is constant; name their scale by --scale"
            )
        scale, shift = (1 / std).tolist(), mean.tolist()
    finished = {
        **manifest,
        "scale": scale,
        "shift": shift,
        "statistics": {"mean": mean.tolist(), "std": std.tolist()},
        "bytes": [known["bytes"] for known in whole],
        "keys": [known["key"] for known in whole],
    }
    try:
        write_atomically(folder / MANIFEST, to_json(finished))
    except OSError as error:
        raise unwritable(folder, error, "--out") from error
    return json.loads(to_json(finished))
