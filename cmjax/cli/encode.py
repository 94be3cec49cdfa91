"""`--mode=encode`: encodes a data set once by an autoencoder, to train on with config.data.name=latents.

cmjax encode --config.data.name=folder --config.data.data_dir=photos --config.data.image_size=256 \\
  --autoencoder=sd-vae-ft-ema --mirrored --out=latents
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from cmjax.cli.flags import Flags, Options
from cmjax.config.data import read_data
from cmjax.config.fields import ConfigError, Fields, about
from cmjax.data.base import DataError, crop_of
from cmjax.data.crops import CROPS
from cmjax.generation.encoding import check_fits, encode_source
from cmjax.interop.autoencoder import load_autoencoder
from cmjax.interop.keys import ForeignError
from cmjax.interop.pipeline import load_pipeline
from cmjax.interop.text_to_image import TextToImage
from cmjax.nets.latents import Autoencoder
from cmjax.runs.about_data import data_key_of
from cmjax.runs.workdir import output
from cmjax.system.files import is_bucket, to_path
from cmjax.system.libraries import MissingLibrary, require
from cmjax.system.processes import say
from cmjax.system.progress import progress

WITHOUT_RECIPE = {
    "data": {
        "name": "",
        "data_dir": "",
        "image_size": 0,
        "channels": 0,
        "memory_limit_gb": 4.0,
        "max_corrupt": 10,
        "image_column": "",
        "label_column": "",
        "caption_column": "",
    }
}
"""The fields of a configuration where no recipe is named."""
SPLITS = ("train", "test")
DTYPES = ("float32", "bfloat16", "float16")


def declare(flags: Flags) -> None:
    flags.group("The latents")
    flags.text("autoencoder", None, "A folder or a file of diffusers' AutoencoderKL, or of latent diffusion's.")
    help = "A folder of diffusers' Stable Diffusion, instead: captions are encoded beside the images."
    flags.text("pipeline", None, help)
    flags.text("out", None, "The folder to write; the latents of a split are in its subfolder of that name.")
    flags.one_of("split", "train", SPLITS, "Which of the data.")
    flags.boolean("mirrored", False, "Encode the mirrored images too: training then takes either, by chance.")
    flags.one_of("crop", "adm", CROPS, "How images are cut to config.data.image_size.")
    flags.group("What the autoencoder's file may leave open")
    flags.texts("scale", "Networks see latents times it: a number, or one a channel. Default: the file's, or 1/std.")
    flags.text("statistics", None, "A file of each channel's mean and std instead, as latents_stats.pt.")
    flags.group("The work")
    flags.one_of("dtype", "float32", DTYPES, "Of computation.")
    flags.integer("tile", 0, "Encode large images in overlapping squares of so many latents a side.", at_least=0)
    flags.integer("batch_size", None, "Images at a time in one process. Default: 8 a device.", at_least=1)
    flags.integer("shard_size", 4096, "Images in one file; what is lost at a kill is at most one file.", at_least=1)


def start(options: Options) -> None:
    if options.config is None:
        raise ConfigError("--config.data.name is missing: name the data, as --config.data.name=folder, or a recipe")
    run(options.recipe, **options.flags)


def run(
    config: Mapping[str, Any],
    *,
    autoencoder: str | Path | None = None,
    pipeline: str | Path | None = None,
    out: str | Path | None = None,
    split: str = "train",
    mirrored: bool = False,
    crop: str = "adm",
    scale: Any = None,
    statistics: str | Path | None = None,
    dtype: str = "float32",
    tile: int = 0,
    batch_size: int | None = None,
    shard_size: int = 4096,
) -> dict[str, Any]:
    """Encodes the data of `config` into `out`, or goes on where a kill stopped it. Returns the manifest.

    config: a recipe's, of which "data" alone is read. The other arguments are the mode's flags.

    Raises: ConfigError or DataError, in one line.
    """
    if out is None:
        raise ConfigError("--out is missing: name the folder for the latents, as --out=latents")
    # flags are checked by now; these are the values of a caller from Python
    for name, value, choices in (("split", split, SPLITS), ("crop", crop, CROPS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise ConfigError(f"--{name}={value}: must be one of {', '.join(choices)}")
    if is_bucket(out):
        raise ConfigError(f"--out={out}: shards are written to a disk; name a folder there")
    require("array_record", "--mode=encode")
    folder = output(to_path(out) / split)
    data = read_data(Fields(config).section("data"))
    if data.name == "latents":
        raise ConfigError("config.data.name='latents': these are encoded already; name the images")
    encoder = str(pipeline or autoencoder)
    loaded, of_text = _load(autoencoder, pipeline, dtype=dtype, scale=scale, statistics=statistics)
    limit = data.memory_limit_bytes if data.name == "arrays" else 0  # each image is read once
    source = replace(data, crop=crop, memory_limit_bytes=limit, captions=of_text is not None).open(split)
    with _naming(f"{'--pipeline' if pipeline else '--autoencoder'}={encoder}"):
        check_fits(source, loaded)
    made = {"crop": crop_of(source) or "none", "image_shape": list(source.shape)}
    made |= {"columns": data.columns} if data.columns else {}
    entries = {"split": split, "preprocessing": made, "data": data.name, **data_key_of(source)}
    entries["origin"] = {"autoencoder": encoder, "data_dir": data.data_dir, "dtype": dtype}
    sizes = {"tile": tile, "batch_size": batch_size or 8 * jax.local_device_count(), "shard_size": shard_size}
    options = {"pipeline": of_text, "mirrored": mirrored, **sizes}
    manifest = encode_source(source, loaded, folder, about=entries, bar=partial(progress, "encoding"), **options)
    say(_report(folder, manifest))
    return manifest


@contextlib.contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Turns a DataError of the block into a ConfigError that begins with the flag."""
    try:
        yield
    except DataError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _load(
    autoencoder: str | Path | None, pipeline: str | Path | None, **options: Any
) -> tuple[Autoencoder, TextToImage | None]:
    """Loads the autoencoder, and the pipeline where that is named instead. Raises: ConfigError."""
    if pipeline is None and autoencoder is None:
        captions = "or a pipeline's for captions too, as --pipeline=stable-diffusion-v1-5"
        raise ConfigError(f"--autoencoder is missing: name its folder, as --autoencoder=sd-vae-ft-ema, {captions}")
    if pipeline is None:
        return _load_autoencoder(str(autoencoder), **options), None
    if autoencoder is not None:
        raise ConfigError(f"--autoencoder={autoencoder}: the pipeline has an autoencoder; leave one of the flags out")
    for name in ("scale", "statistics"):
        if options[name] is not None:
            raise ConfigError(f"--{name}={options[name]}: a pipeline's autoencoder has its scale; leave it out")
    try:
        loaded = load_pipeline(pipeline, dtype=options["dtype"], with_unet=False)
    except (ForeignError, MissingLibrary) as error:
        raise ConfigError(about("--pipeline", str(pipeline), error)) from error
    return loaded.autoencoder, loaded


def _load_autoencoder(path: str, *, dtype: str, scale: Any, statistics: str | Path | None) -> Autoencoder:
    try:
        if scale is not None:
            scale = [float(number) for number in ([scale] if isinstance(scale, float | int) else scale)]
        return load_autoencoder(path, dtype=dtype, scale=scale, statistics=statistics)
    except ForeignError as error:
        raise ConfigError(about("--autoencoder", path, error)) from error
    except ValueError as error:
        raise ConfigError(f"--scale={scale}: must be a number, or one for each channel ({error})") from error


def _report(folder: Path, manifest: Mapping[str, Any]) -> str:
    height, width, channels = manifest["shape"]
    mirrored = ", mirrored too" if manifest["mirrored"] else ""
    rows = {name: ", ".join(f"{value:.4g}" for value in manifest["statistics"][name]) for name in ("mean", "std")}
    rows["train"] = f"--config.data.name=latents --config.data.data_dir={folder.parent} in a recipe"
    images = f"{manifest['count']:,} images as latents {height}x{width}x{channels}{mirrored}"
    if shapes := manifest.get("text"):
        rows["captions"] = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return "\n".join([f"{folder}: {images}", *(f"{name:12s}{text}" for name, text in rows.items())])
