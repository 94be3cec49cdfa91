"""Figures of a run as it trains: a row in its `evaluation.jsonl` every so many steps."""

import math
from collections.abc import Callable

from cmjax.config.fields import ConfigError
from cmjax.data.pixels import UINT8
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import make_judge
from cmjax.evaluation.results import CONTENT, ROWS
from cmjax.evaluation.sweep import judged_row
from cmjax.generation.run_samples import Pictures
from cmjax.generation.sampling import Draw
from cmjax.system.content import content_key
from cmjax.system.files import cache_of
from cmjax.training.state import TrainState

Watch = Callable[[TrainState, int], None]
"""(state, step): done at that step, in every process."""


def figures_of_run(pictures: Pictures, data: DataSets, average: str) -> Watch:
    """What judges a run's samples by its section `evaluate`, each sampler's always of the same noise.

    average: that they are drawn with, as it is written.

    Raises: ConfigError or DataError where they cannot be judged: before the run begins, not at its end.
    """
    run, workdir = pictures.run, pictures.workdir
    asked = run.evaluation
    if pictures.source.shape[-1] not in (1, 3):
        raise ConfigError(f"config.evaluate.every={asked.every}: figures are of pictures, not {pictures.source.shape}")
    judge = make_judge(asked, data, num=asked.num, reference=None, cache_dir=cache_of(workdir))
    labels = {"labels": asked.labels} if pictures.model.class_conditional else {}
    random_seed = run.seed if asked.labels == "random" else None

    def watch(state: TrainState, step: int) -> None:
        flow_map, conditions = pictures.conditioned(state, asked.num, random_seed=random_seed)
        content = content_key(flow_map.params)
        for chosen in pictures.samplers.values():
            setting = {"step": step, "checkpoint": None, "average": average, **chosen.setting}
            setting |= {"num": asked.num, "seed": run.seed, **labels, CONTENT: content}
            draw = Draw(chosen.sampler, flow_map, run.seed, conditions, UINT8[asked.uint8])
            judged_row(workdir / ROWS, setting, judge, draw.images)

    return watch


def in_turn(watches: list[tuple[Watch | None, int]]) -> tuple[Watch, int]:
    """One watch in place of several, each with the steps between its times, 0 for never; and the steps between."""
    wanted = [(watch, every) for watch, every in watches if watch and every]

    def watch_all(state: TrainState, step: int) -> None:
        for watch, every in wanted:
            if step % every == 0:
                watch(state, step)

    return watch_all, math.gcd(*(every for _, every in wanted))
