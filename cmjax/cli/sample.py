"""`--mode=sample`: samples a trained run into a grid or an array of images.

cmjax sample --workdir=runs/digits_ct
cmjax sample --workdir=runs/digits_ct --times=80,0.8 --num=10000 --out=x.npz
cmjax sample --workdir=runs/digits_edm --solver=heun --steps=18
cmjax sample --workdir=runs/sd15 --prompt="a photo of a cat" --num=4 --steps=50 --out=cats.png
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.config.samples import LABELS, SOLVERS, times_text
from cmjax.generation.arguments import read_label
from cmjax.generation.autoguidance import weaker_model
from cmjax.generation.decoding import decoder_of
from cmjax.generation.files import check_size, write_samples
from cmjax.generation.samplers import conditioned, named_sampler, samples_from_flags
from cmjax.generation.sampling import SampleSequence
from cmjax.runs.trained import Trained, open_for_sampling
from cmjax.runs.workdir import output, sees_prompts
from cmjax.system.content import content_key
from cmjax.system.files import to_path
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import say

OF_PROMPTS = ("prompt", "prompts", "negative-prompt", "size", "lora", "lora_scale")
OF_BOTH = ("workdir", "num", "seed", "out", "sampler", "steps", "times", "guidance")
"""The flags of pipelines alone, and those that pipelines and runs take."""


def declare(flags: Flags) -> None:
    flags.group("Images")
    flags.checkpoint()
    flags.integer("num", None, "How many images. Default: 64, or one of each prompt.", at_least=1)
    flags.integer("seed", 0, "The same seed gives the same images.", at_least=0)
    flags.text("label", None, "The class, by number or name, of a class-conditional model. Default: all in turn.")
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1], as OpenAI's code. Default: the run's.")
    flags.one_of("labels", None, LABELS, "Classes in turn, or at random, a function of --seed. Default: balanced.")
    files = "x.png for a grid, of 10,000 images at most; x.npz for images."
    flags.text("out", None, f"{files} Default: <workdir>/samples/seed-<seed>.png.")
    flags.group("Consistency models")
    times = "Noise levels, as 80,0.8, places on a Karras grid, as idx:0,22,39/40, or a search, auto:2."
    flags.text("times", None, times)
    samplers = "multistep, of flow maps chain(gamma=0), of prompts ddim, pndm or lcm."
    flags.text("sampler", None, f"{samplers} Default: the run's.")
    flags.gamma()
    flags.group("Diffusion teachers")
    flags.text("solver", None, f"{', '.join(SOLVERS)}; as 'churn(s_churn=10)' with parameters. Default: the run's.")
    flags.integer("steps", None, "Noise levels of the solver's grid, or of prompts. Default: the run's.", at_most=10**5)
    flags.group("Prompts, of a pipeline of Stable Diffusion")
    flags.prompt("What the images show.")
    flags.text("prompts", None, "A file of prompts, one a line.")
    flags.group("Latents")
    flags.autoencoder()
    flags.group("Guidance")
    flags.guidance()


def start(options: Options) -> None:
    if sees_prompts(options.workdir):
        _start_prompts(options)
        return
    options.refuse_prompts(OF_PROMPTS)
    flags: dict[str, Any] = {name: value for name, value in options.flags.items() if name not in OF_PROMPTS}
    flags["num"] = options.num or 64
    run(options.model, data_dir=options.data_dir, **flags)


def _start_prompts(options: Options) -> None:
    from cmjax.generation import pipelines, prompts  # most runs have no prompts

    options.refuse_others(OF_PROMPTS + OF_BOTH)
    flags = options.flags
    prompts.sample_prompts(
        options.workdir,
        prompts.read_prompts(flags["prompt"], flags["prompts"]),
        num=options.num or 1,
        seed=options.seed,
        out=options.out,
        options=pipelines.prompt_options(flags),
    )


def run(
    workdir: str | Path,
    *,
    out: str | None = None,
    num: int = 64,
    seed: int = 0,
    times: str | float | Sequence[float] | None = None,
    label: str | int | None = None,
    labels: str | None = None,
    autoguidance: str | None = None,
    autoguidance_average: int = 0,
    autoencoder: str | None = None,
    decode_dtype: str | None = None,
    decode_tile: int | None = None,
    data_dir: str | None = None,
    **options: Any,
) -> None:
    """Samples `num` images from a checkpoint and writes them to `out`: `run("runs/digits_ct", num=16)`.

    workdir: a run's folder, or a checkpoint's. times: numbers, or a text as on the command line. options: as in
    `samples_from_flags`. All are the mode's flags.
    """
    trained, times = open_for_sampling(workdir, data_dir=data_dir), times_text(times)
    path = to_path(out or trained.folder / "samples" / f"{trained.named}seed-{seed}.png")
    if path.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out={out}: must end in .png (a grid) or .npz (an array)")
    searched = _searched(times) if trained.model.kind != "denoiser" else None
    weaker = weaker_model(trained, autoguidance, autoguidance_average)
    named = {"times": None if searched else times, "autoguidance": weaker.name if weaker else ""}
    samples = samples_from_flags(trained, **named, **options)
    _check_labels(labels, label, trained)
    decoder = decoder_of(trained, autoencoder, dtype=decode_dtype, tile=decode_tile)
    check_size(path, num, trained.shape if decoder is None else decoder.shape)
    output(path)
    flow_map, label = trained.load(mesh=make_mesh()), read_label(label, trained)
    by = {"label": label, "random_seed": seed if labels == "random" else None, "weaker": weaker and weaker.load()}
    guided_map, conditions = conditioned(flow_map, trained, samples, num, **by)
    if searched:
        from cmjax.generation.search import find_times  # it compares images, with all that metrics need

        samples = replace(samples, times=find_times(trained, flow_map, searched, samples=samples, decoder=decoder))
    chosen = named_sampler(samples, trained.model)
    settings = {"workdir": str(workdir), "checkpoint": trained.used_step, "seed": seed, "label": label}
    settings |= {"labels": labels or "balanced"} if trained.num_classes else {}
    settings |= {"autoencoder": decoder.key} if decoder else {}
    settings |= {**chosen.setting, "parameters": content_key(guided_map.params)}
    write_samples(path, num, SampleSequence(chosen.sampler, guided_map, seed, conditions, decode=decoder), settings)
    undecoded = decoder is None and trained.of_latents
    remedy = "; to decode them name their autoencoder, as --autoencoder=FOLDER" if undecoded else ""
    say(f"{num} {'images' if decoder else trained.kind} of {workdir}: {path}{remedy}")


def _check_labels(labels: str | None, label: str | int | None, trained: Trained) -> None:
    """Raises ConfigError where the flag --labels has no effect."""
    if labels is not None and not trained.num_classes:
        raise ConfigError(f"--labels={labels}: the model has no classes")
    if labels is not None and label is not None:
        raise ConfigError(f"--labels={labels}: --label={label} is one class; give one of them")


def _searched(times: str | None) -> int | None:
    """Reads the number of evaluations whose times are searched for; None where they are named."""
    if not times or not times.startswith("auto:"):
        return None
    try:
        return int(times.removeprefix("auto:"))
    except ValueError:
        raise ConfigError(f"--times={times}: must be the number of evaluations, as auto:2") from None
