"""`--mode=sample`: images of a trained run, as a grid or an array.

cmjax sample --workdir=runs/digits_ct
cmjax sample --workdir=runs/digits_ct --times=80,0.8 --num=10000 --out=x.npz
cmjax sample --workdir=runs/digits_edm --solver=heun --steps=18
"""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.evaluation import LABELS
from cmjax.config.fields import ConfigError
from cmjax.generation.arguments import given_label
from cmjax.generation.autoguidance import weaker_model
from cmjax.generation.resumable import write_array
from cmjax.generation.samplers import chosen_samples, conditioned, sampler_of
from cmjax.generation.sampling import SampleSequence
from cmjax.generation.search import find_times
from cmjax.plotting.plots import cell_size, image_grid, save_png
from cmjax.runs.setup import open_for_sampling
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import output
from cmjax.system.content import content_key
from cmjax.system.files import to_path
from cmjax.system.memory import GIB, free_on_host
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

OF_SAMPLER = ("solver", "steps", "sampler", "gamma", "clip", "guidance", "guidance_interval")
"""The flags that `chosen_samples` takes."""
MOST_IN_A_GRID = 10_000
MOST_PIXELS = 100_000_000
"""Of a grid: more images than anyone can look at, or more pixels than a viewer opens, are refused."""


def declare(flags: Flags) -> None:
    flags.group("Images")
    flags.checkpoint()
    flags.integer("num", 64, "How many images.", at_least=1)
    flags.integer("seed", 0, "The same seed gives the same images.", at_least=0)
    flags.text("label", None, "The class, by number or name, of a class-conditional model. Default: all in turn.")
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1], as OpenAI's code. Default: the run's.")
    flags.one_of("labels", None, LABELS, "Classes in turn, or at random, a function of --seed. Default: balanced.")
    flags.text(
        "out",
        None,
        "x.png for a grid, of 10,000 images at most; x.npz for images. Default: <workdir>/samples/seed-<seed>.png.",
    )
    flags.group("Consistency models")
    flags.texts("times", "Noise levels, as 80,0.8, places on a Karras grid, as idx:0,22,39/40, or a search, auto:2.")
    flags.text("sampler", None, "multistep, or of flow maps chain(gamma=0), from time to time. Default: the run's.")
    flags.number(
        "gamma", None, "Flow maps: short for --sampler='chain(gamma=…)', γ the fraction of new noise.", 0.0, 1.0
    )
    flags.group("Diffusion teachers")
    solvers = "ddim, euler, heun, midpoint, dpmpp_2m, churn(s_churn=10), ancestral or tsit5"
    flags.text("solver", None, f"{solvers}. Default: the run's.")
    flags.integer("steps", None, "Noise levels of the solver's grid. Default: the run's.", at_most=10**5)
    flags.group("Guidance")
    flags.number("guidance", None, "Scale of classifier-free guidance, of a model with classes. Default: the run's.")
    flags.texts("guidance_interval", "Times between which samples are guided, as 0.3,5. Default: the run's, or all.")
    flags.text(
        "autoguidance", None, "A weaker run, or a checkpoint of one, that guides a teacher, scaled by --guidance."
    )
    flags.integer("autoguidance_average", 0, "Which of its averages, numbered from 0.", at_least=0)


def start(options: Options) -> None:
    names = ("out", "num", "seed", "times", "label", "labels", "autoguidance", "autoguidance_average", *OF_SAMPLER)
    run(options.model, data_dir=options.data_dir, **{name: getattr(options, name) for name in names})


