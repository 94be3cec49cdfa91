"""Samples images of prompts by a pipeline, and writes them as a grid, whose text holds the settings, or an array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError, about
from cmjax.generation.files import check_size
from cmjax.generation.pipelines import DEFAULTS, PromptOptions, make_request, open_pipeline, sample_request
from cmjax.plotting.plots import image_grid, save_png
from cmjax.runs.workdir import output, writing
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.npz import npz_bytes
from cmjax.system.processes import on_first_process, say


def sample_prompts(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    num: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    options: PromptOptions = DEFAULTS,
) -> Path:
    """Samples `num` images of each prompt: `sample_prompts("runs/sd15", ["a cat"], out="cat.png")`.

    Args:    folder: a pipeline's. out: x.png, a grid whose text holds prompts and settings, or x.npz, `images` and
             `prompts`. seed: the same one gives the same images, on any number of devices.
    Returns: the file. Raises: ConfigError naming the option that is wrong.
    """
    path = to_path(out or to_path(folder) / "samples" / f"seed-{seed}.png")
    if path.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out={out}: must end in .png (a grid) or .npz (an array)")
    every = [prompt for prompt in prompts for _ in range(num)]
    request = make_request(open_pipeline(folder, options), every, options)
    check_size(path, len(every), (*request.size, 3))
    output(path)
    images = sample_request(request, seed)
    settings = {"folder": str(folder), "seed": seed, "num": num, **request.settings}
    on_first_process(lambda: _write(path, images, prompts, num, settings))
    say(f"{len(every)} images of {folder}: {path}")
    return path


def _write(path: Path, images: np.ndarray, prompts: Sequence[str], num: int, settings: dict[str, Any]) -> None:
    with writing(path):
        if path.suffix == ".npz":
            every = np.repeat(np.asarray(prompts, dtype=np.str_), num)
            arrays = {"images": images, "prompts": every, "settings": np.asarray(to_json(settings))}
            write_atomically(path, npz_bytes(arrays))
            return
        columns = num if len(prompts) > 1 and num > 1 else None
        words = {"prompt": "\n".join(prompts), "cmjax": to_json(settings)}
        save_png(path, image_grid(images, columns=columns), **words)


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """Reads the prompt of `--prompt`, or those of the file of `--prompts`, one a line. Raises: ConfigError."""
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
