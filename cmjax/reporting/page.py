"""Writes a page about a run, or several side by side: a single HTML file that needs no network."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.data.sources import Source
from cmjax.reporting.images import LARGE, MOST_FRAMES, EmbeddedImage, even_choice, shrink
from cmjax.reporting.parts import Part, configurations_differ, read_part
from cmjax.reporting.tables import evaluations, final_metrics, overview, starts
from cmjax.runs.record import read_record
from cmjax.runs.status import Status, read_status
from cmjax.runs.trained import open_trained
from cmjax.system.files import absolute, write_atomically
from cmjax.system.libraries import how_to_install, is_installed, require

log = logging.getLogger(__name__)

PAGE = "report.html"
MOST_CHARACTERS = 4_800_000
"""Of the page."""
FOR_WORDS = 200_000
"""Of these, for all but the curves and the images."""
HERE = Path(__file__).parent


def report(workdirs: Sequence[Path], out: Path, *, source: Source | None = None, data_dir: str | None = None) -> int:
    """Writes the page about the runs in `workdirs`.

    Args:    source: the training images of the one run, where they are open; else those that its record names.
             data_dir: where the runs' data are now, None for where their records say.
    Returns: the bytes of the page.
    Raises:  ConfigError where a folder is no run's; MissingLibrary without Bokeh; OSError without `out`.
    """
    require("bokeh", "--mode=report")

    def opener(workdir: Path) -> Callable[[], Source] | None:
        here = source
        if here is not None:
            return lambda: here
        if data_dir is None:
            return None
        return lambda: open_trained(workdir, data_dir=data_dir).run().open_source("train")

    parts = [
        read_part(name, workdir, _settled(read_status(workdir, read_record(workdir))), opener(workdir))
        for name, workdir in zip(_names(workdirs), workdirs, strict=True)
    ]
    page = render(parts).encode()
    write_atomically(out, page)
    return len(page)


def report_at_end(workdir: Path, source: Source) -> str | None:
    """Writes the page of a run that has ended. Returns: its path, or None, the reason in the log."""
    path = workdir / PAGE
    if not is_installed("bokeh"):
        log.info("no %s: it needs bokeh: %s", PAGE, how_to_install("bokeh"))
        return None
    try:
        report([workdir], path, source=source)
        return str(path)
    except Exception as error:  # whatever it is, the run is done and its results are safe
        log.warning("no %s: %s", PAGE, " ".join(repr(error).split())[:300])
    return None


def _settled(status: Status) -> Status:
    """A finished run is not shown as running, though its process, which writes the page, is still there."""
    return replace(status, mark=None, alive=False) if status.finished else status


def _names(workdirs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names are the same."""
    names = [absolute(workdir).name or str(workdir) for workdir in workdirs]
    return names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]


def render(parts: Sequence[Part]) -> str:
    """The page's HTML. Raises: ConfigError where two of the folders are one."""
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    from cmjax.reporting.curves import plots_of

    by_name = {part.name: part for part in parts}
    if len(by_name) < len(parts):
        raise ConfigError(f"--workdir={','.join(str(part.workdir) for part in parts)}: names a folder twice")
    plots = plots_of({part.name: part.status.records for part in parts}, {part.name: part.levels for part in parts})
    script, places = components(plots) if plots else ("", {})
    libraries = Resources(mode="inline", components=["bokeh"], minified=True).render_js() if plots else ""
    room = MOST_CHARACTERS - FOR_WORDS - len(libraries.encode()) - len(script.encode())
    images = PageImages(parts, room)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        title=", ".join(by_name),
        parts=parts,
        several=len(parts) > 1,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("cmjax"),
        style=Markup(HERE.joinpath("page.css").read_text()),  # the four are the program's own, and no run's
        behaviour=Markup(HERE.joinpath("page.js").read_text()),
        libraries=Markup(libraries),
        script=Markup(script),
        places={title: Markup(place) for title, place in places.items()},
        overview=overview(parts),
        starts=starts(parts),
        differing=configurations_differ(parts) if len(parts) > 1 else [],
        final_metrics=final_metrics(parts),
        evaluations=evaluations(parts),
        frames=images.frames,
        steps=images.steps,
        diagnostics=images.diagnostics,
        galleries=images.galleries,
        left_out=[(part.name, note) for part in parts for note in part.notes] + images.notes,
    )


class PageImages:
    """Embeds the runs' images so that they fit into `room` characters.

    frames: run -> sampler -> step -> image. steps: all steps of the frames. diagnostics: run -> caption -> image.
    galleries: run -> image. notes: (run, what is left out).
    """

    def __init__(self, parts: Sequence[Part], room: int):
        self.notes: list[tuple[str, str]] = []
        chosen = {part.name: self._choose(part, max(3, MOST_FRAMES // len(parts))) for part in parts}
        grids = sum(len(steps) for samplers in chosen.values() for steps in samplers.values())
        larger = sum(len(part.diagnostics) + (part.gallery is not None) for part in parts)
        nearest = sum(len(image.uri) for part in parts if part.nearest for image, _ in part.nearest.pairs)
        self._limit = int((room - nearest) / max(grids + LARGE * larger, 1))
        self.frames = {
            name: {
                sampler: self._all(name, {step: (path, 1.0) for step, path in steps.items()})
                for sampler, steps in samplers.items()
            }
            for name, samplers in chosen.items()
        }
        self.steps = sorted({step for run in self.frames.values() for frames in run.values() for step in frames})
        self.diagnostics = {
            part.name: self._all(part.name, {caption: (path, LARGE) for caption, path in part.diagnostics.items()})
            for part in parts
        }
        self.galleries = {
            part.name: self._all(part.name, {"gallery": (part.gallery, LARGE)}) for part in parts if part.gallery
        }

    def _choose(self, part: Part, most: int) -> Mapping[str, Mapping[int, Path]]:
        chosen = {}
        for sampler, grids in part.grids.items():
            kept = even_choice(list(grids), most)
            chosen[sampler] = {step: grids[step] for step in kept}
            if len(kept) < len(grids):
                note = f"{sampler}: samples of {len(kept)} of {len(grids)} steps are shown; all are in samples/"
                self.notes.append((part.name, note))
        return chosen

    def _all(self, run: str, files: Mapping[Any, tuple[Path, float]]) -> dict[Any, EmbeddedImage]:
        made = {}
        for name, (path, larger) in files.items():
            try:
                made[name] = shrink(path.read_bytes(), int(self._limit * larger))
            except OSError as error:
                self.notes.append((run, f"{path.name} cannot be read: {' '.join(str(error).split())}"))
        return made