def run(
    workdir: Path,
    *,
    out: str | None,
    num: int,
    seed: int,
    times: list[str] | None,
    label: str | int | None,
    labels: str | None = None,
    autoguidance: str | None = None,
    autoguidance_average: int = 0,
    data_dir: str | None = None,
    **options: Any,
) -> None:
    """Draw `num` images with a checkpoint and write them to `out`. workdir: a run's folder, or a checkpoint's. options:
    `OF_SAMPLER`."""
    trained = open_for_sampling(workdir, data_dir=data_dir)
    path = to_path(out or trained.folder / "samples" / f"{trained.named}seed-{seed}.png")
    if path.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out={out}: must end in .png (a grid) or .npz (an array)")
    searched = _searched(times) if trained.model.kind != "denoiser" else None
    weaker = weaker_model(trained, autoguidance, autoguidance_average)
    named = {"times": None if searched else times, "autoguidance": weaker.name if weaker else ""}
    samples = chosen_samples(trained, **named, **options)
    random_seed = _seed_of_labels(trained, labels, label, seed)
    (_check_grid if path.suffix == ".png" else _check_array)(num, trained.shape)
    output(path)
    flow_map, label = trained.load(mesh=make_mesh()), given_label(label, trained)
    by = {"label": label, "random_seed": random_seed, "weaker": weaker and weaker.load()}
    guided_map, conditions = conditioned(flow_map, trained, samples, num, **by)
    if searched:
        samples = replace(samples, times=find_times(trained, flow_map, searched, samples=samples))
    chosen = sampler_of(samples, trained.model)
    settings = {"workdir": str(workdir), "checkpoint": trained.used_step, "seed": seed, "label": label}
    settings |= {"labels": labels or "balanced"} if trained.num_classes else {}
    settings |= {**chosen.setting, "parameters": content_key(guided_map.params)}
    _write(path, num, SampleSequence(chosen.sampler, guided_map, seed, conditions), settings)
    say(f"{num} images of {workdir}: {path}")


def _seed_of_labels(trained: Trained, labels: str | None, label: str | int | None, seed: int) -> int | None:
    """Of random labels; None for one class, or all in turn."""
    if labels is not None and not trained.num_classes:
        raise ConfigError(f"--labels={labels}: the model has no classes")
    if labels is not None and label is not None:
        raise ConfigError(f"--labels={labels}: --label={label} is one class; give one of them")
    return seed if labels == "random" else None


def _check_array(num: int, shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the machine has no room for all the samples, which are put together at the end."""
    needed, free = 2 * num * math.prod(shape) * (1 if shape[-1] in (1, 3) else 4), free_on_host()
    if free is not None and needed > free:
        raise ConfigError(
            f"--num={num}: they take {needed / GIB:,.1f} GiB when they are put together, of {free / GIB:,.1f} free: "
            "ask for fewer at a time, with another --seed each"
        )


def _check_grid(num: int, shape: tuple[int, ...]) -> None:
    """Raise ConfigError for a grid of more images than anyone can look at."""
    pixels = num * math.prod(cell_size(shape[:2]))
    if num > MOST_IN_A_GRID or pixels > MOST_PIXELS:
        raise ConfigError(
            f"--num={num}: a grid of {pixels:,} pixels, where at most {MOST_IN_A_GRID:,} images and {MOST_PIXELS:,} "
            "pixels are drawn; write an array, as --out=x.npz"
        )


def _write(path: Path, num: int, draw: SampleSequence, settings: dict[str, Any]) -> None:
    """The samples as a grid, or as an array that is drawn in parts."""
    with progress("sampling", num) as update:
        try:
            if path.suffix == ".png":
                images = draw.images(0, num, update)
                on_first_process(lambda: save_png(path, image_grid(images)))
            else:
                write_array(path, num, lambda start, stop: draw.images(start, stop, update), settings=settings)
        except OSError as error:
            raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error


def _searched(times: list[str] | None) -> int | None:
    """The number of evaluations whose times are searched for; None where they are named."""
    if not times or not times[0].startswith("auto:"):
        return None
    try:
        (text,) = times
        return int(text.removeprefix("auto:"))
    except ValueError:
        raise ConfigError(f"--times={','.join(times)}: must be the number of evaluations, as auto:2") from None
