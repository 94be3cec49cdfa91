"""The tables of docs/scale.md: which recipe fits which machine, and the least time that it takes.

    python benchmarks/scale.py                        # every row that is not there yet; whole networks take hours
    python benchmarks/scale.py --only cifar_ct        # only the rows whose name has this in it
    python benchmarks/scale.py --only none            # the tables alone, from the plans in --plans

The first table is made by --mode=plan; a row that was not compiled is not in it. The second counts the operations of
the published recipes, which takes tracing alone. Both need libtpu, pip install 'jax[tpu]', and no TPU.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from cmjax.planning.abstract import AbstractRun
from cmjax.system.chips import chip_of, topology_devices

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
BEGIN_WHOLE, END_WHOLE = "<!-- arithmetic -->", "<!-- end of the arithmetic -->"
GIB = 2**30
LEAST_EFFORT = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1", "JAX_MEMORY_FITTING_EFFORT": "-1"}
"""What the compiler is told for the rows of fewer blocks: minutes in place of quarters of an hour."""
OF_16_CHIPS = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4")
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v5p:4x4x4", "v6e:16x16")
WHOLE = ("cifar_ct", "cifar_cd", "cifar_edm", "imagenet64_ct", "imagenet64_cd", "imagenet64_edm")
LATENT_METHODS = ("sit", "meanflow", "imf", "dmf", "scm_cd", "ect", "soflow", "tvm", "facm", "ayf")
OF_LATENTS = tuple(f"imagenet256_{name}" for name in LATENT_METHODS)
ONE_BLOCK, FOUR_BLOCKS, EIGHT_BLOCKS = "--config.net.blocks=1", "--config.net.depth=4", "--config.net.depth=8"
REMAT, FSDP = "--config.net.remat=True", "--config.mesh.fsdp=16"
HEADS = {"imf": ("--config.net.head_depth=2",), "dmf": ("--config.net.second_time_from=3",)}
"""Changes of networks of four blocks: the blocks of iMF's two heads, and those of DMF's first time."""
CIFAR_HUBER, IMAGENET_HUBER = (f"--config.objective.distance=pseudo_huber(c={c})" for c in (0.03, 0.06))
SMALLER = ("--config.net.blocks=1", "--config.net.dtype=bfloat16", CIFAR_HUBER)
ROWS = [
    *((recipe, topology, ()) for recipe, topology in product(WHOLE, TOPOLOGIES)),
    ("cifar_ct", "v5e:2x2", ("--config.grad_accumulation=4",)),
    *(("cifar_ct", topology, (ONE_BLOCK, CIFAR_HUBER)) for topology in TOPOLOGIES),
    *(("cifar_cd", topology, (ONE_BLOCK, CIFAR_HUBER)) for topology in TOPOLOGIES),
    *(("cifar_edm", topology, (ONE_BLOCK,)) for topology in TOPOLOGIES),
    *(("imagenet64_ct", topology, (ONE_BLOCK, IMAGENET_HUBER)) for topology in TOPOLOGIES),
    ("imagenet64_ct", "v5e:16x16", (ONE_BLOCK, IMAGENET_HUBER, "--config.mesh.fsdp=16")),
    *(("imagenet64_cd", topology, (ONE_BLOCK, IMAGENET_HUBER)) for topology in TOPOLOGIES),
    *(("imagenet64_edm", topology, (ONE_BLOCK,)) for topology in TOPOLOGIES),
    *(("imagenet256_sit:B2", topology, ()) for topology in TOPOLOGIES[1:]),
    *((recipe, "v5e:16x16", ()) for recipe in OF_LATENTS[:6]),
    *(
        (f"imagenet256_{name}", topology, (FOUR_BLOCKS, *HEADS.get(name, ())))
        for name, topology in product(LATENT_METHODS[:6], TOPOLOGIES[1:])
    ),
    *(
        (f"imagenet256_{name}", "v5e:16x16", changes)
        for name in ("sit", "meanflow")
        for changes in ((EIGHT_BLOCKS,), (FOUR_BLOCKS, REMAT), (FOUR_BLOCKS, FSDP))
    ),
    *(("sd15_lcm", topology, (FSDP,)) for topology in OF_16_CHIPS),
    *(("sdxl_lcm_lora", topology, (FSDP, "--config.net.transformers=(1,1,1)")) for topology in OF_16_CHIPS),
    ("sdxl_lcm_lora", "v5e:4x4", (FSDP, "--config.net.transformers=(1,1,2)")),
    (
        "cifar_ct",
        "v5e:2x4",
        (
            "--config.mesh.fsdp=8",
            *SMALLER,
            "--config.net.channel_mult=(1,)",
            "--config.net.attention_resolutions=(1,)",
        ),
    ),
]
"""(recipe, slice, what is changed)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose recipe, slice and changes have this in them")
    parser.add_argument("--plans", type=Path, default=ROOT / "runs" / "scale", help="the folder of the plans")
    options = parser.parse_args()
    for row in ROWS:
        if options.only in " ".join((row[0], row[1], *row[2])) and not (folder_of(options.plans, row)).exists():
            plan(row, folder_of(options.plans, row))
    known = PAGE.read_text().splitlines()  # a row whose plan is no longer there stays
    lines = [line for row in ROWS if (line := table_line(row, folder_of(options.plans, row) / "plan.json", known))]
    text = between(PAGE.read_text(), BEGIN, END, [*HEAD, *lines])
    PAGE.write_text(between(text, BEGIN_WHOLE, END_WHOLE, [*HEAD_WHOLE, *map(arithmetic_line, (*WHOLE, *OF_LATENTS))]))


