"""`--mode=edit`: an image, edited by a consistency model that was trained for no such thing.

cmjax edit --workdir=runs/mnist_ct --task=inpainting --image=3.png --mask=hole.png --num=4
cmjax edit --workdir=runs/mnist_ct --task=super_resolution --image=3.png --patch=4
cmjax edit --workdir=runs/mnist_ct --task=interpolation --seeds=3,8 --num=8
"""

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.data.batches import to_uint8
from cmjax.generation.arguments import edit_times, labels_of_edit, read_images, read_mask
from cmjax.generation.editing import ALL_TASKS, PICTURES, TASKS, TaskSettings, edit_images
from cmjax.generation.interpolation import Ends, find_ends, interpolate, seeded_ends
from cmjax.generation.sampling import guided_as_trained
from cmjax.plotting.plots import image_grid, save_png
from cmjax.runs.setup import open_for_sampling
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import output
from cmjax.system.files import is_bucket, to_path
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

log = logging.getLogger(__name__)


OF_TASKS = {
    "mask": ("inpainting", "blending"),
    "patch": ("super_resolution",),
    "sigma": ("denoising",),
    "add_noise": ("denoising",),
    "margin": ("outpainting",),
    "seeds": ("interpolation",),
    "times": (*TASKS, "interpolation"),
    "clip": tuple(TASKS),
}
"""Flags that do something for some tasks alone."""


def declare(flags: Flags) -> None:
    flags.group("The edit")
    flags.checkpoint()
    flags.one_of("task", None, ALL_TASKS, "What is done.")
    flags.texts("image", "A PNG or JPEG file of any size, laid over white; two for blending and interpolation.")
    flags.integer("num", None, "How many results. Default: 1; of an interpolation, 8.", at_least=1)
    flags.integer("seed", 0, "The same seed gives the same results.", at_least=0)
    flags.texts("label", "The class, by number or name, of a class-conditional model; of interpolation, or two.")
    flags.texts("times", "Noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40.")
    flags.boolean("clip", True, "Clip every estimate to black and white; --noclip for models that do better without.")
    flags.text("out", None, "The strip of images, x.png. Default: <workdir>/edits/<task>.png.")
    flags.group("Of one task")
    flags.text("mask", None, "inpainting, blending: white pixels are kept; of the size of the image or of the model's.")
    flags.integer("patch", 4, "super_resolution: pixels that it makes one of, along each side.")
    flags.number("sigma", None, "denoising: std of the noise that is removed; black to white is 2.")
    flags.boolean("add_noise", False, "denoising: add the noise of --sigma first.")
    flags.number("margin", 0.25, "outpainting: fraction of each side that is added, above 0.", 0.0, 0.49)
    flags.texts("seeds", "interpolation: two seeds to go between, as 3,8, in place of images.")


def start(options: Options) -> None:
    _check_flags(options)
    names = ("task", "mask", "out", "times", "seeds", "label", "seed", "patch", "sigma", "add_noise", "margin", "clip")
    num = options.num or (8 if options.task == "interpolation" else 1)
    run(options.model, images=options.image, num=num, **{name: getattr(options, name) for name in names})


def _check_flags(options: Options) -> None:
    """Raise ConfigError, naming the flag, where one is given that changes nothing."""
    task = options.task
    if task is None:
        raise ConfigError(f"--task is missing: one of {', '.join(ALL_TASKS)}")
    for name, tasks in OF_TASKS.items():
        if options.given(name) and task not in tasks:
            flag = f"--no{name}" if getattr(options, name) is False else f"--{name}"
            raise ConfigError(f"{flag}: only {', '.join(f'--task={other}' for other in tasks)}; this is {task}")
    if task == "denoising" and not options.add_noise:
        for name in ("seed", "num"):
            if options.given(name):
                raise ConfigError(f"--{name}: denoising draws nothing at random; --{name} is for --add_noise")
    if task == "interpolation" and not options.image and options.given("seed"):
        raise ConfigError("--seed: interpolation without images goes between two seeds; name them, as --seeds=3,8")


