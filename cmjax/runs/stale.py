"""What lies in a run's folder of later steps than its training goes on from: made of parameters that are gone."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from cmjax.runs.status import objects, text_of

log = logging.getLogger(__name__)

GRID = re.compile(r"(\d{7,})-.+\.png")
"""A run's own grid of samples: its step and its sampler."""

CHECKPOINT = "checkpoint"
"""The word in an image of several steps' results that names the step of its parameters."""


def remove_later(workdir: Path, step: int) -> None:
    """Remove what was made of the parameters of steps after `step`: grids of samples, diagnostics, the gallery and the
    summary. A training that goes on from there makes its own, and nobody shall take the old ones for them."""
    later = [path for path, made_of in _made(workdir) if made_of > step]
    for path in later:
        path.unlink(missing_ok=True)
    if later:
        names = ", ".join(str(path.relative_to(workdir)) for path in later[:3])
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        log.warning("made of parameters of steps after %d, and removed: %s%s", step, names, more)


def _made(workdir: Path) -> Iterator[tuple[Path, int]]:
    """Files that were made of a run's parameters, and their steps, as far as these are known."""
    samples, diagnostics = workdir / "samples", workdir / "diagnostics"
    for path in sorted(samples.iterdir()) if samples.is_dir() else ():
        if match := GRID.fullmatch(path.name):
            yield path, int(match[1])
    for path in sorted(diagnostics.glob("*.json")) if diagnostics.is_dir() else ():
        for content in objects([text_of(path)]):
            if isinstance(made_of := content.get(CHECKPOINT), int):
                yield path, made_of
                yield path.with_suffix(".png"), made_of
    for content in objects([text_of(workdir / "summary.json")]):
        if isinstance(made_of := content.get("steps"), int):
            yield workdir / "summary.json", made_of
    gallery = workdir / "gallery.png"
    if gallery.exists() and (made_of := _word_of(gallery)).isdigit():
        yield gallery, int(made_of)


def _word_of(picture: Path) -> str:
    """What a PNG says of its checkpoint; "" where it says nothing."""
    from PIL import Image

    try:
        with picture.open("rb") as opened, Image.open(opened) as image:
            return str(image.info.get(CHECKPOINT, ""))
    except OSError:
        return ""
