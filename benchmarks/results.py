"""What finished runs measured, as a table and a picture.

    python benchmarks/results.py runs/cifar_small_edm runs/cifar_small_ect --out=docs/cifar_small

Reads the summary of each run. Writes OUT.md, a line for each of a run's samplers, and OUT.png, real images and below
them a row for each sampler: of the same noises, and of the same classes where the model is told of them.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmjax.drawing.draw import draw_images
from cmjax.drawing.samplers import Chosen, chosen_sampler, conditioned
from cmjax.evaluation.own import some_of
from cmjax.evaluation.plots import image_grid, save_png, with_captions
from cmjax.runs.trained import Trained, open_trained

SHOWN = 16  # samples of a row
REAL = "training images"
NO_SAMPLERS = (REAL, "fitted Gaussian")
FIGURES = ("fd", "precision", "recall", "density", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="a run that was trained to its end")
    parser.add_argument("--out", required=True, type=Path, help="the path of what is written, without its ending")
    options = parser.parse_args()
    runs = {workdir.resolve().name: workdir for workdir in options.workdirs}
    lines, (captions, images) = table(runs), pictures(runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    grid = image_grid(np.concatenate(images), columns=SHOWN, min_side=32)
    save_png(options.out.with_suffix(".png"), with_captions(grid, captions))
    print("\n".join(lines))


def table(runs: Mapping[str, Path]) -> list[str]:
    """Markdown: the figures of real images, then a line for each sampler of each run."""
    lines = [f"| run | sampler | minutes | {' | '.join(FIGURES)} |", "|---|---|" + "---:|" * (1 + len(FIGURES))]
    for name, workdir in runs.items():
        summary = json.loads((workdir / "summary.json").read_text())
        minutes = f"{(summary['compile_seconds'] + summary['train_seconds']) / 60:.1f}"
        for sampler, figures in summary["figures"].items():
            of = ("", sampler, "") if sampler in NO_SAMPLERS else (name, sampler, minutes)
            lines.append(f"| {' | '.join([*of, *(f'{figures[key]:.3f}' for key in FIGURES)])} |")
    return list(dict.fromkeys(lines))  # data alike have the same figures in every run


def pictures(runs: Mapping[str, Path]) -> tuple[list[str], list[np.ndarray]]:
    """The captions and the images of each row."""
    captions, rows = [REAL], []
    for name, workdir in runs.items():
        trained = open_trained(workdir)
        rows = rows or [some_of(trained.run().open_source("train"), SHOWN)["image"]]
        flow_map, conditions, _ = conditioned(trained.load(), trained, SHOWN, None, None)
        for chosen in samplers(trained):
            captions.append(f"{name}, {chosen.name}")
            rows.append(draw_images(chosen.sampler, flow_map, SHOWN, seed=0, conditions=conditions))
    return captions, rows


def samplers(trained: Trained) -> list[Chosen]:
    """Those whose figures a run measures at its end: a teacher's solver, or one and all of a student's times."""
    if trained.model.kind == "denoiser":
        return [chosen_sampler(trained, None, None, None)]
    levels = trained.samples.levels(trained.model)
    return [
        chosen_sampler(trained, [str(t) for t in times], None, None) for times in dict.fromkeys((levels[:1], levels))
    ]


if __name__ == "__main__":
    main()
