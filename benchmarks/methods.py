r"""Every method on the same data with the same network and updates, over several seeds: a table and plots.

    python benchmarks/methods.py --out=runs/methods                  # digits: some two minutes a run, 2 CPU cores
    python benchmarks/methods.py --out=runs/methods --only=ct,ect --seeds=1
    python benchmarks/methods.py --recipes=cifar_small --steps=0 --only=ect,cd,meanflow,imf,soflow --out=runs/colour \
        --change=data.data_dir=~/tensorflow_datasets
    python benchmarks/methods.py --data=oracle --out=runs/oracle     # six Gaussians in the plane

Each method is its recipe configs/<recipes>_<method>.py, of which the seed and the number of steps alone are changed; on
the oracle the width, the distance's c and the coupling, too. Its teacher is trained first, with the same seed. Each is
sampled by its recipe's sampler in 1, 2, 4 and 8 evaluations along the model's grid, and a denoiser along its recipe's
times alone. What was trained before is taken from its folder, so that the script can be stopped and started again.
Writes methods.json, methods.md and, of images, methods.png (samples) and evaluations.png (FD over evaluations). On
`oracle` the students' teachers are learned too, and the error of one step is √E‖f(x, t_max) − exact‖², in units of the
std of one coordinate of the data: a student that always answers the mean has an error of √2.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import oracle
from cmjax.cli import evaluate, train
from cmjax.config.recipes import change
from cmjax.core.sampling import gaussian, sample_denoiser, sample_fn
from cmjax.core.solvers import ddim
from cmjax.generation.sampling import consistency_sampler, diffusion_sampler, sample_images
from cmjax.plotting.plots import image_grid, line_plot, save_png, with_captions
from cmjax.runs.trained import open_trained

FAMILIES = {
    "Consistency training": ("ct", "ict", "ect", "sct", "tcm", "multistep_ct"),
    "Consistency in continuous time": ("continuous_ct", "continuous_cd", "scm_ct", "scm_cd"),
    "Distillation": ("cd", "pd", "ctm", "ayf", "facm", "cmt", "cmt_map"),
    "Flow maps, by a derivative": ("meanflow", "imf", "alphaflow", "tim", "anyflow", "pmf", "dmf", "tvm"),
    "Flow maps, by their parts": ("shortcut", "soflow", "rcgm", "psd", "lsd", "esd", "imm"),
}
METHODS = tuple(name for names in FAMILIES.values() for name in names)
EVALUATIONS = (1, 2, 4, 8)
METRICS = {"fd": "fd", "recall": "recall_5", "density": "density", "coverage": "coverage"}
SHOWN = 12  # samples of each method in the figure
POINTS = 4096


def recipe(
    name: str,
    out: Path,
    *,
    steps: int,
    data: str = "digits",
    recipes: str = "digits",
    seed: int = 0,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """The recipe of a method, its runs in `out`. steps: 0 for the recipe's own. changes: as data.data_dir=…"""
    config = importlib.import_module(f"configs.{recipes}_{name}").get_config()
    config.seed, config.steps, config.samples.every = seed, steps or config.steps, 0
    config.log.tensorboard, config.report, config.metrics.num = False, False, 0
    for field, _, value in (text.partition("=") for text in changes):
        change(config, field, value)
    for section, field in ((config, "init_from"), (config.objective, "teacher"), (config.objective, "first_stage")):
        if section.get(field) not in (None, "", "teacher"):
            section[field] = str(out / Path(section[field]).name)
    if data == "oracle":
        config.data.name, config.data.data_dir = "arrays", str(out / "points.npz")
        config.net.width = 128
        if "distance" in config.objective:
            config.objective.distance = config.objective.distance.replace("c=0.1", "c=0.03").replace("c=1.0", "c=0.03")
        if "coupling" in config.objective:  # another coupling has other trajectories than the exact ones
            config.objective.coupling = "independent"
    return config.to_dict()


