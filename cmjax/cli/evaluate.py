"""`--mode=evaluate`: metrics of a run's samples, or of any images, beside those of real ones.

cmjax evaluate --workdir=runs/digits_ct
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid,kid,prdc --num=50000 --times=80 --times=80,0.8
cmjax evaluate --workdir=runs/cifar_ct --checkpoint=all --num=10000
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid --images=theirs.npz --reference=cifar10-32x32.npz

The same command goes on with an evaluation that was stopped. From Python:
evaluate.run("runs/digits_ct", metrics=["fd"], times=["80", "80,0.8"])
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.data import Data
from cmjax.config.evaluation import FEATURES, LABELS, WEIGHTS, Evaluation, evaluation_of_options
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.batches import RULES, UINT8
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import Evaluator, make_evaluator
from cmjax.evaluation.evaluator_check import check_evaluator
from cmjax.evaluation.image_files import images_in
from cmjax.evaluation.networks import networks_of
from cmjax.evaluation.results import CONTENT, ROWS, Row, curves, notes, table
from cmjax.evaluation.sweep import SampleSet, evaluate_once, evaluate_setting, weights_of
from cmjax.generation.autoguidance import WeakerModel, weaker_model
from cmjax.generation.samplers import NamedSampler, named_sampler, samples_from_flags
from cmjax.interop.statistics import write_statistics
from cmjax.metrics.registry import METRICS, too_few
from cmjax.plotting.plots import save_png
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import RECORD, cache_compilations, output
from cmjax.system.content import content_key
from cmjax.system.files import cache_of, to_path
from cmjax.system.processes import on_first_process, say

log = logging.getLogger(__name__)

SETTINGS = ("times", "sampler", "steps", "checkpoint", "average", "std")
CHOICES = ("solver", "gamma", "guidance", "guidance_interval", "clip", "autoguidance", "autoguidance_average")
BY = ("metrics", "features", "weights", "reference", "save_reference", "uint8")
"""Flags by what they say: which settings are evaluated, how they sample, and by which metrics."""


def declare(flags: Flags) -> None:
    flags.group("What is evaluated")
    flags.integer("num", 1000, "How many samples of each setting. Published FIDs are of 50000.", at_least=2)
    flags.integer("seed", 0, "The same seed gives the same samples.", at_least=0)
    flags.several("times", "Noise levels, as 80,0.8 or idx:0,22/40; each --times is one more setting.")
    flags.several("sampler", "multistep, or of flow maps chain(gamma=0); each --sampler is one more setting.")
    flags.number(
        "gamma", None, "Flow maps: short for --sampler='chain(gamma=…)', γ the fraction of new noise.", 0.0, 1.0
    )
    flags.text("solver", None, "Of a teacher. Default: the run's.")
    flags.several("steps", "Noise levels of a teacher's grid; each --steps is one more setting.")
    flags.number("guidance", None, "Scale of classifier-free guidance, of a model with classes. Default: the run's.")
    flags.texts("guidance_interval", "Times between which samples are guided, as 0.3,5. Default: the run's, or all.")
    flags.text(
        "autoguidance", None, "A weaker run, or a checkpoint of one, that guides a teacher, scaled by --guidance."
    )
    flags.integer("autoguidance_average", 0, "Which of its averages, numbered from 0.", at_least=0)
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1], as OpenAI's code. Default: the run's.")
    flags.one_of("labels", "balanced", LABELS, "Of a model with classes: all in turn, or at random, as EDM does.")
    flags.text("checkpoint", "newest", "newest, all, or steps as 4000,6000.")
    flags.texts("average", "Which of the run's averages, numbered from 0. Default: 0.")
    flags.texts("std", "Post-hoc averages of these widths at the newest checkpoint, as 0.05,0.1.")
    flags.text("images", None, "Images of any program instead: an .npz, or a folder of PNG and JPEG files.")
    flags.boolean("check", False, "Measure damaged real images instead, to see whether the metrics notice.")
    flags.group("By what")
    flags.texts("metrics", f"{', '.join(METRICS)}. Default: fid,kid,prdc, or without weights fd,kid,prdc.")
    names = ", ".join(FEATURES)
    flags.text("features", None, f"Of kid, pr, prdc and is: {names}. Default: inception where it is, else dataset.")
    flags.text("weights", None, f"The folder of the networks' weights. Default: {WEIGHTS}.")
    flags.text("reference", None, "train, test, or a file of statistics (.npz, .pkl). Default: train; test for fd.")
    flags.text("save_reference", None, "Write the reference's statistics, to an .npz or a .pkl.")
    rules = "; ".join(f"{name}: {rule}" for name, rule in RULES.items())
    flags.one_of("uint8", "round", UINT8, f"How [-1, 1] becomes pixels. {rules}.")


def start(options: Options) -> None:
    values = {name: getattr(options, name) for name in ("images", "check", "seed", *SETTINGS, *CHOICES, *BY)}
    values |= {name: getattr(options, name) for name in ("num", "labels") if options.is_set(name)}
    named = options.images is None or options.is_set("workdir") or options.is_set("config")
    config = options.recipe if options.is_set("config") else None
    written = {name: value for name, value in values.items() if value is not None}
    run(options.workdir if named else None, config=config, data_dir=options.data_dir, **written)


def run(
    workdir: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    images: str | None = None,
    check: bool = False,
    metrics: Sequence[str] = (),
    features: str = "",
    weights: str = "",
    reference: str | None = None,
    save_reference: str | None = None,
    uint8: str = "round",
    num: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    **settings: Any,
) -> list[Row]:
    """Evaluates samples of the run in `workdir`, or the `images` of any program; keeps and prints the rows.

    Args:    config: a recipe, whose data take the place of the run's. data_dir: where the data are now.
             num: None for 1000 samples, or all of `images`. settings: `SETTINGS` (times, sampler, steps, average and
             std are sequences) and `CHOICES`. All arguments are written as the flags of the command line.
    Returns: the rows of `evaluation.jsonl`, one a setting; none with `check`.
    Raises:  ConfigError or DataError naming what cannot be used.
    """
    sizes = {"num": 1000 if num is None else num, "labels": labels or LABELS[0], "uint8": uint8}
    evaluation = evaluation_of_options(metrics, features, weights, **sizes)
    trained = None if workdir is None else _trained(to_path(workdir), data_dir, required=config is None)
    data = _data(config, trained)
    folder = to_path(workdir or to_path(images or "").expanduser().parent) if trained is None else trained.folder
    if save_reference:
        output(to_path(save_reference), "--save_reference")
    cache_compilations(folder)
    evaluator = partial(_make_evaluator, evaluation, data, reference, save_reference, folder)
    if images is not None:
        return [_evaluate_images(images, num, evaluation, evaluator, data, trained)]
    if data is None:
        raise ConfigError("--workdir is of an imported model: name its data with --config")
    if check:
        check_evaluator(evaluator(evaluation.num), data, evaluation.num, folder / "diagnostics")
        return []
    if trained is None:
        raise ConfigError(f"--workdir={workdir} is not a run's folder: it has no {RECORD}")
    if labels and not trained.num_classes:
        raise ConfigError(f"--labels={labels}: the model has no classes")
    if trained.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={trained.folder} samples {trained.shape}: metrics are of images")
    return _evaluate_run(trained, evaluation, evaluator, seed, **settings)


def _evaluate_run(
    trained: Trained,
    evaluation: Evaluation,
    evaluator: Callable[[int], Evaluator],
    seed: int,
    *,
    checkpoint: str = "newest",
    average: Sequence[str] = (),
    std: Sequence[str] = (),
    autoguidance: str | None = None,
    autoguidance_average: int = 0,
    **ways: Any,
) -> list[Row]:
    """Evaluates each of the run's weights with each sampler, and shows the rows."""
    weaker = weaker_model(trained, autoguidance, autoguidance_average)
    samplers, made = _samplers(trained, weaker, **ways), evaluator(evaluation.num)
    samples = SampleSet(evaluation.num, seed, evaluation.labels, evaluation.uint8, weaker and weaker.load())
    rows = [
        evaluate_setting(trained.folder, trained, weights, chosen, made, samples)
        for weights in weights_of(trained, checkpoint, average, std)
        for chosen in samplers
    ]
    _show(rows, trained.folder)
    return rows


