"""Every method of the family on the same data with the same network, seed and number of images: a table and a figure.

    python benchmarks/methods.py --out=runs/methods                  # digits: some two minutes a method, 2 CPU cores
    python benchmarks/methods.py --out=runs/methods --only=ct,ect    # and their teachers
    python benchmarks/methods.py --data=oracle --out=runs/oracle     # six Gaussians in the plane

Each method is its recipe configs/digits_<method>.py, of which the number of steps alone is changed; on the oracle the
width, the distance's c and the coupling, too. Each is sampled as its recipe says. What was trained before is taken from
its folder, so that the script can be stopped and started again. Writes methods.json, methods.md and, of images,
methods.png. On `oracle` the students' teachers are learned too, and the error of one step is
√E‖f(x, t_max) − exact‖², in units of the std of one coordinate of the data: a student that always answers the mean has
an error of √2.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import oracle
from cmjax.cli import train
from cmjax.config.run import read_run
from cmjax.core.sampling import gaussian, sample_denoiser, sample_fn
from cmjax.core.solvers import ddim
from cmjax.generation.sampling import consistency_sampler, diffusion_sampler, sample_images
from cmjax.plotting.plots import image_grid, save_png, with_captions
from cmjax.runs.trained import load, open_trained

METHODS = (
    "ct",
    "ict",
    "ect",
    "sct",
    "tcm",
    "cd",
    "continuous_ct",
    "continuous_cd",
    "scm_ct",
    "scm_cd",
    "meanflow",
    "imf",
    "shortcut",
    "alphaflow",
    "soflow",
    "rcgm",
    "lsd",
    "psd",
    "esd",
    "tvm",
    "dmf",
    "facm",
    "ayf",
    "ctm",
    "pd",
    "multistep_ct",
)
SHOWN = 12  # samples of each method in the figure
POINTS = 4096


def recipe(name: str, out: Path, *, steps: int, data: str) -> dict[str, Any]:
    """The recipe of a method, its runs in `out`."""
    config = importlib.import_module(f"configs.digits_{name}").get_config()
    config.steps, config.samples.every = steps, 0
    config.log.tensorboard = False
    for section, field in ((config, "init_from"), (config.objective, "teacher"), (config.objective, "first_stage")):
        if section.get(field) not in (None, "", "teacher"):
            section[field] = str(out / Path(section[field]).name)
    if data == "oracle":
        config.data.name, config.data.data_dir = "arrays", str(out / "points.npz")
        config.net.width, config.metrics.num = 128, 0
        if "distance" in config.objective:
            config.objective.distance = config.objective.distance.replace("c=0.1", "c=0.03").replace("c=1.0", "c=0.03")
        if "coupling" in config.objective:  # another coupling has other trajectories than the exact ones
            config.objective.coupling = "independent"
    return config.to_dict()


def teacher_of(name: str) -> str:
    """The recipe of a method's teacher, "" for none. A method that begins as `ect` is in the table after it."""
    config = importlib.import_module(f"configs.digits_{name}").get_config()
    folders = (config.init_from, config.objective.get("teacher", ""))
    teachers = {Path(folder).name.removeprefix("digits_") for folder in folders if folder not in ("", "teacher")}
    return next(iter(teachers - set(METHODS)), "")


def trained(name: str, out: Path, *, steps: int, data: str) -> dict[str, Any]:
    """The summary of a method's run, which is trained where it was not yet. Where a finished run's samples are not by
    its recipe's sampler, they are made again."""
    workdir, config = out / f"digits_{name}", recipe(name, out, steps=steps, data=data)
    summary = workdir / "summary.json"
    done = summary.exists() and json.loads(summary.read_text())["steps"] == steps
    if not done or open_trained(workdir).samples.gamma != read_run(config).samples.gamma:
        print(f"== {name}", flush=True)
        train.run(config, workdir)
    return json.loads(summary.read_text())


def seconds_per_mimg(summary: dict[str, Any]) -> dict[str, float]:
    """Of training; empty where a finished run's samples alone were made again."""
    return {"seconds_per_mimg": 1e6 / summary["images_per_second"]} if "images_per_second" in summary else {}


