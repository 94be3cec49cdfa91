"""Evaluates a run over its checkpoints, averages and samplers: a row for each setting."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.data.batches import UINT8
from cmjax.evaluation.evaluator import Evaluator
from cmjax.evaluation.results import CONTENT, ROWS, SETTING, Row, add_row, read_rows, row_there
from cmjax.generation.decoding import Decoder
from cmjax.generation.samplers import NamedSampler, conditioned
from cmjax.generation.sampling import SampleSequence
from cmjax.runs.trained import Trained
from cmjax.runs.weights import post_hoc, width_of
from cmjax.runs.workdir import Workdir
from cmjax.system.content import content_key
from cmjax.system.mesh import make_mesh, move, parameter_shardings
from cmjax.system.processes import on_first_process
from cmjax.system.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Parameters of a run, bound to its model. average: as a recipe writes it."""

    step: int
    checkpoint: Path | None
    average: str
    flow_map: BoundModel


def weights_of(trained: Trained, checkpoint: str, averages: Sequence[str], stds: Sequence[str]) -> Iterator[Weights]:
    """Yields the parameters of each checkpoint ("newest", "all" or steps as "400,800") and each average (numbers from
    0), and at the newest those of post-hoc widths.

    Raises: ConfigError where there is none such.
    """
    mesh = make_mesh()
    # widths alone: no average that was tracked is evaluated beside them
    for step in _steps(trained, checkpoint) if averages or not stds else ():
        at_step = replace(trained, step=step)
        for number in averages or ("0",):
            try:
                flow_map = at_step.load(average=int(number), mesh=mesh)
            except ValueError as error:
                raise ConfigError(f"--average={number}: must be a number from 0; {error}") from error
            name = trained.recorded.averages[int(number)]
            yield Weights(step, trained.folder / "checkpoints" / str(step), name, flow_map)
    if stds:
        widths = [width_of(text) for text in stds]
        made = post_hoc(trained, widths)
        for width, params in zip(widths, made.params, strict=True):
            # `post_hoc` sums the snapshots on the host
            params = move(params, parameter_shardings(params, mesh))
            flow_map = trained.model.bind(params, trained.shape)
            # no checkpoint holds such an average
            yield Weights(made.steps[-1], None, f"power(std={width})", flow_map)


def _steps(trained: Trained, checkpoint: str) -> list[int]:
    there = on_first_process(lambda: Workdir(trained.folder).steps)
    if not there:
        raise ConfigError(f"--workdir={trained.folder} has no checkpoint yet")
    if checkpoint == "newest":
        return [trained.step if trained.step is not None else there[-1]]
    if checkpoint == "all":
        return there
    steps = checkpoint.split(",")
    if wrong := [text for text in steps if not text.isdigit() or int(text) not in there]:
        raise ConfigError(f"--checkpoint={wrong[0]}: must be newest, all, or some of {', '.join(map(str, there))}")
    return [int(text) for text in steps]


@dataclass(frozen=True)
class SampleSet:
    """Says which samples are evaluated: how many, of which seed. labels: of `LABELS`. uint8: the rule for pixels.
    weaker: the model that guides them, if any. decoder: of latents."""

    num: int
    seed: int
    labels: str
    uint8: str
    weaker: BoundModel | None = None
    decoder: Decoder | None = None


def evaluate_setting(
    workdir: Path, trained: Trained, weights: Weights, chosen: NamedSampler, evaluator: Evaluator, samples: SampleSet
) -> Row:
    """Gives the row of that setting from the run's `evaluation.jsonl`, or evaluates it and adds the row. Every process
    must call it."""
    random_seed = samples.seed if samples.labels == "random" else None
    flow_map, conditions = conditioned(
        weights.flow_map, trained, chosen.samples, samples.num, random_seed=random_seed, weaker=samples.weaker
    )
    labels = {"labels": samples.labels} if trained.num_classes else {}
    # all that the samples depend on: a row of the same setting is not evaluated again
    setting = {
        "step": weights.step,
        "checkpoint": None if weights.checkpoint is None else str(weights.checkpoint),
        "average": weights.average,
        **chosen.setting,
        "num": samples.num,
        "seed": samples.seed,
        **labels,
        CONTENT: samples_key(flow_map, samples.decoder),
    }
    sequence = SampleSequence(chosen.sampler, flow_map, samples.seed, conditions, UINT8[samples.uint8], samples.decoder)
    return evaluate_once(workdir / ROWS, setting, evaluator, sequence.images)


def samples_key(flow_map: BoundModel, decoder: Decoder | None) -> str:
    """Gives the key of what samples are made of: the parameters, and the weights that decode latents."""
    return content_key(flow_map.params, *([] if decoder is None else [decoder.key]))


def evaluate_once(path: Path, setting: Row, evaluator: Evaluator, images_of: Any) -> Row:
    """Gives the row of a setting from the file `path`, or evaluates its images and adds the row."""
    if there := on_first_process(lambda: row_there(read_rows(path), setting, evaluator.protocol)):
        return there
    began, num = time.perf_counter(), setting["num"]
    # named by its setting: what another setting has accumulated must not be gone on with
    keep = path.parent / ".cache" / f"evaluation-{_key(setting, evaluator)}.npz"
    with progress(f"{setting['sampler']}, step {setting['step']}", num) as update:
        accumulators = evaluator.accumulate(images_of, num, keep=keep, update=update)
    # `of_real` is computed once, however many settings are evaluated
    metrics = {"metrics": evaluator.values(accumulators), "real": evaluator.of_real, "protocol": evaluator.protocol}
    row = {**setting, **metrics, "seconds": round(time.perf_counter() - began, 2)}
    on_first_process(lambda: _keep(path, row))
    return row


def _keep(path: Path, row: Row) -> None:
    try:
        add_row(path, row)
    except OSError as error:  # a full disk, or a folder that is only read: the metrics are there to be shown
        log.warning("the row is not kept, for %s cannot be written: %s", path, error.strerror or error)


def _key(setting: Row, evaluator: Evaluator) -> str:
    what = {name: setting.get(name) for name in (*SETTING, CONTENT)}
    return content_key(what, evaluator.protocol, {name: network.key for name, network in evaluator.networks.items()})
