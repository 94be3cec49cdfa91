"""Checks the metrics themselves: real images, damaged more and more, must have worse and worse values."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.data.base import kind_of, shuffled
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import Evaluator
from cmjax.metrics.damage import STRENGTHS, damaged
from cmjax.metrics.registry import too_few
from cmjax.plotting.plots import line_plot, save_png
from cmjax.system.files import to_json, write_atomically
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress


def check_evaluator(evaluator: Evaluator, data: DataSets, num: int, folder: Path) -> None:
    """Writes `evaluator.png` and `.json`: the metrics of one half of the real images, whole and damaged.

    The reference is one half of the data, at most `num` images, and all others are made of the other half.

    Raises: ConfigError where the data are too few.
    """
    source = data.train
    if len(source.shape) != 3:
        raise ConfigError(f"--check: damages images, and the data are {kind_of(source.shape)}")
    # two halves without a common image: a shared one would make the distances too small
    half = min(num, len(source) // 2)
    if why := too_few(evaluator.network_of, half):
        raise ConfigError(f"--check: {why} in half of {data.name}")
    order = shuffled(len(source), seed=1)
    first, second = source.gather(order[:half]), source.gather(order[half : 2 * half])
    against = replace(evaluator, references=evaluator.accumulate(_of(first["image"]), half))
    by_metric: dict[str, dict[str, list[float]]] = {}
    with progress("damaged images", sum(map(len, STRENGTHS.values()))) as update:
        done = 0
        for kind, strengths in STRENGTHS.items():
            for strength in strengths:
                # labels, for the damage that mixes or drops classes
                images = damaged(kind, second["image"], second.get("label"), strength)
                for name, value in against.values(against.accumulate(_of(images), half)).items():
                    by_metric.setdefault(name, {}).setdefault(kind, []).append(value)
                update(done := done + 1, f"{kind} {strength:g}")
    places = list(range(len(next(iter(STRENGTHS.values())))))
    panels = [
        line_plot(
            {kind: (places, values) for kind, values in kinds.items()},
            title=f"{name} of {half} images of {data.name}, damaged, against {half} others",
            x_label="strength; 0: as they are",
            y_label=name,
            log_x=False,
            log_y=name.startswith(("f", "sf")),  # Fréchet distances are positive, and grow by orders of magnitude
            height=300,
        )
        for name, kinds in by_metric.items()
    ]
    about = {"data": data.name, "num": half, "strengths": STRENGTHS, "protocol": evaluator.protocol}
    numbers = about | {"values": by_metric}
    on_first_process(lambda: write_atomically(folder / "evaluator.json", to_json(numbers)))
    on_first_process(lambda: save_png(folder / "evaluator.png", np.concatenate(panels)))
    say(f"{folder / 'evaluator.png'}\n{folder / 'evaluator.json'}")


def _of(images: np.ndarray):
    return lambda start, stop: images[start:stop]