def _trained(workdir: Path, data_dir: str | None, *, required: bool) -> Trained | None:
    """The run in the folder; None where there is none and none is required."""
    return open_trained(workdir, data_dir=data_dir) if required or (workdir / RECORD).exists() else None


def _data(config: Mapping[str, Any] | None, trained: Trained | None) -> DataSets | None:
    """The recipe's data where one is named, else the run's; None where the run has none recorded."""
    data: Data | None = None
    if config is not None:
        data = read_run(config).data
    elif trained is not None and trained.recorded.has_data and not trained.imported:
        data = trained.run().data
    return None if data is None else DataSets(data.name, data.open)


def _make_evaluator(
    evaluation: Evaluation, data: DataSets | None, reference: str | None, saved: str | None, folder: Path, num: int
) -> Evaluator:
    """Makes the evaluator of `num` images, and saves its reference where that is asked for."""
    evaluator = make_evaluator(evaluation, data, num=num, reference=reference, cache_dir=cache_of(folder))
    for name, network in evaluator.networks.items():
        log.info("%s: %s", name, network.about)
    if saved:
        path = to_path(saved).expanduser()
        try:
            on_first_process(lambda: write_statistics(path, evaluator.reference_statistics()))
        except (ValueError, OSError) as error:
            raise ConfigError(f"--save_reference={path}: {error}") from error
        say(f"{path}")
    return evaluator