def run(
    workdir: Path,
    *,
    task: str | None,
    images: list[str] | None,
    mask: str | None,
    out: str | None,
    times: list[str] | None,
    num: int,
    seeds: list[str] | None,
    label: Sequence[str | int] | str | int | None,
    **options: Any,
) -> None:
    """Edit an image with a checkpoint, `workdir` or the newest of that folder; write the strip original | degraded |
    results to `out`, and each result alone beside it."""
    if task not in ALL_TASKS:
        raise ConfigError(f"--task={task}: must be one of {', '.join(ALL_TASKS)}")
    if task == "interpolation" and len(times or ()) > 1:
        raise ConfigError(f"--times={','.join(times or ())}: interpolation is one evaluation; name one noise level")
    trained = open_for_sampling(workdir)
    path = to_path(out or trained.folder / "edits" / f"{trained.named}{task}.png")
    given = _given_beside(path, [file for file in (*(images or ()), mask) if file], num)
    output(path)
    flow_map = trained.load(mesh=make_mesh())
    if flow_map.kind == "denoiser":
        raise ConfigError(f"--workdir={workdir}: it is a diffusion teacher; editing needs a consistency model")
    if flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: its samples, {flow_map.shape}, are no images")
    grid = edit_times(times, trained)
    flow_map, conditions = guided_as_trained(flow_map, _conditions(label, task, num, trained), trained)
    show_progress = partial(progress, f"{task}, evaluations")
    if task == "interpolation":
        ends = _latents(images, seeds, flow_map, grid[0], conditions, options["seed"])
        results = interpolate(
            flow_map, ends.latents, num, time=grid[0], conditions=conditions, show_progress=show_progress
        )
        columns = {"image": ends.pictures[:1], "on the way": results, "other image": ends.pictures[1:]}
    else:
        pictures, sizes = read_images(images, flow_map.shape, PICTURES.get(task, 1))
        known = None if mask is None else read_mask(mask, flow_map.shape, sizes)
        settings = TaskSettings(
            times=grid if times else None, mask=known, label=conditions, path=flow_map.path, **options
        )
        made = edit_images(flow_map, np.tile(pictures, (num, 1, 1, 1)), task, settings, grid, show_progress)
        columns, results = made.columns(len(pictures)), made.results
    _write(path, columns, results, flow_map, given)


def _given_beside(path: Path, files: Sequence[str], num: int) -> list[Path]:
    """The files that the edit is made from. Raises: ConfigError where the strip `path` or a result is one of them."""
    if path.suffix != ".png":
        raise ConfigError(f"--out={path}: must end in .png")
    given = [to_path(file) for file in files]
    if written := {_place(file) for file in given} & {_place(file) for file in (path, *_result_files(path, num))}:
        raise ConfigError(f"--out={path}: it would write over {min(written)}, its own image; name another")
    return given


def _conditions(
    label: Sequence[str | int] | str | int | None, task: str, num: int, trained: Trained
) -> dict[str, np.ndarray]:
    """The labels of the results, or of the two ends of an interpolation."""
    labels = [label] if isinstance(label, int | str) else list(label or ())
    if len(labels) > (2 if task == "interpolation" else 1):
        raise ConfigError(f"--label={','.join(map(str, labels))}: must be one class; interpolation alone takes two")
    return labels_of_edit(labels, 2 if task == "interpolation" else num, trained)


def _latents(
    images: list[str] | None,
    seeds: list[str] | None,
    flow_map: BoundModel,
    time: float,
    conditions: dict[str, np.ndarray],
    seed: int,
) -> Ends:
    """What interpolation goes between: the latents of two seeds, or those found for two images."""
    if images and seeds:
        raise ConfigError("--seeds and --image: interpolation goes between two seeds or two images, not both")
    if not images:
        return seeded_ends(flow_map, _two_seeds(seeds))
    pictures, _ = read_images(images, flow_map.shape, 2)
    ends = find_ends(flow_map, pictures, time=time, seed=seed, conditions=conditions)
    for file, error in zip(images, ends.errors, strict=True):
        say(f"{file}: found again with an error of {error:.3f} (RMS; black to white is 2)")
    return ends


def _two_seeds(seeds: list[str] | None) -> tuple[int, int]:
    try:
        first, last = map(int, seeds or ("0", "1"))
        if not 0 <= min(first, last) <= max(first, last) < 2**31:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--seeds={','.join(seeds or [])}: must be two whole numbers from 0 on, as 3,8") from None
    return first, last


def _write(
    path: Path, columns: dict[str, np.ndarray], results: np.ndarray, flow_map: BoundModel, given: Sequence[Path]
) -> None:
    """The strip of the columns that have images, and each result alone. given: files that the edit was made from."""
    columns = {name: pictures for name, pictures in columns.items() if len(pictures)}
    strip = np.concatenate(list(columns.values()))
    files = _result_files(path, len(results))

    def write() -> None:
        _remove_earlier(path, [*files, *given])
        save_png(path, image_grid(to_uint8(strip), columns=len(strip)))
        for file, result in zip(files, to_uint8(results), strict=True):
            save_png(file, np.broadcast_to(result, (*flow_map.shape[:2], 3)))

    try:
        on_first_process(write)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    alone = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    say(f"{path}: {' | '.join(columns)}; results alone: {alone} beside it")


def _remove_earlier(path: Path, kept: Sequence[Path]) -> None:
    """Remove the results that an earlier edit wrote beside the strip `path`, so that old and new ones do not mix."""
    of_results = re.compile(re.escape(path.stem) + r"-result(-(0|[1-9]\d*))?\.png")
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    places = set(map(_place, kept))
    stale = [file for file in beside if of_results.fullmatch(file.name) and _place(file) not in places]
    for file in stale:
        file.unlink()
    if stale:
        log.info("removed %d results of an earlier edit beside %s", len(stale), path)


def _place(file: Path) -> Path:
    """The file's own place, the same for each of its names."""
    return file if is_bucket(file) else file.resolve()


def _result_files(path: Path, num: int) -> list[Path]:
    """Where each result alone is written, beside the strip `path`."""
    numbers = [f"-{i}" for i in range(num)] if num > 1 else [""]
    return [path.with_name(f"{path.stem}-result{number}.png") for number in numbers]
