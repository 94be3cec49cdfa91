"""Images of prompts, from a pipeline's folder over all devices, to a grid that holds its settings, or an array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.fields import ConfigError, about
from cmjax.core.typing import Keys
from cmjax.data.batches import to_uint8
from cmjax.generation.files import check_size
from cmjax.generation.sampling import chunk_of, keys_of, over_devices
from cmjax.interop.keys import ForeignError
from cmjax.interop.lora import read_lora, with_lora
from cmjax.interop.pipeline import load_pipeline
from cmjax.interop.pipeline_export import write_pipeline
from cmjax.interop.prompt_sampling import SAMPLERS, sample_images
from cmjax.interop.text_to_image import TextToImage
from cmjax.plotting.plots import image_grid, save_png
from cmjax.runs.workdir import output, writing
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.libraries import MissingLibrary
from cmjax.system.mesh import chunks
from cmjax.system.npz import npz_bytes
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

PIXELS_AT_ONCE = 2**20
"""Of all images of one device: four of 512×512."""


@dataclass(frozen=True)
class Options:
    """How images of prompts are sampled; None is the pipeline's default. They are the flags of `--mode=sample`."""

    negative: str | None = None
    guidance: float | None = None
    sampler: str | None = None
    steps: int | None = None
    times: str | None = None
    size: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0


def sample_prompts(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    num: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    options: Options = Options(),
) -> Path:
    """Samples `num` images of each prompt: `sample_prompts("runs/sd15", ["a cat"], out="cat.png")`.

    Args:    folder: a pipeline's. out: x.png, a grid whose text holds prompts and settings, or x.npz, `images` and
             `prompts`. seed: the same one gives the same images, on any number of devices.
    Returns: the file. Raises: ConfigError naming the option that cannot be.
    """
    path = to_path(out or to_path(folder) / "samples" / f"seed-{seed}.png")
    if path.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out={out}: must end in .png (a grid) or .npz (an array)")
    pipeline = _loaded(folder, options)
    sampler = options.sampler or pipeline.sampler
    if sampler not in SAMPLERS:
        raise ConfigError(f"--sampler={sampler}: of a pipeline it must be one of {', '.join(SAMPLERS)}")
    size, times = _size(pipeline, options.size), _times(pipeline, sampler, options)
    every = [prompt for prompt in prompts for _ in range(num)]
    negative = None if options.negative is None else [options.negative] * len(every)
    try:
        rows = pipeline.rows(every, sampler=sampler, guidance=options.guidance, negative=negative)
    except ValueError as error:
        raise ConfigError(f"--guidance, --negative-prompt: {error}") from error
    check_size(path, len(every), (*size, 3))
    output(path)
    images = _images(pipeline, keys_of(seed, np.arange(len(every))), rows, sampler=sampler, times=times, size=size)
    steps = np.round(times * pipeline.schedule.steps).astype(int).tolist()
    settings = {"folder": str(folder), "seed": seed, "num": num, "sampler": sampler, "times": steps, "size": list(size)}
    settings |= {"guidance": float(rows["guidance"][0]) if "guidance" in rows else 1.0, "negative": options.negative}
    settings |= {"lora": options.lora, "lora_scale": options.lora_scale} if options.lora else {}
    on_first_process(lambda: _write(path, images, prompts, num, settings))
    say(f"{len(every)} images of {folder}: {path}")
    return path


def _loaded(folder: str | Path, options: Options) -> TextToImage:
    """The pipeline, with the LoRA merged. Raises: ConfigError."""
    try:
        pipeline = load_pipeline(folder)
    except (ForeignError, MissingLibrary) as error:
        raise ConfigError(about("--workdir", str(folder), error)) from error
    if options.lora is None:
        return pipeline
    try:
        return with_lora(pipeline, read_lora(options.lora, pipeline), scale=options.lora_scale)
    except (ForeignError, MissingLibrary) as error:
        raise ConfigError(about("--lora", options.lora, error)) from error