def _samplers(
    trained: Trained,
    weaker: WeakerModel | None,
    *,
    times: Sequence[str] = (),
    sampler: Sequence[str] = (),
    steps: Sequence[str] = (),
    **choices: Any,
) -> list[NamedSampler]:
    """The sampler of each setting."""
    choices["autoguidance"] = weaker.name if weaker else ""
    ways = [
        samples_from_flags(trained, times=levels, steps=_steps(number), sampler=name, **choices)
        for name in sampler or (None,)
        for levels in times or (None,)
        for number in steps or (None,)
    ]
    return [named_sampler(way, trained.model) for way in ways]


def _steps(text: str | None) -> int | None:
    if text is not None and not str(text).isdigit():
        raise ConfigError(f"--steps={text}: must be a whole number")
    return None if text is None else int(text)


def _show(rows: list[Row], folder: Path) -> None:
    """Prints the rows, and plots what differs between them."""
    say(f"{table(rows)}\n{notes(rows[-1])}")
    say(f"\n{folder / ROWS}")
    if (image := curves(rows, folder.name)) is not None:
        path = folder / "evaluation.png"
        try:
            on_first_process(lambda: save_png(path, image))
            say(f"{path}")
        except OSError as error:
            log.warning("%s is not written: %s", path, error.strerror or error)


def _evaluate_images(
    path: str,
    num: int | None,
    evaluation: Evaluation,
    evaluator: Callable[[int], Evaluator],
    data: DataSets | None,
    trained: Trained | None,
) -> Row:
    """Evaluates the images of a file or a folder; the row is kept with the run, or beside the images."""
    shape = None if data is None else data.train.shape if trained is None else trained.shape
    images = images_in(path, shape, UINT8[evaluation.uint8])
    num = images.num if num is None else min(images.num, num)
    if why := too_few(networks_of(evaluation), num):
        raise ConfigError(f"--images={path}: {why}")
    setting = {"step": None, "checkpoint": None, "average": None, "sampler": "images", "times": []}
    setting |= {"evaluations": None, "num": num, "seed": None, "guidance": None, "images": path}
    setting |= {CONTENT: on_first_process(lambda: content_key(images.key(), images.shape))}
    rows = (trained.folder if trained is not None else to_path(path).expanduser().parent) / ROWS
    row = evaluate_once(rows, setting, evaluator(num), images.of)
    say(f"{table([row])}\n{notes(row)}")
    say(f"\n{rows}")
    return row
