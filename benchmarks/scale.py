"""The table of docs/scale.md, made by --mode=plan: which recipe fits which machine, and the least time that it takes.

    python benchmarks/scale.py                        # every row that is not there yet; each may compile for an hour
    python benchmarks/scale.py --only cifar_ct        # those whose name has this in it
    python benchmarks/scale.py --only none            # the table alone, from the plans in --plans

It needs libtpu, pip install 'jax[tpu]', and no TPU. A row that was not compiled is not in the table.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
GIB = 2**30
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v5p:4x4x4", "v6e:16x16")
SMALLER = ("--config.net.blocks=1", "--config.net.dtype=bfloat16", "--config.objective.distance=pseudo_huber(c=0.03)")
WHOLE = ("cifar_ct", "cifar_cd", "cifar_edm", "imagenet64_ct", "imagenet64_cd", "imagenet64_edm")
ROWS = [
    *((recipe, topology, ()) for recipe, topology in product(WHOLE, TOPOLOGIES)),
    ("cifar_ct", "v5e:2x2", ("--config.grad_accumulation=4",)),
    *(("cifar_ct", topology, SMALLER) for topology in TOPOLOGIES),
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
    (
        "imagenet64_ct",
        "v5e:16x16",
        (
            "--config.mesh.fsdp=16",
            "--config.net.blocks=1",
            "--config.net.channels=64",
            "--config.objective.distance=pseudo_huber(c=0.06)",
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
    lines = [line for row in ROWS if (line := table_line(row, folder_of(options.plans, row) / "plan.json"))]
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text("\n".join((before + BEGIN, *HEAD, *lines, END)) + after)


def folder_of(plans: Path, row: tuple[str, str, tuple[str, ...]]) -> Path:
    recipe, topology, changes = row
    parts = (recipe, topology, *(change.removeprefix("--config.") for change in changes))
    return plans / "-".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)


def plan(row: tuple[str, str, tuple[str, ...]], folder: Path) -> None:
    recipe, topology, changes = row
    command = [sys.executable, "-m", "cmjax.main", "--mode=plan", f"--config=configs/{recipe}.py"]
    command += [f"--topology={topology}", f"--out={folder}", *changes]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, cwd=ROOT, check=False)  # one that does not fit is a row too


HEAD = (
    "| recipe | slice | changed | batch a device | GiB a device: state, temporaries, together of | an image | "
    "exchanged in an update, a device | least ms an update, limited by | least hours |",
    "|---|---|---|---:|---:|---:|---|---:|---:|",
)


def table_line(row: tuple[str, str, tuple[str, ...]], file: Path) -> str:
    """One line of the table, "" where the row has no plan."""
    if not file.exists():
        return ""
    told: dict[str, Any] = json.loads(file.read_text())
    recipe, topology, changes = row
    step, memory = told["train_step"], told["train_step"]["memory"]
    changed = ", ".join(f"`{change.removeprefix('--config.')}`" for change in changes) or "nothing"
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
