"""`--mode=report`: a page about a run, or about several side by side, in one HTML file that needs no network.

Files are read and no device is used: a run may be training meanwhile.

    cmjax report --workdir=runs/digits_ct
    cmjax report --workdir=runs/digits_ct,runs/digits_ict,runs/digits_ect --out=comparison.html
"""

from collections.abc import Sequence
from pathlib import Path

import jax

from cmjax.command_line import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.machine.files import to_path
from cmjax.reporting.page import MISSING, PAGE, report

COMPARISON = "comparison.html"


def declare(flags: Flags) -> None:
    flags.group("The page")
    flags.text(
        "out", None, "x.html. Default: report.html in the run's folder; of several, comparison.html in the first."
    )


def start(options: Options) -> None:
    jax.config.update("jax_platforms", "cpu")  # another process may hold the accelerator
    run(options.workdirs, out=options.out)


def run(workdirs: Sequence[Path], *, out: str | None = None) -> None:
    """Write the page about the runs in `workdirs`.

    Raises: ConfigError where one is no run's folder, the page cannot be written, or Bokeh is not installed.
    """
    path = to_path(out) if out else workdirs[0] / (PAGE if len(workdirs) == 1 else COMPARISON)
    if path.suffix != ".html":
        raise ConfigError(f"--out={out}: must end in .html")
    try:
        size = report(workdirs, path)
    except ImportError as error:
        raise ConfigError(f"--mode=report {MISSING}" if "bokeh" in str(error) else str(error)) from error
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror or error}") from error
    print(f"{path}: {size / 1e6:.1f} MB")
