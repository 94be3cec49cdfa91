"""Writes a page about a run, or several side by side: a single HTML file that needs no network."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.data.sources import Source
from cmjax.reporting.images import LARGE, MOST_FRAMES, EmbeddedImage, even_choice, shrink
from cmjax.reporting.parts import Part, configurations_differ, read_part
from cmjax.reporting.tables import evaluations, final_metrics, overview, starts
from cmjax.runs.record import read_record
from cmjax.runs.status import read_status
from cmjax.runs.trained import open_trained
from cmjax.system.files import absolute, write_atomically
from cmjax.system.libraries import how_to_install, is_installed, require

log = logging.getLogger(__name__)

PAGE = "report.html"
MOST_CHARACTERS = 4_800_000  # of the page
FOR_WORDS = 200_000  # of these, for all but the curves and the images
HERE = Path(__file__).parent


def report(workdirs: Sequence[Path], out: Path, *, source: Source | None = None, data_dir: str | None = None) -> int:
    """Writes the page about the runs in `workdirs`.

    Args:    source: the training images of the one run, where they are open; else those that its record names.
             data_dir: where the runs' data are now, None for where their records say.
    Returns: the bytes of the page.
    Raises:  ConfigError where a folder is no run's; MissingLibrary without Bokeh; OSError without `out`.
    """
    require("bokeh", "--mode=report")

    def open_source(workdir: Path) -> Source:
        return open_trained(workdir, data_dir=data_dir).open_images("train") if source is None else source

    names = [absolute(workdir).name or str(workdir) for workdir in workdirs]
    if len(set(names)) < len(names):
        names = [str(workdir) for workdir in workdirs]
    parts = []
    for name, workdir in zip(names, workdirs, strict=True):
        status = read_status(workdir, read_record(workdir))
        if status.finished:  # the process that writes the page of its own run is still there
            status = replace(status, mark=None, alive=False)
        parts.append(read_part(name, workdir, status, partial(open_source, workdir)))
    page = render(parts).encode()
    write_atomically(out, page)
    return len(page)


def report_at_end(workdir: Path, source: Source) -> str | None:
    """Writes the page of a run that has ended. Returns: its path; None where it cannot, with a warning."""
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


def render(parts: Sequence[Part]) -> str:
    """Makes the page's HTML. Raises: ConfigError where two of the folders are one."""
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
    # the characters that are left for the images
    room = MOST_CHARACTERS - FOR_WORDS - len(libraries.encode()) - len(script.encode())
    notes = [(part.name, note) for part in parts for note in part.notes]
    images = embedded_images(parts, room, notes)
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
        left_out=notes,
        **images,
    )


def embedded_images(parts: Sequence[Part], room: int, notes: list[tuple[str, str]]) -> dict[str, Any]:
    """Embeds the runs' images so that they fit into `room` characters. Returns: what the template shows of them.

    frames: run -> sampler -> step -> image. steps: all steps of the frames. diagnostics, galleries: run -> caption ->
    image. notes: takes (run, what is left out).
    """
    frames: dict[str, dict[str, dict[int, EmbeddedImage]]] = {part.name: {} for part in parts}
    diagnostics: dict[str, dict[str, EmbeddedImage]] = {part.name: {} for part in parts}
    galleries: dict[str, dict[str, EmbeddedImage]] = {part.name: {} for part in parts if part.gallery}
    wanted: list[tuple[dict[Any, EmbeddedImage], Any, str, Path, float]] = []
    for part in parts:
        for sampler, grids in part.grids.items():
            kept = even_choice(list(grids), max(3, MOST_FRAMES // len(parts)))
            shown = frames[part.name][sampler] = {}
            wanted += [(shown, step, part.name, grids[step], 1.0) for step in kept]
            if len(kept) < len(grids):
                note = f"{sampler}: samples of {len(kept)} of {len(grids)} steps are shown; all are in samples/"
                notes.append((part.name, note))
        for caption, path in part.diagnostics.items():
            wanted.append((diagnostics[part.name], caption, part.name, path, LARGE))
        if part.gallery:
            wanted.append((galleries[part.name], "gallery", part.name, part.gallery, LARGE))
    # pairs of nearest images are not made smaller: their pixels are what is compared
    nearest = sum(len(image.uri) for part in parts if part.nearest for image, _ in part.nearest.pairs)
    limit = (room - nearest) / max(sum(larger for *_, larger in wanted), 1)
    for shown, name, run, path, larger in wanted:
        try:
            shown[name] = shrink(path.read_bytes(), int(limit * larger))
        except OSError as error:
            notes.append((run, f"{path.name} cannot be read: {' '.join(str(error).split())}"))
    steps = {step for samplers in frames.values() for shown in samplers.values() for step in shown}
    return {"frames": frames, "steps": sorted(steps), "diagnostics": diagnostics, "galleries": galleries}