def between(text: str, begin: str, end: str, lines: list[str]) -> str:
    """The text with other lines between two marks."""
    return "\n".join((text.partition(begin)[0] + begin, *lines, end)) + text.partition(end)[2]


def folder_of(plans: Path, row: tuple[str, str, tuple[str, ...]]) -> Path:
    recipe, topology, changes = row
    parts = (recipe, topology, *(change.removeprefix("--config.") for change in changes))
    return plans / "-".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)


def plan(row: tuple[str, str, tuple[str, ...]], folder: Path) -> None:
    recipe, topology, changes = row
    name, colon, variant = recipe.partition(":")
    command = [sys.executable, "-m", "cmjax.main", "--mode=plan", f"--config=configs/{name}.py{colon}{variant}"]
    command += [f"--topology={topology}", f"--out={folder}", "--samplers=False", *changes]
    print(" ".join(command), file=sys.stderr, flush=True)
    large = (*OF_LATENTS, "sd15_lcm", "sdxl_lcm_lora")
    least = {ONE_BLOCK, FOUR_BLOCKS, EIGHT_BLOCKS} & set(changes) or recipe in large
    effort = LEAST_EFFORT if least else {}
    subprocess.run(command, cwd=ROOT, env=os.environ | effort, check=False)  # one that does not fit is a row too


HEAD = (
    "| recipe | slice | changed | batch a device | GiB a device: state, temporaries, together of | an image | "
    "exchanged in an update, a device | least ms an update, limited by | least hours |",
    "|---|---|---|---:|---:|---:|---|---:|---:|",
)


HEAD_WHOLE = (
    f"| recipe | images an update | updates | GFLOP an image | {' | '.join(TOPOLOGIES)} |",
    f"|---|---:|---:|---:|{'---:|' * len(TOPOLOGIES)}",
)


def arithmetic_line(recipe: str) -> str:
    """The operations of a published recipe, and its least hours by them alone on each slice, "" where none is known."""
    config = importlib.import_module(f"configs.{recipe}").get_config().to_dict()
    chips = {topology: topology_devices(topology) for topology in TOPOLOGIES}
    planned = AbstractRun.of(config, chips[TOPOLOGIES[0]])
    run, operations = planned.run, planned.operations
    hours = []
    for devices in chips.values():
        chip = chip_of(devices[0].device_kind)
        seconds = 0.0 if chip is None else operations * run.steps / (len(devices) * chip.peak_flops)
        hours.append(f"{seconds / 3600:.3g} h")
    cells = [recipe, f"{run.batch_size:,}", f"{run.steps:,}", f"{operations / run.batch_size / 1e9:.0f}", *hours]
    return f"| {' | '.join(cells)} |"


def table_line(row: tuple[str, str, tuple[str, ...]], file: Path, known: list[str]) -> str:
    """One line of the table: from the row's plan, or the known one; "" where there is none."""
    recipe, topology, changes = row
    changed = ", ".join(f"`{change.removeprefix('--config.')}`" for change in changes) or "nothing"
    if not file.exists():
        return next((line for line in known if line.startswith(f"| {recipe} | {topology} | {changed} |")), "")
    told: dict[str, Any] = json.loads(file.read_text())
    step, memory = told["train_step"], told["train_step"]["memory"]
    sizes = f"{memory['state'] / GIB:.2f}, {memory['temporaries'] / GIB:.2f}, {memory['total'] / GIB:.2f}"
    sizes += f" of {memory['available'] / GIB:.2f}"
    cells = [recipe, topology, changed, f"{told['batch_size'] / told['devices']:g}", sizes]
    cells.append(f"{step['operations_per_image'] / 1e9:.0f} GFLOP")
    if not memory["fits"]:
        cells += ["**does not fit**", "", ""]
    else:
        kinds = (
            f"{one['count']} {kind}, {one['bytes'] / 2**20:.0f} MiB {'+'.join(sorted(one['bytes_by_type']))}"
            for kind, one in step["collectives"].items()
        )
        seconds = step["seconds"]
        cells += ["; ".join(kinds), f"{1e3 * seconds['least']:.3g}, {seconds['limit']}", f"{told['least_hours']:.3g}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
