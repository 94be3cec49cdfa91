"""`--mode=average`: makes power-function averages of other widths than a run kept, from its checkpoints.

cmjax average --workdir=runs/digits_ct --std=0.08 --out=runs/digits_ct_ema
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from cmjax.cli.flags import Flags, Options
from cmjax.config.averages import with_power_average
from cmjax.config.fields import ConfigError
from cmjax.runs.classes import recorded_classes
from cmjax.runs.trained import open_trained
from cmjax.runs.weights import check_new, post_hoc, width_of, write_model
from cmjax.runs.workdir import output
from cmjax.system.files import to_path

log = logging.getLogger(__name__)

FAR = 0.1  # a residual of `coefficients` above which the mode warns
WARNING = (
    "%s is %.0f%% off what --std asks for: name a width nearer to those kept, or keep more checkpoints in the "
    "next run, by a smaller config.checkpoint.keep_every"
)


def declare(flags: Flags) -> None:
    flags.group("The average")
    flags.texts("std", "Its width as a fraction of the training, as 0.08, or several.")
    flags.text("out", None, "A new run's folder.")


def start(options: Options) -> None:
    run(options.workdir, stds=options.std, out=options.out)


def run(workdir: str | Path, *, stds: Sequence[str] | None, out: str | None) -> None:
    """Write a new run's folder for each width: `run("runs/x", stds=["0.08"], out="runs/x_ema")`.

    Args:   stds: as "0.08", a fraction of the training. out: the folder; of several widths each has its own, out-0.08.
    Raises: ConfigError where an option is wrong, or the run has no power averages or fewer than two checkpoints.
    """
    workdir = to_path(workdir)
    if not stds:
        raise ConfigError("--std is missing: name the width of the average, as --std=0.08, or several, as 0.05,0.1")
    if out is None:
        raise ConfigError("--out is missing: name the folder for the average, as --out=runs/x_ema")
    widths = {to_path(out if len(stds) == 1 else f"{out}-{text.strip()}"): width_of(text) for text in stds}
    # every folder is checked before anything is computed
    for folder in widths:
        check_new(folder, "--out")
    trained = open_trained(workdir)
    for folder in widths:
        output(folder)
    averages = post_hoc(trained, list(widths.values()))
    made_of = ", ".join(f"power(std={width})" for width in averages.kept)
    made_of += f" at steps {', '.join(map(str, averages.steps))}"
    kept = {
        "imported": {"licence": "of the run's owner", "from": str(workdir), "format": "average", "made_of": made_of},
        "classes": recorded_classes(trained.record),
    }
    for (folder, std), residual, params in zip(widths.items(), averages.residuals, averages.params, strict=True):
        record, config = trained.record, with_power_average(trained.record["config"], std)
        write_model(folder, config, record["shape"], record["num_classes"], params, **kept, option="--out")
        if trained.model.prompted:
            from cmjax.runs.pipelines import copy_parts  # most runs read no foreign files

            copy_parts(trained.folder, folder)
        if residual > FAR:
            log.warning(WARNING, folder, 100 * residual)
        rows = {
            "average": f"power(std={std}) at step {averages.steps[-1]}",
            "made of": made_of,
            "residual": f"{100 * residual:.2g}% of the profile",
            "sample": f"python -m cmjax.main --mode=sample --workdir={folder}",
        }
        print("\n".join([f"{workdir} -> {folder}", *(f"{name:12s}{text}" for name, text in rows.items())]))
