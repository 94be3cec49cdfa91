"""`--times=auto:2`: the noise levels of multistep sampling, searched for once and kept with the model."""

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cmjax.build import read_model_plan, read_run
from cmjax.core.sampling import FlowMap
from cmjax.fields import ConfigError, Fields
from cmjax.files import to_json, write_atomically
from cmjax.modes.draw import class_labels, consistency_samplers, draw_images, with_guidance
from cmjax.modes.figures import distance_to
from cmjax.training.logging import progress
from cmjax.workdir import newest_checkpoint, read_record

log = logging.getLogger(__name__)

RECORD = "times.json"
GRID = 40
"""Points of the Karras grid whose levels are tried."""

SAMPLES = 1000
"""Drawn for each try, always of the same noise."""


def find_times(workdir: Path, flow_map: FlowMap, count: int) -> tuple[float, ...]:
    """`count` descending noise levels, the first t_max: kept in the run's folder, or found by search.

    One level after another: each is placed on the grid below the last by ternary search for the least Fréchet distance
    to the held-out data, as if there were one minimum.   [Song et al. 2023, app. C.4]

    Raises: ConfigError where `count` is not between 2 and 8, or the run has no data to compare with.
    """
    if not 2 <= count <= 8:
        raise ConfigError(f"--times=auto:{count}: the number of evaluations must be 2 to 8")
    path, checkpoint = workdir / RECORD, newest_checkpoint(workdir)
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("checkpoint") != checkpoint:
        kept = {"checkpoint": checkpoint, "found": {}}
    if str(count) not in kept["found"]:
        times, tried = _search(workdir, flow_map, count)
        kept["found"][str(count)] = {"times": times, "frechet_distance": tried}
        write_atomically(path, to_json(kept))
    times = tuple(kept["found"][str(count)]["times"])
    log.info("times %s (%s)", ",".join(f"{t:.4g}" for t in times), path)
    return times


def _search(workdir: Path, flow_map: FlowMap, count: int) -> tuple[list[float], dict[str, float]]:
    """The levels, and the distance of every choice that was tried, by its levels."""
    record = read_record(workdir)
    if "data" not in record["config"]:
        raise ConfigError("--times=auto: an imported model has no data to search with; name the times")
    config = record["config"]
    open_source = read_run(config).open_source
    distance = distance_to(open_source("test"), open_source("train"), cache_dir=workdir.parent / ".cache")
    conditional = config["net"]["class_conditional"]
    flow_map, conditions = with_guidance(
        flow_map,
        class_labels(SAMPLES, record["num_classes"] if conditional else None),
        config["samples"].get("guidance", 1.0),
        takes=config["net"].get("guided", False),
    )
    grid = read_model_plan(Fields(config)).grid(GRID).tolist()
    places, tried, along = [GRID - 1], {}, consistency_samplers()
    with progress("searching times", (count - 1) * 2 * 9) as update:
        for _ in range(1, count):

            @cache
            def distance_at(place: int) -> float:
                times = tuple(grid[p] for p in (*places, place))
                images = draw_images(along(times), flow_map, SAMPLES, seed=0, conditions=conditions)
                name = ",".join(f"{t:.4g}" for t in times)
                tried[name] = distance(images)
                update(len(tried), f"{name}: {tried[name]:.3f}")
                return tried[name]

            places.append(ternary_search(distance_at, 1, places[-1] - 1))
    return [grid[place] for place in places], tried


def ternary_search(value: Callable[[int], float], low: int, high: int) -> int:
    """The whole number in [low, high] where `value`, which falls and then rises, is least."""
    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        if value(left) <= value(right):
            high = right - 1 if value(left) < value(right) else right
        else:
            low = left + 1
    return min(range(low, high + 1), key=value)
