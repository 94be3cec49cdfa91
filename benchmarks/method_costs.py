"""What an update of each method costs beside one of denoising, in time and in memory: JSON on standard output.

    python benchmarks/method_costs.py                                 # the digits' MLP
    python benchmarks/method_costs.py --net=dit --only=ect,meanflow   # a small DiT on the same images

Each method is its recipe configs/digits_<method>.py, with the same network, batch and optimizer for all; teachers have
fresh parameters, which cost as much as trained ones. All programs are in one process and are called in turns. A figure
is the least of the rounds, over that of denoising:

time        processor time of all threads, which other work on the machine changes least; `wall` is that of the clock
memory      what the compiled step takes beside its inputs and outputs, the activations above all
teacher     whether the method needs one
"""

import argparse
import importlib
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.methods import METHODS
from benchmarks.step_time import in_turns
from cmjax.config.run import read_run
from cmjax.core.model import BoundModel
from cmjax.runs.setup import Setup, mesh_of
from cmjax.runs.train_step import compile_step
from cmjax.training.method import TEACHER

log = logging.getLogger(__name__)

DENOISING = "flow"
"""The recipe that the others are held against: flow matching, a denoiser of one time."""
DIT = {"name": "dit", "patch": 1, "width": 128, "depth": 3, "heads": 4, "time_scale": 1.0}


def configuration(name: str, options: argparse.Namespace) -> ConfigDict:
    """The recipe with the network, the batch and the optimizer of the comparison."""
    config = importlib.import_module(f"configs.digits_{name}").get_config()
    config.batch_size, config.init_from, config.log.bins = options.batch, "", 0
    config.steps_per_call = config.grad_accumulation = 1
    if options.net == "dit":
        taken = (
            "two_times",
            "guided",
            "guided_interval",
            "velocity_head",
            "weight_head",
            "class_conditional",
            "dropout",
        )
        config.net = ConfigDict(DIT | {field: config.net[field] for field in taken if field in config.net})
    return config


def bound(folder: str, options: argparse.Namespace) -> BoundModel:
    """The model of the run that a recipe names, with fresh parameters."""
    run = read_run(configuration(folder.split("digits_")[1], options).to_dict())
    source, model = run.open_source("train"), run.make_model(10)
    params = jax.tree.map(jnp.asarray, model.init(jax.random.key(1), source.shape))
    return model.bind(params, source.shape)


def program(name: str, options: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One update of a method, which keeps its state, and what is known of it without a clock."""
    run = read_run(configuration(name, options).to_dict())
    source, model = run.open_source("train"), run.make_model(10)
    teacher = bound(run.method.teacher, options) if run.method.teacher else None
    frozen = {} if teacher is None else {TEACHER: teacher.params}
    setup = Setup(run, mesh_of(run), source, model, teacher, frozen)
    state, batch = setup.first_state(), setup.batches().at(0)
    compiled, seconds = compile_step(setup, state, batch)
    analysis: Any = compiled.executable.memory_analysis()
    states = [state]

    def update() -> Any:
        states[0], metrics = compiled(states[0], setup.frozen, batch)
        return metrics

    known = {
        "memory": analysis.temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
        "teacher": teacher is not None,
    }
    return update, known


def measure(names: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By method, its `time`, `wall` and `memory` over those of denoising."""
    programs, known = {}, {}
    for name in (DENOISING, *names):
        programs[name], known[name] = program(name, options)
        log.info("%s: compiled in %s s", name, known[name]["compile_seconds"])
    least = {name: np.min(rounds, axis=0) for name, rounds in in_turns(programs, options.rounds).items()}
    wall, processor = least[DENOISING]
    log.info("an update of denoising: %.1f ms, %.1f ms of processor time", 1e3 * wall, 1e3 * processor)
    memory = known[DENOISING]["memory"]
    return {
        name: {"time": round(float(least[name][1] / processor), 2), "wall": round(float(least[name][0] / wall), 2)}
        | {**known[name], "memory": round(known[name]["memory"] / memory, 2)}
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("mlp", "dit"), default="mlp")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas; default all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    report = measure(options.only.split(","), options)
    print(json.dumps({"net": options.net, "batch": options.batch, "methods": report}, indent=2))


if __name__ == "__main__":
    main()