def digits_row(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What the run measured of its one-step and two-step samples."""
    row: dict[str, Any] = {"method": name, **seconds_per_mimg(summary)}
    for sampler, metrics in summary["metrics"].items():
        evaluations = sampler.removeprefix("ddim-").partition("-")[0]
        if evaluations.isdigit():
            row |= {f"{metric}_{evaluations}": value for metric, value in metrics.items()} | {"sampler": sampler}
    return row


def oracle_row(name: str, out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The distance of a sample of one evaluation (of multistep CT two) to the exact end of the noise's trajectory."""
    flow_map = load(out / f"digits_{name}")
    key, shape = jax.random.key(1), (POINTS, *flow_map.shape)
    times = tuple(recipe(name, out, steps=1, data="oracle")["samples"]["times"])

    def one_sample(flow_map):
        if flow_map.kind == "denoiser":  # of which one or two deterministic steps make a sample
            return sample_denoiser(flow_map, key, shape, times=times, path=flow_map.path, solver=ddim)
        return sample_fn(flow_map, key, shape, times=times[:1])  # one evaluation: a chain's is the same

    answer = jax.jit(one_sample)(flow_map)
    noise = np.asarray(gaussian(key, shape), np.float64).reshape(POINTS, 2)
    exact = oracle.exact_map(oracle.T_MAX * noise, oracle.T_MAX, steps=1024)
    error = np.sqrt(np.sum((np.asarray(answer).reshape(POINTS, 2) - exact) ** 2, axis=1).mean()) / oracle.SIGMA_DATA
    return {"method": name, **seconds_per_mimg(summary), "rms_1": float(error)}


def sample_rows(name: str, out: Path) -> list[np.ndarray]:
    """The first samples of a method by each number of evaluations that it was trained for, (SHOWN, h, w, c) uint8."""
    trained = open_trained(out / f"digits_{name}")
    flow_map, samples = trained.load(), trained.samples
    times = samples.levels(trained.model)
    if flow_map.kind == "denoiser":
        samplers = [diffusion_sampler(samples, times)]
    else:
        samplers = [consistency_sampler(levels, samples) for levels in (times[:1], times)]
    return [sample_images(sampler, flow_map, SHOWN, seed=0, conditions={}) for sampler in samplers]


def plot(names: list[str], out: Path) -> np.ndarray:
    """A row for each method: one evaluation on the left, two on the right."""
    rows = []
    for name in names:
        drawn = sample_rows(name, out)
        empty = np.full_like(drawn[0], 128)
        one, two = drawn if len(drawn) == 2 else (drawn[0], empty) if name == "pd" else (empty, drawn[0])
        gap = np.full_like(drawn[0][:1], 128)
        rows.append(np.concatenate([one, gap, two]))
    grid = image_grid(np.concatenate(rows), columns=2 * SHOWN + 1, min_side=32)
    return with_captions(grid, names)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line for each method."""
    columns = [column for row in rows for column in row]
    shown = ("method", "fd", "density", "coverage", "rms", "sampler", "sec")
    columns = [c for c in dict.fromkeys(columns) if c.startswith(shown)]
    columns.sort(key=lambda c: (c != "method", c.startswith("sec"), c[-1:]))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [row.get(column, "–") for column in columns]
        lines.append(f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.3g}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def points(path: Path) -> None:
    """60,000 points of the oracle's mixture as arrays of one pixel and two channels."""
    if not path.exists():
        data = oracle.draw_data(np.random.default_rng(0), 60_000).reshape(-1, 1, 1, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and of what is written")
    parser.add_argument("--data", choices=("digits", "oracle"), default="digits")
    parser.add_argument("--steps", type=int, default=6000, help="of every method, teachers too")
    parser.add_argument("--only", default=",".join(METHODS), help=f"of {','.join(METHODS)}")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"--only={options.only}: {', '.join(unknown)} must be among {', '.join(METHODS)}")
    if options.data == "oracle":
        points(options.out / "points.npz")
    settings: dict[str, Any] = {"steps": options.steps, "data": options.data}
    for teacher in sorted(set(map(teacher_of, names)) - {""}):
        trained(teacher, options.out, **settings)
    rows = []
    for name in names:
        summary = trained(name, options.out, **settings)
        rows.append(digits_row(name, summary) if options.data == "digits" else oracle_row(name, options.out, summary))
        (options.out / "methods.json").write_text(json.dumps({**settings, "rows": rows}, indent=2) + "\n")
        (options.out / "methods.md").write_text(table(rows))
    if options.data == "digits":
        save_png(options.out / "methods.png", plot(names, options.out))
    print(table(rows))


if __name__ == "__main__":
    main()
