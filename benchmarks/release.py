"""Makes the files of cmjax's own models anew, cmjax://digits_ct and others: trains each recipe, and writes its folder.

    python benchmarks/release.py digits_ct
    python benchmarks/release.py mnist_ect --data=~/tensorflow_datasets
    cmjax sample --workdir=cmjax://mnist_ect --num=100 --out=digits.png

Each folder is one for model hubs, with float16 weights, below --out, by default that of the sources, where cmjax://
finds it; what trains lies in runs/ beside it, and goes on where it was stopped. The table cmjax/weights/checksums.tsv
gets the files' sizes and SHA-256. The smallest model, digits_ct, is written into the package itself. Prints a line of
JSON for each model.

Time, on two quiet CPU cores: digits_ct two minutes, mnist_ect eight; cifar_small_cd, with its teacher, and
mnist_latents_ect, with its autoencoder and its teacher, are longer.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cmjax.cli import exporting
from cmjax.runs.exported import MODEL
from cmjax.runs.releases import FOLDER, SOURCES, write_rows
from cmjax.runs.workdir import RECORD, Workdir

ROOT = Path(__file__).parents[1]
RECIPES = ("digits_ct", "mnist_ect", "cifar_small_cd", "mnist_latents_ect")
"""Digits, MNIST, CIFAR-10 in colour, and latents of MNIST with their autoencoder."""
INSIDE = ("digits_ct",)
"""Models whose files come with cmjax."""
TEACHERS = {"cifar_small_cd": "cifar_small_edm", "mnist_latents_ect": "mnist_latents_sit"}
"""The run that a recipe starts from -> its recipe."""
LICENCE = "apache-2.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=RECIPES, metavar="name", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--out", default=SOURCES, type=Path, help="the folder of the models' folders")
    parser.add_argument("--data", default="~/tensorflow_datasets", help="the folder of MNIST and CIFAR-10")
    parser.add_argument("--config", nargs="*", default=[], help="changes of the recipe, as steps=100")
    arguments = parser.parse_args()
    for name in arguments.names:
        began, out = time.perf_counter(), arguments.out.expanduser().absolute()
        run = trained(name, out / "runs", str(Path(arguments.data).expanduser()), arguments.config)
        folder = released(run, out / name)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        metrics = Workdir(run).read_summary().get("metrics", {})
        line = {"model": name, "folder": str(folder), "bytes": size, "metrics": metrics}
        print(json.dumps({**line, "seconds": round(time.perf_counter() - began, 1)}))


def trained(name: str, runs: Path, data: str, changes: list[str]) -> Path:
    """Trains a recipe, after what it starts from. Returns: the run's folder."""
    options = [f"--config.{change}" for change in changes]
    if name.startswith(("mnist_latents", "cifar", "mnist")):
        options.append(f"--config.data.data_dir={latents(runs, data) if 'latents' in name else data}")
    if name in TEACHERS:
        teacher = trained(TEACHERS[name], runs, data, changes)
        fields = ("init_from", "objective.teacher") if name.endswith("_cd") else ("init_from",)
        options += [f"--config.{field}={teacher}" for field in fields]
    command("-m", "cmjax.main", f"--config={ROOT / 'configs' / name}.py", f"--workdir={runs / name}", *options)
    return runs / name


def latents(runs: Path, data: str) -> Path:
    """Trains MNIST's autoencoder and encodes the data set, where that was not done. Returns: the latents' folder."""
    autoencoder, folder = runs / "autoencoder", runs / "latents"
    if not (autoencoder / RECORD).is_file():
        command(str(ROOT / "examples" / "train_autoencoder.py"), f"--data={data}", f"--out={autoencoder}")
    of_data = ("--config.data.name=mnist", f"--config.data.data_dir={data}")
    command("-m", "cmjax.main", "--mode=encode", *of_data, f"--autoencoder={autoencoder}", f"--out={folder}")
    return folder


def released(run: Path, folder: Path) -> Path:
    """Writes a run's folder for hubs in place of the one that was there, and its rows of the table."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    exporting.run(run, "hub", str(partial), licence=LICENCE, dtype="float16")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if run.name in INSIDE:
        for name in (RECORD, MODEL):
            (FOLDER / run.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, FOLDER / run.name / name)
    write_rows({run.name: folder})
    return folder


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
