"""Removes files of a run's folder that were made of parameters which are gone."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from cmjax.runs.workdir import Workdir
from cmjax.system.files import read_json

log = logging.getLogger(__name__)

GRID = re.compile(r"(\d{7,})-.+\.png")
"""The file of a grid of samples: its step and its sampler."""

CHECKPOINT = "checkpoint"
"""The key, in a PNG's text and in JSON, of the step of the parameters that a file was made of."""


def remove_later(workdir: Path, step: int) -> None:
    """Remove what was made of the parameters of steps after `step`: grids of samples, diagnostics, the gallery and the
    summary. A training that goes on from `step` makes new ones, and the old ones must not be mistaken for them."""
    later = [path for path, made_of in _made(workdir) if made_of > step]
    for path in later:
        path.unlink(missing_ok=True)
    if later:
        names = ", ".join(str(path.relative_to(workdir)) for path in later[:3])
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        log.warning("made of parameters of steps after %d, and removed: %s%s", step, names, more)


def _made(workdir: Path) -> Iterator[tuple[Path, int]]:
    """Yield files that were made of a run's parameters, with the steps of these."""
    samples, diagnostics = workdir / "samples", workdir / "diagnostics"
    for path in sorted(samples.iterdir()) if samples.is_dir() else ():
        if match := GRID.fullmatch(path.name):
            yield path, int(match[1])
    for path in sorted(diagnostics.glob("*.json")) if diagnostics.is_dir() else ():
        if isinstance(made_of := read_json(path).get(CHECKPOINT), int):
            yield path, made_of
            yield path.with_suffix(".png"), made_of
    run = Workdir(workdir)
    if isinstance(made_of := run.read_summary().get("steps"), int):
        yield run.summary, made_of
    gallery = workdir / "gallery.png"
    if gallery.exists() and (made_of := _step_in(gallery)).isdigit():
        yield gallery, int(made_of)


def _step_in(png: Path) -> str:
    """The step that a PNG's text names; "" where it names none."""
    from PIL import Image

    try:
        with png.open("rb") as opened, Image.open(opened) as image:
            return str(image.info.get(CHECKPOINT, ""))
    except OSError:
        return ""
