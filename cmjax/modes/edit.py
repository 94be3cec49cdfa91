"""`--mode=edit`: a picture, edited by a consistency model that was trained for no such thing.

cmjax edit --workdir=runs/mnist_ct --task=inpainting --image=3.png --mask=hole.png --num=4
cmjax edit --workdir=runs/mnist_ct --task=super_resolution --image=3.png --patch=4
cmjax edit --workdir=runs/mnist_ct --task=interpolation --seeds=3,8 --num=8
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.command_line import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.core.sampling import FlowMap
from cmjax.data.batches import to_uint8
from cmjax.drawing.draw import guided_as_trained
from cmjax.drawing.given import edit_times, labels_of_edit, read_mask, read_pictures
from cmjax.drawing.interpolation import Ends, find_ends, interpolate, seeded_ends
from cmjax.drawing.tasks import ALL_TASKS, PICTURES, TaskSettings, edit_pictures
from cmjax.evaluation.plots import image_grid, save_png
from cmjax.machine.files import to_path
from cmjax.machine.mesh import make_mesh
from cmjax.machine.processes import first_does, say
from cmjax.runs.trained import open_trained

log = logging.getLogger(__name__)


OF_TASKS = {
    "mask": ("inpainting", "blending"),
    "patch": ("super_resolution",),
    "sigma": ("denoising",),
    "add_noise": ("denoising",),
    "margin": ("outpainting",),
    "seeds": ("interpolation",),
}
"""Flags that some tasks alone know."""


def declare(flags: Flags) -> None:
    flags.group("The edit")
    flags.one_of("task", None, ALL_TASKS, "What is done.")
    flags.texts("image", "A PNG or JPEG file of any size; two for blending and interpolation.")
    flags.integer("num", None, "How many results. Default: 1; of an interpolation, 8.", at_least=1)
    flags.integer("seed", 0, "The same seed gives the same results.", at_least=0)
    flags.integer("label", None, "The class, of a class-conditional model.")
    flags.texts("times", "Noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40.")
    flags.boolean("clip", True, "Clip every estimate to black and white; --noclip for models that do better without.")
    flags.text("out", None, "The strip of pictures, x.png. Default: <workdir>/edits/<task>.png.")
    flags.group("Of one task")
    flags.text("mask", None, "inpainting, blending: a picture whose white pixels are kept.")
    flags.integer("patch", 4, "super_resolution: pixels that it makes one of, along each side.")
    flags.number("sigma", None, "denoising: std of the noise that is removed; black to white is 2.")
    flags.boolean("add_noise", False, "denoising: add the noise of --sigma first.")
    flags.number("margin", 0.25, "outpainting: share of each side that is added.", 0.0, 0.49)
    flags.texts("seeds", "interpolation: two seeds to go between, as 3,8, in place of pictures.")


def start(options: Options) -> None:
    for name, tasks in OF_TASKS.items():
        if options.given(name) and options.task not in tasks:
            raise ConfigError(f"--{name}: only {', '.join(f'--task={task}' for task in tasks)}; this is {options.task}")
    names = ("task", "mask", "out", "times", "seeds", "label", "seed", "patch", "sigma", "add_noise", "margin", "clip")
    num = options.num or (8 if options.task == "interpolation" else 1)
    run(options.workdir, images=options.image, num=num, **{name: getattr(options, name) for name in names})


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
    label: int | None,
    **options: Any,
) -> None:
    """Edit a picture with the newest checkpoint of `workdir`; write the strip original | degraded | results to `out`,
    and each result alone beside it."""
    if task not in ALL_TASKS:
        raise ConfigError(f"--task={task}: must be one of {', '.join(ALL_TASKS)}")
    path = to_path(out or workdir / "edits" / f"{task}.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    trained = open_trained(workdir)
    flow_map = trained.load(mesh=make_mesh())
    if flow_map.kind == "denoiser":
        raise ConfigError(f"--workdir={workdir}: it is a diffusion teacher; editing needs a consistency model")
    if flow_map.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={workdir}: its samples, {flow_map.shape}, are no pictures")
    grid = edit_times(times, trained)
    flow_map, conditions = guided_as_trained(flow_map, labels_of_edit(label, num, trained), trained)
    if task == "interpolation":
        ends = _latents(images, seeds, flow_map, grid[0], conditions, options["seed"])
        results = interpolate(flow_map, ends.latents, num, time=grid[0], conditions=conditions)
        columns = {"picture": ends.pictures[:1], "on the way": results, "other picture": ends.pictures[1:]}
        _write(path, columns, results, flow_map)
        return
    pictures = read_pictures(images, flow_map.shape, PICTURES.get(task, 1))
    known = None if mask is None else read_mask(mask, flow_map.shape)
    settings = TaskSettings(times=grid if times else None, mask=known, label=conditions, path=flow_map.path, **options)
    made = edit_pictures(flow_map, np.tile(pictures, (num, 1, 1, 1)), task, settings, grid)
    columns = {"original": made.originals[: len(pictures)], "degraded": made.degraded[:1], "result": made.results}
    _write(path, columns, made.results, flow_map)


def _latents(
    images: list[str] | None,
    seeds: list[str] | None,
    flow_map: FlowMap,
    time: float,
    conditions: dict[str, np.ndarray],
    seed: int,
) -> Ends:
    """What interpolation goes between: the latents of two seeds, or those found for two pictures."""
    if images and seeds:
        raise ConfigError("--seeds and --image: interpolation goes between two seeds or two pictures, not both")
    if not images:
        return seeded_ends(flow_map, _two_seeds(seeds))
    pictures = read_pictures(images, flow_map.shape, 2)
    ends = find_ends(flow_map, pictures, time=time, seed=seed, conditions=conditions)
    for file, error in zip(images, ends.errors, strict=True):
        say(f"{file}: found again with an error of {error:.3f} (RMS; black to white is 2)")
    return ends


def _two_seeds(seeds: list[str] | None) -> tuple[int, int]:
    try:
        first, last = map(int, seeds or ("0", "1"))
    except ValueError:
        raise ConfigError(f"--seeds={','.join(seeds or [])}: must be two whole numbers, as 3,8") from None
    return first, last


def _write(path: Path, columns: dict[str, np.ndarray], results: np.ndarray, flow_map: FlowMap) -> None:
    """The strip of the columns that have pictures, and each result alone."""
    columns = {name: pictures for name, pictures in columns.items() if len(pictures)}
    strip = np.concatenate(list(columns.values()))

    def write() -> None:
        save_png(path, image_grid(to_uint8(strip), columns=len(strip)))
        for i, result in enumerate(to_uint8(results)):
            number = f"-{i}" if len(results) > 1 else ""
            pixels = np.broadcast_to(result, (*flow_map.shape[:2], 3))
            save_png(path.with_name(f"{path.stem}-result{number}.png"), pixels)

    try:
        first_does(write)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    say(f"{path}: {' | '.join(columns)}; results alone: {path.stem}-result*.png beside it")