def predecessors(name: str, recipes: str = "digits") -> list[str]:
    """The recipes whose runs a method starts from, in the order of their training: its teacher, its first stage."""
    config = importlib.import_module(f"configs.{recipes}_{name}").get_config()
    folders = (config.objective.get("teacher", ""), config.objective.get("first_stage", ""), config.init_from)
    names = [Path(folder).name.removeprefix(f"{recipes}_") for folder in folders if folder not in (None, "", "teacher")]
    return list(dict.fromkeys(before for one in names for before in (*predecessors(one, recipes), one)))


def trained(name: str, out: Path, *, recipes: str = "digits", **settings: Any) -> dict[str, Any]:
    """The summary of a method's run, which is trained where it was not yet, after what it starts from."""
    for before in predecessors(name, recipes):
        trained(before, out, recipes=recipes, **settings)
    workdir, config = out / f"{recipes}_{name}", recipe(name, out, recipes=recipes, **settings)
    summary, minutes = workdir / "summary.json", workdir / "minutes.json"
    if not summary.exists() or json.loads(summary.read_text())["steps"] != config["steps"]:
        print(f"== {name}, seed {config['seed']}", flush=True)
        began = time.process_time()
        train.run(config, workdir)
        minutes.write_text(json.dumps((time.process_time() - began) / 60))
    return json.loads(summary.read_text()) | {"minutes": json.loads(minutes.read_text())}


def image_row(workdir: Path, num: int) -> dict[str, float]:
    """The metrics of `num` samples, as fd_1 for those of one evaluation."""
    run = open_trained(workdir)
    if run.model.kind == "denoiser":  # it was trained for these times
        levels = [run.samples.levels(run.model)]
    else:
        levels = [tuple(run.model.grid(n + 1)[:0:-1].tolist()) for n in EVALUATIONS]
    texts = [",".join(map(str, times)) for times in levels]
    rows = evaluate.run(workdir, num=num, metrics=["fd", "prdc"], times=texts)
    return {f"{metric}_{row['evaluations']}": row["metrics"][key] for row in rows for metric, key in METRICS.items()}