def _size(pipeline: TextToImage, text: str | None) -> tuple[int, int]:
    """Height and width, as 512x768."""
    if text is None:
        return pipeline.pixels, pipeline.pixels
    try:
        height, width = map(int, text.lower().split("x"))
        pipeline.check_size((height, width))
    except ValueError as error:
        why = f"multiples of {pipeline.autoencoder.factor}"
        raise ConfigError(f"--size={text}: must be a height and a width in pixels, {why}, as 512x768") from error
    return height, width


def _times(pipeline: TextToImage, sampler: str, options: Options) -> np.ndarray:
    """The times of `--steps`, how many, or of `--times`, the steps themselves."""
    if options.times is not None and options.steps is not None:
        raise ConfigError(f"--times={options.times}: --steps={options.steps} is set too; give one of them")
    name, value = ("--steps", options.steps) if options.times is None else ("--times", options.times)
    try:
        steps = value if not isinstance(value, str) else [int(word) for word in value.split(",")]
        return pipeline.times(sampler, steps)
    except ValueError as error:
        raise ConfigError(about(name, str(value), error)) from error


def _images(pipeline: TextToImage, keys: np.ndarray, rows: Any, *, sampler: str, times: Any, size: Any) -> np.ndarray:
    """All images as uint8, (n, h, w, 3), a chunk at a time over all devices."""

    def sample(model: Any, within: Any) -> Any:
        key_data, rows = within
        key: Keys = jax.random.wrap_key_data(key_data)
        pipeline, times = model
        return sample_images(pipeline, key, rows, times, sampler=sampler, size=size)

    compiled, parts = over_devices(sample), []
    at_once = chunk_of(len(keys), (*size, 3), jax.device_count(), pixels=3 * PIXELS_AT_ONCE, least=1)
    with progress("sampling", len(keys)) as update:
        for within in chunks((keys, rows), at_once):
            parts.append(to_uint8(compiled((pipeline, np.asarray(times, np.float32)), within)))
            update(min(len(parts) * at_once, len(keys)), "")
    return np.concatenate(parts)[: len(keys)]


def _write(path: Path, images: np.ndarray, prompts: Sequence[str], num: int, settings: dict[str, Any]) -> None:
    try:
        if path.suffix == ".npz":
            every = np.repeat(np.asarray(prompts, dtype=np.str_), num)
            write_atomically(path, npz_bytes({"images": images, "prompts": every}))
            return
        columns = num if len(prompts) > 1 and num > 1 else None
        words = {"prompt": "\n".join(prompts), "cmjax": to_json(settings)}
        save_png(path, image_grid(images, columns=columns), **words)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror or error}") from error


def export_pipeline(
    folder: str | Path, out: str | Path | None = None, *, lora: str | None = None, lora_scale: float = 1.0
) -> Path:
    """Writes a pipeline for diffusers, with a LoRA merged: `export_pipeline("runs/sd15", "sd15-lcm", lora=file)`.

    Args:    out: a new folder; by default export/diffusers in `folder`.
    Returns: the folder. Raises: ConfigError naming the option that cannot be.
    """
    path = to_path(out) if out else to_path(folder) / "export" / "diffusers"
    output(path)
    pipeline = _loaded(folder, Options(lora=lora, lora_scale=lora_scale))

    def write() -> None:
        try:
            with writing(path):
                write_pipeline(path, pipeline)
        except (ForeignError, MissingLibrary) as error:
            raise ConfigError(about("--out", str(path), error)) from error

    on_first_process(write)
    say(f"{folder} -> {path}")
    return path


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompt of `--prompt`, or those of the file of `--prompts`, one a line. Raises: ConfigError."""
    if (prompt is None) == (file is None):
        raise ConfigError("--prompt is missing: name what the images show, or a file of prompts, --prompts=FILE")
    if prompt is not None:
        return [prompt]
    try:
        lines = to_path(str(file)).read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(about("--prompts", str(file), error)) from error
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise ConfigError(f"--prompts={file}: line {empty[0]} is empty; each line must be a prompt")
    return lines
