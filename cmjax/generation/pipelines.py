"""Samples a pipeline from prompts to images: checks the flags, and samples over all devices; writes pipelines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.fields import ConfigError, about
from cmjax.data.batches import preprocess, to_uint8
from cmjax.generation.keys import keys_of
from cmjax.generation.sampling import chunk_of, over_devices
from cmjax.interop.keys import ForeignError
from cmjax.interop.lora import read_lora, with_lora
from cmjax.interop.pipeline_export import write_pipeline
from cmjax.interop.prompt_sampling import SAMPLERS, pipeline_end, pipeline_latents, pipeline_start, split_times
from cmjax.interop.text_to_image import TextToImage
from cmjax.runs.pipelines import load_pipeline
from cmjax.runs.workdir import output, writing
from cmjax.system.files import to_path
from cmjax.system.libraries import MissingLibrary
from cmjax.system.mesh import chunks, make_mesh, replicated
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

PIXELS_AT_ONCE = 2**20
"""Pixels of the images that one device samples at once: four images of 512×512."""


@dataclass(frozen=True)
class PromptOptions:
    """Holds the flags that say how images of prompts are sampled; None is the pipeline's default."""

    negative: str | None = None
    guidance: float | None = None
    sampler: str | None = None
    steps: int | None = None
    times: str | None = None
    size: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0


DEFAULTS = PromptOptions()


def prompt_options(flags: Mapping[str, Any]) -> PromptOptions:
    """Takes the options from the command line's flags, by name."""
    names = [field.name for field in fields(PromptOptions) if field.name != "negative"]
    return PromptOptions(negative=flags["negative-prompt"], **{name: flags[name] for name in names})


@dataclass(frozen=True)
class Request:
    """Holds what is sampled: `rows` of a pipeline, by a sampler at its times, as images of a size (height, width).

    settings: what the images depend on, but for the seed.
    """

    pipeline: TextToImage
    sampler: str
    times: np.ndarray
    size: tuple[int, int]
    rows: dict[str, Any]
    settings: dict[str, Any]


def open_pipeline(folder: str | Path, options: PromptOptions = DEFAULTS) -> TextToImage:
    """Loads the pipeline of a folder, with the LoRA merged. Raises: ConfigError."""
    if options.lora is None and options.lora_scale != 1:
        raise ConfigError(f"--lora_scale={options.lora_scale:g}: it has no effect without --lora")
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


def make_request(
    pipeline: TextToImage,
    prompts: Sequence[str],
    options: PromptOptions,
    *,
    size: tuple[int, int] | None = None,
    strength: float = 1.0,
) -> Request:
    """Checks the options, and makes the request for an image of each prompt.

    Args:   size: of images where no option names it; by default the pipeline's. strength: of an edit.
    Raises: ConfigError naming the option that is wrong.
    """
    sampler = options.sampler or pipeline.sampler
    if sampler not in SAMPLERS:
        raise ConfigError(f"--sampler={sampler}: of a pipeline it must be one of {', '.join(SAMPLERS)}")
    times = _times(pipeline, sampler, options, strength)
    negative = None if options.negative is None else [options.negative] * len(prompts)
    try:
        rows = pipeline.rows(prompts, sampler=sampler, guidance=options.guidance, negative=negative)
    except ValueError as error:
        raise ConfigError(f"--guidance, --negative-prompt: {error}") from error
    size = named_size(pipeline, options.size) or size or (pipeline.pixels, pipeline.pixels)
    steps = np.round(times * pipeline.schedule.steps).astype(int).tolist()
    settings = {"sampler": sampler, "times": steps, "size": list(size)}
    settings |= {"guidance": float(rows["guidance"][0]) if "guidance" in rows else 1.0, "negative": options.negative}
    settings |= {"lora": options.lora, "lora_scale": options.lora_scale} if options.lora else {}
    return Request(pipeline, sampler, times, size, rows, settings)


def named_size(pipeline: TextToImage, text: str | None) -> tuple[int, int] | None:
    """Reads --size, height and width as 512x768; None without the flag."""
    if text is None:
        return None
    try:
        height, width = map(int, text.lower().split("x"))
        pipeline.check_size((height, width))
    except ValueError as error:
        why = f"multiples of {pipeline.autoencoder.factor}"
        raise ConfigError(f"--size={text}: must be a height and a width in pixels, {why}, as 512x768") from error
    return height, width


