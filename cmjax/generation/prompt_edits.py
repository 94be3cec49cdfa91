"""Edits an image by a prompt: changes the whole image, or generates what a mask does not keep."""

import math
from pathlib import Path

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.core.editing import mask_of_latents
from cmjax.generation.arguments import Size, image_size, read_images, read_mask
from cmjax.generation.files import check_results, check_size, write_strip
from cmjax.generation.pipelines import DEFAULTS, PromptOptions, make_request, named_size, open_pipeline, sample_request
from cmjax.runs.workdir import output
from cmjax.system.files import to_json, to_path

STRENGTHS = {"strokes": 0.5, "inpainting": 1.0}
"""Task of pipelines -> its default strength."""


def edit_by_prompt(
    folder: str | Path,
    prompt: str,
    image: str,
    *,
    task: str = "strokes",
    mask: str | None = None,
    strength: float | None = None,
    num: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    options: PromptOptions = DEFAULTS,
) -> Path:
    """Edits an image: `edit_by_prompt("runs/sd15", "a watercolour of a cat", "cat.png", strength=0.6)`.

    Writes the strip original | degraded | results to `out`, and each result alone beside it; their text holds the
    prompt and the settings.

    Args:    folder: a pipeline's. task: of `STRENGTHS`; inpainting keeps the white pixels of a mask.
             strength: above 0, up to 1: how much noise is added to the image. seed: of `sample_prompts`.
    Returns: the file. Raises: ConfigError naming the option that is wrong.
    """
    if task not in STRENGTHS:
        raise ConfigError(f"--task={task}: a pipeline of prompts takes {' and '.join(STRENGTHS)}")
    if task == "inpainting" and mask is None:
        raise ConfigError(f"--mask is missing: --task={task} keeps its white pixels")
    strength = STRENGTHS[task] if strength is None else strength
    if not 0 < strength <= 1:
        raise ConfigError(f"--strength={strength:g}: must be above 0, and at most 1")
    path = to_path(out or to_path(folder) / "edits" / f"{task}.png")
    inputs = check_results(path, [image, mask] if mask else [image], num)
    output(path)
    had, pipeline = image_size(image), open_pipeline(folder, options)
    factor, channels = pipeline.autoencoder.factor, pipeline.autoencoder.module.channels
    size = named_size(pipeline, options.size) or fitting_size(had, pipeline.pixels, factor)
    request = make_request(pipeline, [prompt] * num, options, size=size, strength=strength)
    check_size(path, num + 2, (*size, channels))
    originals, sizes = read_images([image], (*size, channels), 1, whose="")
    known = None if mask is None else read_mask(mask, (*size, channels), sizes, whose="")
    if known is not None and not np.asarray(mask_of_latents(known, factor)).any():
        raise ConfigError(f"--mask={mask}: no square of {factor}x{factor} pixels, as latents stand for, is white")
    results = sample_request(request, seed, image=originals, mask=known, strength=strength)
    columns = {"original": originals}
    if known is not None:  # what is missing is shown as grey
        columns["degraded"] = np.where(known, originals, np.uint8(128))
    columns["result"] = results
    settings = {"folder": str(folder), "task": task, "image": image, "strength": strength, "seed": seed, "num": num}
    settings |= {"mask": mask} if mask else {}
    words = {"prompt": prompt, "cmjax": to_json(settings | request.settings)}
    write_strip(path, {name: to_unit(images) for name, images in columns.items()}, to_unit(results), inputs, **words)
    return path


def fitting_size(size: Size, pixels: int, factor: int) -> Size:
    """Chooses the size, in multiples of `factor`, at which an image is edited by a network trained with pixels² pixels.

    It is the image's own where that has between half and twice as many pixels; else the same shape with pixels².
    """
    height, width = size
    is_near = 0.5 <= height * width / pixels**2 <= 2
    scale = 1.0 if is_near else pixels / math.sqrt(height * width)
    rows, columns = (max(1, round(side * scale / factor)) * factor for side in size)
    return rows, columns


def to_unit(images: np.ndarray) -> np.ndarray:
    """Converts uint8 images to floats in [−1, 1]."""
    return images.astype(np.float32) / 127.5 - 1