def mean_and_spread(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each number's mean over the seeds' rows, and their sample standard deviation as <number>_std."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if len(rows) == 1:
        return mean
    return mean | {f"{key}_std": float(np.std([row[key] for row in rows], ddof=1)) for key in rows[0]}


def oracle_row(workdir: Path) -> dict[str, float]:
    """The distance of a sample of one evaluation (of multistep CT two) to the exact end of the noise's trajectory."""
    run = open_trained(workdir)
    flow_map = run.load()
    key, shape = jax.random.key(1), (POINTS, *flow_map.shape)
    times = run.samples.levels(run.model)

    def one_sample(flow_map):
        if flow_map.kind == "denoiser":  # of which one or two deterministic steps make a sample
            return sample_denoiser(flow_map, key, shape, times=times, path=flow_map.path, solver=ddim)
        return sample_fn(flow_map, key, shape, times=times[:1])  # one evaluation: a chain's is the same

    answer = jax.jit(one_sample)(flow_map)
    noise = np.asarray(gaussian(key, shape), np.float64).reshape(POINTS, 2)
    exact = oracle.exact_map(oracle.T_MAX * noise, oracle.T_MAX, steps=1024)
    error = np.sqrt(np.sum((np.asarray(answer).reshape(POINTS, 2) - exact) ** 2, axis=1).mean()) / oracle.SIGMA_DATA
    return {"rms_1": float(error)}


def sample_rows(workdir: Path) -> list[np.ndarray]:
    """The first samples of a method by each number of evaluations that it was trained for, (SHOWN, h, w, c) uint8."""
    trained = open_trained(workdir)
    flow_map, samples = trained.load(), trained.samples
    times = samples.levels(trained.model)
    if flow_map.kind == "denoiser":
        samplers = [diffusion_sampler(samples, times)]
    else:
        samplers = [consistency_sampler(levels, samples) for levels in (times[:1], times)]
    return [sample_images(sampler, flow_map, SHOWN, seed=0, conditions={}) for sampler in samplers]


def samples_plot(workdirs: Mapping[str, Path]) -> np.ndarray:
    """A row for each method: one evaluation on the left, two on the right."""
    rows = []
    for name, workdir in workdirs.items():
        samples = sample_rows(workdir)
        empty = np.full_like(samples[0], 128)
        one, two = samples if len(samples) == 2 else (samples[0], empty) if name == "pd" else (empty, samples[0])
        gap = np.full_like(samples[0][:1], 128)
        rows.append(np.concatenate([one, gap, two]))
    grid = image_grid(np.concatenate(rows), columns=2 * SHOWN + 1, min_side=32)
    return with_captions(grid, list(workdirs))


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each number's median over the seeds' rows: of a method that fails with one seed it shows the others."""
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def evaluations_plot(rows: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """FD over the number of evaluations: a plot for each family of methods."""
    plots = []
    for family, names in FAMILIES.items():
        values = {name: [rows[name].get(f"fd_{n}") for n in EVALUATIONS] for name in names if name in rows}
        curves = {name: (EVALUATIONS, fd) for name, fd in values.items() if sum(v is not None for v in fd) > 1}
        if curves:
            plots.append(line_plot(curves, title=family, x_label="evaluations", y_label="FD", height=300))
    return np.concatenate(plots)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, a line for each method: its mean, and after ± the spread over the seeds."""
    numbers = [f"{metric}_{n}" for metric in ("fd", "recall", "coverage") for n in EVALUATIONS]
    columns = [c for c in (*numbers, "rms_1", "minutes") if any(c in row for row in rows.values())]
    lines = [f"| method | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, row in rows.items():
        lines.append(f"| `{name}` | {' | '.join(_cell(row, column) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, float], column: str) -> str:
    if column not in row:
        return "–"
    spread = row.get(f"{column}_std")
    return f"{row[column]:.3g}" + ("" if spread is None or column == "minutes" else f" ± {spread:.2g}")


def points(path: Path) -> None:
    """60,000 points of the oracle's mixture as arrays of one pixel and two channels."""
    if not path.exists():
        data = oracle.draw_data(np.random.default_rng(0), 60_000).reshape(-1, 1, 1, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and of what is written")
    parser.add_argument("--data", choices=("digits", "oracle"), default="digits", help="oracle: points in the plane")
    parser.add_argument("--recipes", default="digits", help="the recipes' prefix in configs/, digits or cifar_small")
    parser.add_argument("--steps", type=int, default=2000, help="of every method, teachers too; 0: each recipe's own")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--num", type=int, default=1500, help="samples that are evaluated")
    parser.add_argument("--change", action="append", default=[], help="of every recipe, as data.data_dir=folder")
    parser.add_argument("--only", default=",".join(METHODS), help=f"of {','.join(METHODS)}")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"--only={options.only}: {', '.join(unknown)} must be among {', '.join(METHODS)}")
    settings: dict[str, Any] = {"steps": options.steps, "data": options.data, "recipes": options.recipes}
    settings["changes"] = options.change
    measure: Callable[[Path], dict[str, float]] = partial(image_row, num=options.num)
    if options.data == "oracle":
        measure = oracle_row
        for seed in range(options.seeds):
            points(options.out / str(seed) / "points.npz")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):  # the first seed of all methods first: a stopped table has every line
        for name in names:
            out = options.out / str(seed)
            minutes = trained(name, out, **settings, seed=seed)["minutes"]
            measured[name].append({**measure(out / f"{options.recipes}_{name}"), "minutes": minutes})
            rows = {name: mean_and_spread(of_seeds) for name, of_seeds in measured.items() if of_seeds}
            (options.out / "methods.json").write_text(json.dumps({**settings, "rows": measured}, indent=2) + "\n")
            (options.out / "methods.md").write_text(table(rows))
    if options.data == "digits":
        workdirs = {name: options.out / "0" / f"{options.recipes}_{name}" for name in names}
        save_png(options.out / "methods.png", samples_plot(workdirs))
        of_plot = {name: medians(of_seeds) for name, of_seeds in measured.items() if of_seeds}
        save_png(options.out / "evaluations.png", evaluations_plot(of_plot))
    print(table(rows))


if __name__ == "__main__":
    main()
