"""`--mode=report`: writes a page about a run, or several side by side, as one HTML file that needs no network.

Files are read and no device is used, unless --evaluations asks for more samples: a run may be training meanwhile.

    cmjax report --workdir=runs/digits_ct
    cmjax report --workdir=runs/digits_ct --evaluations=4,8
    cmjax report --workdir=runs/digits_ct,runs/digits_ict,runs/digits_ect --out=comparison.html
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.generation.decoding import decoder_of
from cmjax.generation.samplers import named_sampler
from cmjax.generation.sampling import SampleSequence, class_labels, guided_by
from cmjax.plotting.plots import image_grid, save_png
from cmjax.reporting.page import PAGE, report
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import output_of_one, writing
from cmjax.system.files import to_path
from cmjax.system.libraries import require
from cmjax.system.mesh import make_mesh

COMPARISON = "comparison.html"


def declare(flags: Flags) -> None:
    flags.group("The page")
    several = "of several, comparison.html in the first"
    flags.text("out", None, f"x.html. Default: report.html in the run's folder; {several}.")
    flags.texts("evaluations", "Numbers of evaluations, as 4,8, by which the newest checkpoint is sampled, too.")


def start(options: Options) -> None:
    if not options.evaluations:
        jax.config.update("jax_platforms", "cpu")  # another process may hold the accelerator
    run(options.workdirs, out=options.out, evaluations=options.evaluations, data_dir=options.data_dir)


def run(
    workdirs: Sequence[str | Path],
    *,
    out: str | None = None,
    evaluations: list[str] | None = None,
    data_dir: str | None = None,
) -> None:
    """Writes a page about runs: `run(["runs/digits_ct"])`.

    Args:   evaluations: numbers of them by which the newest checkpoint is sampled first, into the runs' samples/.
    Raises: ConfigError where one is no run's folder, or the page cannot be written; MissingLibrary without Bokeh.
    """
    workdirs = [to_path(workdir) for workdir in workdirs]
    path = to_path(out) if out else workdirs[0] / (PAGE if len(workdirs) == 1 else COMPARISON)
    if path.suffix != ".html":
        raise ConfigError(f"--out={out}: must end in .html")
    require("bokeh", "--mode=report")
    texts = evaluations or []
    if not all(text.isdecimal() and 1 <= int(text) <= 1000 for text in texts):
        raise ConfigError(f"--evaluations={','.join(texts)}: must be numbers from 1 to 1000, as 4,8")
    output_of_one(path)
    for workdir in workdirs if texts else ():
        trained = open_trained(workdir)
        for count in sorted(set(map(int, texts))):
            _save_grid(trained, count)
    with writing(path):
        size = report(workdirs, path, data_dir=data_dir)
    print(f"{path}: {size / 1e6:.1f} MB")


def _save_grid(trained: Trained, count: int) -> None:
    """Saves a grid of samples by `count` evaluations of a consistency model, along the grid of its times, or by so
    many steps of a teacher's solver. The noise is that of the run's own samples; a grid that is there already stays."""
    samples, model = trained.samples, trained.model
    path = trained.folder / "samples" / f"{trained.used_step:07d}-{samples.name(model.kind, count)}.png"
    if path.exists():
        return
    if model.kind == "denoiser":
        if count < 2:
            raise ConfigError(f"--evaluations={count}: of the teacher in {trained.folder} at least 2")
        chosen = named_sampler(replace(samples, times=None, solver_steps=count), model)
    else:
        # of count + 1 ascending points all but t_min, from t_max down
        chosen = named_sampler(replace(samples, times=tuple(model.grid(count + 1)[:0:-1].tolist())), model)
    labels = class_labels(samples.num, trained.num_classes)
    flow_map, conditions = guided_by(trained.load(mesh=make_mesh()), labels, trained.samples, trained.model)
    seed = 0 if trained.imported else trained.run().seed
    decoder = decoder_of(trained)
    images = SampleSequence(chosen.sampler, flow_map, seed, conditions, decode=decoder).images(0, samples.num)
    try:
        save_png(path, image_grid(images))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