def _times(pipeline: TextToImage, sampler: str, options: PromptOptions, strength: float) -> np.ndarray:
    """Reads the sampler's times: of `--steps`, a number of steps, or of `--times`, the steps themselves."""
    if options.times is not None and options.steps is not None:
        raise ConfigError(f"--times={options.times}: --steps={options.steps} is set too; give one of them")
    named = {"--times": options.times, "--steps": options.steps, "--strength": strength}
    name, value = next((name, value) for name, value in named.items() if value is not None)
    try:
        steps = [int(word) for word in options.times.split(",")] if options.times is not None else options.steps
        return pipeline.times(sampler, steps, strength=strength)
    except ValueError as error:
        raise ConfigError(about(name, str(value), error)) from error


def sample_request(
    request: Request, seed: int, *, image: np.ndarray | None = None, mask: np.ndarray | None = None, strength: float = 1
) -> np.ndarray:
    """Samples all images, uint8 (n, h, w, 3), a chunk at a time over all devices. They depend on the seed alone.

    Args:   image: (1, h, w, 3) uint8, which is edited in each of them. mask, strength: as in `pipeline_images`.
    """

    number, start, step, end = len(request.rows["tokens"][0]), *_functions(request)
    at_once = chunk_of(number, (*request.size, 3), jax.device_count(), pixels=3 * PIXELS_AT_ONCE, least=1)
    pipeline = jax.device_put(request.pipeline, replicated(make_mesh()))
    times, results = np.asarray(request.times, np.float32), []
    parts = split_times(pipeline, request.sampler, times)
    edit = {"images": image, "mask": mask, "strength": np.float32(strength)}
    with progress("sampling", number * len(parts)) as update:
        for keys, rows in chunks((keys_of(seed, np.arange(number)), request.rows), at_once):
            before, here = len(results) * at_once, min(at_once, number - len(results) * at_once)
            inputs = start((pipeline, times[0], edit), (keys, rows))
            for i, part in enumerate(parts):
                inputs["start"] = step((pipeline, part), (keys, inputs))
                update(before * len(parts) + here * (i + 1), "")
            results.append(to_uint8(end((pipeline, edit), inputs["start"])))
    return np.concatenate(results)[:number]


def _functions(request: Request) -> tuple[Callable, Callable, Callable]:
    """Compiles the start, a part of the times and the end of `pipeline_images`, as functions of (model, rows)."""

    def start(model: Any, rows: Any) -> Any:
        (pipeline, time, edit), (key_data, conditions) = model, rows
        edit = _each(edit, len(key_data))
        return pipeline_start(pipeline, jax.random.wrap_key_data(key_data), conditions, time, size=request.size, **edit)

    def step(model: Any, rows: Any) -> Any:
        (pipeline, times), (key_data, inputs) = model, rows
        key, shape = jax.random.wrap_key_data(key_data), inputs["start"].shape
        return pipeline_latents(pipeline, key, shape, sampler=request.sampler, times=times, **inputs)

    def end(model: Any, latents: Any) -> Any:
        pipeline, edit = model
        edit = _each(edit, len(latents))
        return pipeline_end(pipeline, latents, edit["images"], edit["mask"])

    return over_devices(start), over_devices(step), over_devices(end)


def _each(edit: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Repeats the one image that is edited, uint8, and its mask for so many rows; the image in [−1, 1]."""
    image, mask = edit["images"], edit["mask"]
    if image is not None:
        image = preprocess(image, jax.random.key(0), horizontal_flip=False).repeat(number, axis=0)
    return {**edit, "images": image, "mask": mask if mask is None else mask.repeat(number, axis=0)}


def export_pipeline(
    folder: str | Path, out: str | Path | None = None, *, lora: str | None = None, lora_scale: float = 1.0
) -> Path:
    """Writes a pipeline for diffusers, with a LoRA merged: `export_pipeline("runs/sd15", "sd15-lcm", lora=file)`.

    Args:    out: a new folder; by default export/diffusers in `folder`.
    Returns: the folder. Raises: ConfigError naming the option that is wrong.
    """
    path = to_path(out) if out else to_path(folder) / "export" / "diffusers"
    output(path)
    pipeline = open_pipeline(folder, PromptOptions(lora=lora, lora_scale=lora_scale))

    def write() -> None:
        try:
            with writing(path):
                write_pipeline(path, pipeline)
        except (ForeignError, MissingLibrary) as error:
            raise ConfigError(about("--out", str(path), error)) from error

    on_first_process(write)
    say(f"{folder} -> {path}")
    return path
