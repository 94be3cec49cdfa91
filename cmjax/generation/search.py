"""Searches the noise levels of multistep sampling, for `--times=auto:2`, once for a model, and keeps them."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.config.samples import SamplingOptions
from cmjax.core.model import BoundModel
from cmjax.data.base import DataError
from cmjax.data.on_demand import fingerprint
from cmjax.generation.decoding import Decoder
from cmjax.generation.samplers import conditioned
from cmjax.generation.sampling import consistency_samplers, sample_images
from cmjax.metrics.comparison import metric_against, why_not_compared
from cmjax.metrics.registry import better
from cmjax.runs.trained import Trained
from cmjax.system.content import content_key
from cmjax.system.files import cache_of, to_json, write_atomically
from cmjax.system.processes import on_first_process
from cmjax.system.progress import progress

log = logging.getLogger(__name__)

RECORD = "times.json"
VERSION = 1  # of the search: a higher one makes what is kept anew
GRID = 40  # points of the Karras grid whose levels are tried
SAMPLES = 1000  # samples of each try, always of the same noise


def find_times(
    trained: Trained,
    flow_map: BoundModel,
    count: int,
    *,
    metric: str = "fd",
    samples: SamplingOptions | None = None,
    decoder: Decoder | None = None,
) -> tuple[float, ...]:
    """Gives `count` descending noise levels, the first t_max: those in the run's folder, or the result of a search.

    samples: how the model samples, by default as the run does; each sampler has times for itself. decoder: of latents.

    One level after another: each is placed on the grid below the last by ternary search for the best of `metric`, the
    Fréchet distance to the held-out data unless another of `RUN_VALUES` is named, as if there were one optimum.
    [Song et al. 2023, app. C.4]

    Raises: ConfigError where `count` is not between 2 and 8, the samples are no images, or the run has no data to
            compare with.
    """
    if not 2 <= count <= 8:
        raise ConfigError(f"--times=auto:{count}: the number of evaluations must be 2 to 8")
    samples = samples or trained.samples
    path, about = trained.folder / RECORD, _about(trained, flow_map, samples, decoder)
    # one process reads, and all get the same: each must decide alike whether to search
    searches = on_first_process(lambda: _kept(path, about))
    name = _name(trained, samples, count, metric)
    if name not in searches:
        times, tried = _search(
            score_along(trained, flow_map, metric, samples, decoder), grid_of(trained), count, metric
        )
        searches[name] = {"times": times, "frechet_distance" if metric == "fd" else metric: tried}
        on_first_process(lambda: _keep(path, {"checkpoint": trained.used_step, **about, "found": searches}))
    times = tuple(searches[name]["times"])
    log.info("times %s (%s)", ",".join(f"{t:.4g}" for t in times), path)
    return times


def _about(
    trained: Trained, flow_map: BoundModel, samples: SamplingOptions, decoder: Decoder | None
) -> dict[str, str | None]:
    """Gives the keys of what a search depends on: the model and how it samples, and the held-out images, or None where
    they cannot be read. Every process must call it."""
    decoded = [] if decoder is None else [decoder.key]
    model = content_key(
        VERSION, flow_map.params, grid_of(trained), SAMPLES, samples.guidance, samples.choices, *decoded
    )

    def data() -> str | None:
        try:
            return fingerprint(trained.open_images("test"))
        except (ConfigError, DataError):  # data that were moved since do not make the times wrong
            return None

    return {"model": model, "data": on_first_process(data)}


def _kept(path: Path, about: Mapping[str, str | None]) -> dict[str, Any]:
    """Reads the searches in the file, by their names; none where they are of another model or of other data."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        differing = [name for name, key in about.items() if key is not None and kept.get(name) != key]
        if not differing:
            return dict(kept["found"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read, and is made anew: %s", path, error)
        return {}
    log.warning("%s is of another %s, and is made anew", path, " and other ".join(differing))
    return {}


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    try:
        write_atomically(path, to_json(content))
    except OSError as error:
        log.warning("%s is not written, and another start searches again: %s", path, error.strerror or error)


def _name(trained: Trained, samples: SamplingOptions, count: int, metric: str) -> str:
    """Names an entry of the record: "2", and what is not the default beside it."""
    sampler = [] if samples.gamma is None else [samples.name(trained.model.kind, count)]
    others = {} if samples.guidance == trained.samples.guidance else {"guidance": samples.guidance}
    choices = [f"{name}={value}" for name, value in (others | samples.choices).items()]
    return ", ".join([str(count), *([] if metric == "fd" else [metric]), *sampler, *choices])


def score_along(
    trained: Trained,
    flow_map: BoundModel,
    metric: str,
    samples: SamplingOptions | None = None,
    decoder: Decoder | None = None,
) -> Callable[[tuple[float, ...]], float]:
    """Makes the function of times that samples `SAMPLES` images along them and computes the metric.

    samples, decoder: as in `find_times`.

    Raises: ConfigError where the samples are no images, or the run has no data to compare with.
    """
    if decoder is None and trained.of_latents:
        raise ConfigError(f"--times=auto: the search is by metrics of images, which {flow_map.shape} are none")
    if not trained.recorded.has_data:
        raise ConfigError("--times=auto: an imported model has no data to search with; name the times")

    @cache
    def score():  # made by the first process alone, which scores for all
        held_out, train = trained.open_images("test"), trained.open_images("train")
        if why := why_not_compared(train, num=SAMPLES, held_out=len(held_out)):
            raise ConfigError(f"no times can be searched for: {why}; name them, as --times=80,0.8")
        return metric_against(held_out, train, metric, cache_dir=cache_of(trained.folder))

    # made before any sampling, so that errors come first; it stays in this process, which alone can use it
    on_first_process(lambda: score() and None)
    samples = samples or trained.samples
    flow_map, conditions = conditioned(flow_map, trained, samples, SAMPLES)
    along = consistency_samplers(samples)

    def score_of(times: tuple[float, ...]) -> float:
        images = sample_images(along(times), flow_map, SAMPLES, seed=0, conditions=conditions, decode=decoder)
        return on_first_process(lambda: float(score()(images)))

    return score_of


def grid_of(trained: Trained) -> list[float]:
    """Gives the times, ascending, of which the search chooses."""
    return trained.model.grid(GRID).tolist()


def _search(
    score: Callable[[tuple[float, ...]], float], grid: list[float], count: int, metric: str
) -> tuple[list[float], dict[str, float]]:
    """Searches the levels; returns them, and the metric of every choice that was tried, by its levels."""
    sign = -1 if better(metric) == "larger" else 1
    # the first time is t_max, where the noise is
    places, tried = [GRID - 1], {}
    # a guess for the bar: some 9 rounds take a grid of 40 to 3 places by a third each, with 2 evaluations
    with progress("searching times", (count - 1) * 2 * 9) as update:
        for _ in range(1, count):
            # rounds ask for some places again
            @cache
            def cost_at(place: int) -> float:
                times = tuple(grid[p] for p in (*places, place))
                name = ",".join(f"{t:.4g}" for t in times)
                tried[name] = score(times)
                update(len(tried), f"{name}: {tried[name]:.3f}")
                return sign * tried[name]

            # the search takes it that the metric falls and then rises between two times
            places.append(ternary_search(cost_at, 1, places[-1] - 1))
    return [grid[place] for place in places], tried


def ternary_search(value: Callable[[int], float], low: int, high: int) -> int:
    """Finds the whole number in [low, high] where `value`, which falls and then rises, is least."""
    while high - low > 2:
        # two inner places divide what is left in thirds; at most three places are tried one by one
        left, right = low + (high - low) // 3, high - (high - low) // 3
        if value(left) <= value(right):
            # equal values: the least lies between the two
            high = right - 1 if value(left) < value(right) else right
        else:
            low = left + 1
    return min(range(low, high + 1), key=value)
