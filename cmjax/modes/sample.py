"""`--mode=sample`: images of a trained run, as a grid or an array."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.model import ModelPlan, read_model_plan
from cmjax.config.samples import read_samples, read_solver, read_times
from cmjax.core.sampling import FlowMap
from cmjax.drawing.draw import (
    Sampler,
    chain_sampler,
    class_labels,
    consistency_sampler,
    diffusion_sampler,
    draw_images,
    with_guidance,
)
from cmjax.drawing.parts import write_array
from cmjax.drawing.search import find_times
from cmjax.evaluation.plots import image_grid, save_png
from cmjax.machine.files import to_path
from cmjax.machine.mesh import make_mesh
from cmjax.machine.processes import first_does, say
from cmjax.machine.progress import progress
from cmjax.runs.load import load, newest_checkpoint
from cmjax.runs.record import read_record

log = logging.getLogger(__name__)


def run(
    workdir: Path,
    *,
    out: str | None,
    num: int,
    seed: int,
    times: list[str] | None,
    solver: str | None,
    steps: int | None,
    label: int | None,
    guidance: float | None,
    gamma: float | None = None,
) -> None:
    """Draw `num` images with the newest checkpoint of `workdir` and write them to `out`."""
    path = to_path(out or workdir / "samples" / f"seed-{seed}.png")
    if path.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out={out}: must end in .png (a grid) or .npz (an array)")
    flow_map, record = load(workdir, mesh=make_mesh()), read_record(workdir)
    guided_map, conditions, scale = _conditioned(flow_map, record, num, label, guidance)
    if flow_map.kind != "denoiser" and (solver is not None or steps is not None):
        raise ConfigError("--solver and --steps are for teachers; this is a consistency model: use --times")
    if gamma is not None and flow_map.kind != "flow_map":
        raise ConfigError(f"--gamma={gamma}: it is for flow maps between any two times; this is a {flow_map.kind}")
    if flow_map.kind != "denoiser" and times and times[0].startswith("auto:"):
        times = [str(t) for t in find_times(workdir, flow_map, _count(times))]
    plan = read_model_plan(Fields(record["config"]))
    if gamma is None:
        sampler = _sampler(flow_map, plan, record["config"].get("samples"), times, solver, steps)
    else:
        levels = parse_times(times, flow_map, plan.constants["rho"]) if times else (flow_map.t_max,)
        sampler = chain_sampler(levels, gamma)
    settings = {"workdir": str(workdir), "checkpoint": newest_checkpoint(workdir), "seed": seed, "times": times}
    settings |= {"solver": solver, "steps": steps, "label": label, "guidance": scale, "gamma": gamma}
    with progress("sampling", num) as update:

        def draw(start: int, stop: int) -> np.ndarray:
            return draw_images(
                sampler,
                guided_map,
                stop - start,
                seed=seed,
                conditions={name: values[start:stop] for name, values in conditions.items()},
                first=start,
                update_progress=lambda done, text: update(start + done, text),
            )

        try:
            if path.suffix == ".png":
                images = draw(0, num)
                first_does(lambda: save_png(path, image_grid(images)))
            else:
                write_array(path, num, draw, settings=settings)
        except OSError as error:
            raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    say(f"{num} images of {workdir}: {path}")


def _conditioned(
    flow_map: FlowMap, record: Mapping[str, Any], num: int, label: int | None, guidance: float | None
) -> tuple[FlowMap, dict[str, np.ndarray], float]:
    """The model and the conditions of `num` samples, and their scale of guidance: the run's own unless given."""
    config = record["config"]
    num_classes = record["num_classes"] if config["net"]["class_conditional"] else None
    if label is not None and not 0 <= label < (num_classes or 0):
        raise ConfigError(f"--label={label}: the model has {num_classes or 'no'} classes, numbered from 0")
    if guidance is not None and not num_classes:
        raise ConfigError(f"--guidance={guidance}: it is by classes, which the model has not")
    if guidance is not None and not guidance >= 0:
        raise ConfigError(f"--guidance={guidance}: must be at least 0")
    scale = config.get("samples", {}).get("guidance", 1.0) if guidance is None else guidance
    if scale != 1 and not config["net"].get("guided") and not config.get("data", {}).get("label_dropout"):
        log.warning("guidance: the model never learned to do without labels (config.data.label_dropout=0)")
    labels = class_labels(num, num_classes, label)
    return *with_guidance(flow_map, labels, scale, takes=config["net"].get("guided", False)), scale


def _sampler(
    flow_map: FlowMap,
    plan: ModelPlan,
    trained: Mapping[str, Any] | None,
    times: list[str] | None,
    solver: str | None,
    steps: int | None,
) -> Sampler:
    """What the command line asks for; what it leaves open as the run drew its own samples, `trained`."""
    rho = plan.constants["rho"]
    if flow_map.kind == "denoiser":
        if times is not None and steps is not None:
            raise ConfigError("--times and --steps both tell where a solver steps: give one of them")
        if steps is not None and steps < 2:
            raise ConfigError(f"--steps={steps}: must be at least 2")
        own = read_samples(Fields(trained), plan) if trained else {"solver": None, "times": None}
        chosen = own["solver"]
        if solver or chosen is None:
            chosen = read_solver(Fields({"solver": solver or "heun"}, prefix="--"), flow_map.path, flow_map.t_max)[1]
        if times:
            return diffusion_sampler(chosen, parse_times(times, flow_map, rho))
        if steps or own["times"] is None:
            return diffusion_sampler(chosen, tuple(plan.grid(steps or 18)[::-1].tolist()))
        return diffusion_sampler(chosen, own["times"]())
    return consistency_sampler(parse_times(times, flow_map, rho) if times else (flow_map.t_max,), trained or {})


def _count(times: list[str]) -> int:
    try:
        (text,) = times
        return int(text.removeprefix("auto:"))
    except ValueError:
        raise ConfigError(f"--times={','.join(times)}: must be the number of evaluations, as auto:2") from None


def parse_times(texts: list[str], flow_map: FlowMap, rho: float) -> tuple[float, ...]:
    """The noise levels that --times names for this model, as `read_times`."""
    try:
        return read_times(
            ",".join(texts), t_min=flow_map.t_min, t_max=flow_map.t_max, rho=rho, path=flow_map.path
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"--{error}") from error
