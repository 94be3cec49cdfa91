"""`--mode=edit`: edits an image by a consistency model that was not trained for it.

cmjax edit --workdir=runs/mnist_ct --task=inpainting --image=3.png --mask=hole.png --num=4
cmjax edit --workdir=runs/mnist_ct --task=super_resolution --image=3.png --patch=4
cmjax edit --workdir=runs/mnist_ct --task=interpolation --seeds=3,8 --num=8
cmjax edit --workdir=runs/sd15 --task=stroke --prompt="a watercolour of a cat" --image=cat.png --strength=0.6
cmjax edit --workdir=runs/sd15 --task=inpaint --prompt="a red ball" --image=cat.png --mask=paws.png
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.generation.arguments import edit_labels, edit_times, read_images, read_mask
from cmjax.generation.decoding import Decoder, check_are_images, decoder_of
from cmjax.generation.editing import ALL_TASKS, IMAGES_NEEDED, OF_PIXELS, TASKS, TaskSettings, edit_images
from cmjax.generation.files import check_results, write_strip
from cmjax.generation.interpolation import Ends, find_ends, interpolate, seeded_ends
from cmjax.generation.sampling import guided_by
from cmjax.runs.trained import Trained, open_for_sampling
from cmjax.runs.workdir import output, sees_prompts
from cmjax.system.files import to_path
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import say
from cmjax.system.progress import progress

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
"""Flag -> the tasks in which it has an effect; flags of all tasks are not here."""
SHORT = {"inpaint": "inpainting", "stroke": "strokes"}
"""Other names of tasks."""
OF_PROMPTS = ("prompt", "negative-prompt", "strength", "sampler", "steps", "guidance", "size", "lora", "lora_scale")
OF_BOTH = ("workdir", "task", "image", "mask", "num", "seed", "times", "out")
"""The flags of pipelines alone, and those that pipelines and runs take."""
Labels = Sequence[str | int] | str | int | None


def declare(flags: Flags) -> None:
    flags.group("The edit")
    flags.checkpoint()
    flags.one_of("task", None, (*ALL_TASKS, *SHORT), "What is done; of prompts strokes or inpainting.")
    flags.texts("image", "A PNG or JPEG file of any size, laid over white; two for blending and interpolation.")
    flags.integer("num", None, "How many results. Default: 1; of an interpolation, 8.", at_least=1)
    flags.integer("seed", 0, "The same seed gives the same results.", at_least=0)
    flags.texts("label", "The class, by number or name, of a class-conditional model; of interpolation, or two.")
    times = "Noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40; of prompts steps, as 999,500."
    flags.text("times", None, times)
    flags.boolean("clip", True, "Clip every estimate to black and white; --noclip for models that do better without.")
    flags.autoencoder()
    flags.text("out", None, "The strip of images, x.png. Default: <workdir>/edits/<task>.png.")
    flags.group("Of one task")
    flags.text("mask", None, "inpainting, blending: white pixels are kept; of the size of the image or of the model's.")
    flags.integer("patch", 4, "super_resolution: pixels that it makes one of, along each side.")
    flags.number("sigma", None, "denoising: std of the noise that is removed; black to white is 2.")
    flags.boolean("add_noise", False, "denoising: add the noise of --sigma first.")
    flags.number("margin", 0.25, "outpainting: fraction of each side that is added, above 0.", 0.0, 0.49)
    flags.texts("seeds", "interpolation: two seeds to go between, as 3,8, in place of images.")
    flags.group("Prompts, of an imported pipeline of Stable Diffusion")
    flags.prompt("What the result shows.")
    flags.number("strength", None, "How much is changed, above 0, up to 1. Default: 0.5, of inpainting 1.")
    flags.text("sampler", None, "ddim, pndm or lcm. Default: the pipeline's.")
    flags.integer("steps", None, "How many. Default: 4 of lcm, 50 of the others.", at_least=1)
    flags.number("guidance", None, "Scale of guidance; 1: none. Default: the pipeline's.")


def start(options: Options) -> None:
    if options.task is None:
        raise ConfigError(f"--task is missing: one of {', '.join(ALL_TASKS)}")
    task: str = SHORT.get(options.task) or options.task
    _check_flags(options, task)
    if sees_prompts(options.workdir):
        _start_prompts(options, task)
        return
    options.refuse_prompts(OF_PROMPTS)
    num = options.num or (8 if task == "interpolation" else 1)
    flags = {name: value for name, value in options.flags.items() if name not in OF_PROMPTS}
    run(options.model, images=flags.pop("image"), **flags | {"num": num, "task": task})


def _start_prompts(options: Options, task: str) -> None:
    from cmjax.generation import pipelines, prompt_edits  # most runs have no prompts

    options.refuse_others(OF_PROMPTS + OF_BOTH, "an edit by prompts")
    flags = options.flags
    if not flags["prompt"]:
        raise ConfigError("--prompt is missing: name what the result shows")
    if len(images := flags["image"] or ()) != 1:
        named = f"={','.join(images)}: name one image" if images else " is missing: name the image"
        raise ConfigError(f"--image{named} that is edited")
    prompt_edits.edit_by_prompt(
        options.workdir,
        flags["prompt"],
        images[0],
        task=task,
        options=pipelines.prompt_options(flags),
        **{name: flags[name] for name in ("mask", "strength", "seed", "out")},
        num=options.num or 1,
    )


def _check_flags(options: Options, task: str) -> None:
    """Raises ConfigError, naming the flag, where one has no effect in this task."""
    for name, tasks in OF_TASKS.items():
        if options.is_set(name) and task not in tasks:
            flag = f"--no{name}" if getattr(options, name) is False else f"--{name}"
            raise ConfigError(f"{flag}: only {', '.join(f'--task={other}' for other in tasks)}; this is {task}")
    if task == "denoising" and not options.add_noise:
        for name in ("seed", "num"):
            if options.is_set(name):
                raise ConfigError(f"--{name}: denoising has no random part; --{name} is for --add_noise")
    if task == "interpolation" and not options.image and options.is_set("seed"):
        raise ConfigError("--seed: interpolation without images goes between two seeds; name them, as --seeds=3,8")


def run(
    workdir: str | Path,
    *,
    task: str | None,
    images: list[str] | None = None,
    mask: str | None = None,
    out: str | None = None,
    times: str | None = None,
    num: int = 1,
    seeds: list[str] | None = None,
    label: Labels = None,
    seed: int = 0,
    autoencoder: str | None = None,
    decode_dtype: str | None = None,
    decode_tile: int | None = None,
    **options: Any,
) -> None:
    """Edits an image: `run("runs/mnist_ct", task="inpainting", images=["3.png"], mask="hole.png")`.

    Writes the strip original | degraded | results to `out`, and each result alone beside it. workdir: a run's folder,
    or a checkpoint's. options: fields of `TaskSettings`. All arguments are the mode's flags; images are their files.
    """
    task, trained = _checked(task, times), open_for_sampling(workdir)
    path = to_path(out or trained.folder / "edits" / f"{trained.named}{task}.png")
    inputs = check_results(path, [file for file in (*(images or ()), mask) if file], num)
    output(path)
    decoder = _decoder(trained, autoencoder, task, dtype=decode_dtype, tile=decode_tile)
    flow_map, grid = trained.load(mesh=make_mesh()), edit_times(times, trained)
    flow_map, conditions = guided_by(flow_map, _conditions(label, task, num, trained), trained.samples, trained.model)
    show_progress, needed = partial(progress, f"{task}, evaluations"), IMAGES_NEEDED.get(task, 1)
    if task == "interpolation":
        by = {"time": grid[0], "conditions": conditions}
        ends = _ends(images, seeds, flow_map, decoder, seed=seed, **by)
        results = interpolate(flow_map, ends.latents, num, show_progress=show_progress, **by)
        columns = {"image": ends.images[:1], "on the way": results, "other image": ends.images[1:]}
    else:
        originals, sizes = read_images(images, trained.shape if decoder is None else decoder.shape, needed)
        known = None if mask is None else read_mask(mask, originals.shape[1:], sizes)
        if decoder is not None:
            originals, known = decoder.encode(originals), None if known is None else decoder.of_latents(known)
            options["clip"] = False  # it is to [-1, 1], the range of pixels
        taken = {"times": grid if times else None, "mask": known, "label": conditions, "path": flow_map.path}
        settings = TaskSettings(seed=seed, **taken, **options)
        # each result is an edit of the same images, with noise of its own
        edited = edit_images(flow_map, np.tile(originals, (num, 1, 1, 1)), task, settings, grid, show_progress)
        columns, results = edited.columns(len(originals)), edited.results
    if decoder is not None:
        columns = {name: decoder(part) for name, part in columns.items() if len(part)}
        results = decoder(results)
    write_strip(path, columns, results, inputs)


def _checked(task: str | None, times: str | None) -> str:
    if task not in ALL_TASKS:
        raise ConfigError(f"--task={task}: must be one of {', '.join(ALL_TASKS)}")
    if task == "interpolation" and times and "," in times:
        raise ConfigError(f"--times={times}: interpolation is one evaluation; name one noise level")
    return task


def _decoder(trained: Trained, autoencoder: str | None, task: str, **by: Any) -> Decoder | None:
    """Loads the autoencoder of the run's latents. Raises: ConfigError where the task does not fit the run's samples."""
    if trained.model.kind == "denoiser":
        raise ConfigError(f"--workdir={trained.folder}: it is a diffusion teacher; editing needs a consistency model")
    decoder = decoder_of(trained, autoencoder, **by)
    check_are_images(trained, decoder)
    if decoder is not None and task in OF_PIXELS:
        raise ConfigError(f"--task={task}: is of pixels, and --workdir={trained.folder} samples latents")
    return decoder


def _conditions(label: Labels, task: str, num: int, trained: Trained) -> dict[str, np.ndarray]:
    """Gives the labels of the results, or of the two ends of an interpolation."""
    labels = [label] if isinstance(label, int | str) else list(label or ())
    if len(labels) > (2 if task == "interpolation" else 1):
        raise ConfigError(f"--label={','.join(map(str, labels))}: must be one class; interpolation alone takes two")
    return edit_labels(labels, 2 if task == "interpolation" else num, trained)


def _ends(
    images: list[str] | None, seeds: list[str] | None, flow_map: BoundModel, decoder: Decoder | None, **by: Any
) -> Ends:
    """Makes the ends that interpolation goes between: of two seeds, or found for two images. by: as in `find_ends`."""
    if images and seeds:
        raise ConfigError("--seeds and --image: interpolation goes between two seeds or two images, not both")
    if not images:
        try:
            first, last = map(int, seeds or ("0", "1"))
        except ValueError:
            # no two numbers: refused below, as those out of range
            first = last = -1
        if not (0 <= first < 2**31 and 0 <= last < 2**31):
            raise ConfigError(f"--seeds={','.join(seeds or [])}: must be two whole numbers from 0 on, as 3,8")
        return seeded_ends(flow_map, (first, last))
    two, _ = read_images(images, flow_map.shape if decoder is None else decoder.shape, 2)
    two = two if decoder is None else decoder.encode(two)
    ends = find_ends(flow_map, two, **by)
    for file, error in zip(images, ends.errors, strict=True):
        scale = "black to white is 2" if decoder is None else "of latents"
        say(f"{file}: found again with an error of {error:.3f} (RMS; {scale})")
    return ends
