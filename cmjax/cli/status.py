"""`--mode=status`: show what a run is, where it stands, how fast it goes, its newest metrics and its files.

It only reads files: it uses no device and waits for no other process.

    cmjax status --workdir=runs/digits_ct
"""

from pathlib import Path

from cmjax.cli.flags import Flags, Options
from cmjax.metrics.table import format_table
from cmjax.runs.status import Rows, read_status, rows_of, size, versions
from cmjax.runs.workdir import Workdir
from cmjax.system.files import size_of, to_path

LISTED = 5  # so many of the newest checkpoints are listed one by one


def declare(flags: Flags) -> None:
    """The mode has no flags of its own."""


def start(options: Options) -> None:
    run(options.workdir)


def run(workdir: str | Path) -> None:
    """Print the status of a run: `run("runs/digits_ct")`.

    Raises: ConfigError where it is no run's folder.
    """
    workdir = to_path(workdir)
    status = read_status(workdir)
    rows = [*rows_of(workdir, status), *_on_disk(workdir, status.saved), ("versions", versions(status.record))]
    print("\n".join(f"{name:13s}{text}" for name, text in rows))
    if status.summary.get("metrics"):
        print(f"\nmetrics at step {status.summary['steps']:,}\n{format_table(status.summary['metrics'])}")


def _on_disk(workdir: Path, saved: list[int]) -> Rows:
    folder = Workdir(workdir).checkpoints
    sizes = {path.name: size_of(path) for path in workdir.iterdir()}
    yield "on disk", f"{size(sum(sizes.values()))} in {workdir}"
    for step in saved[: -LISTED - 1 : -1]:
        yield "", f"checkpoint {step:,}: {size(size_of(folder / str(step)))}"
    if saved[:-LISTED]:
        older = sum(size_of(folder / str(step)) for step in saved[:-LISTED])
        yield "", f"{len(saved) - LISTED} older ones: {size(older)}"
    for path in sorted(folder.iterdir(), key=str) if folder.exists() else []:
        if path.name.startswith("damaged-"):
            yield "", f"{path.name}: {size(size_of(path))}, renamed because it could not be read"
    for name in sorted(sizes.keys() - {"checkpoints"}):
        if (workdir / name).is_dir():
            files = f"{len(list((workdir / name).iterdir()))} files, " * (name == "samples")
            yield "", f"{name}: {files}{size(sizes[name])}"
