"""`--mode=evaluate`: computes metrics of a run's samples, or of any images, beside those of real images.

cmjax evaluate --workdir=runs/digits_ct
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid,kid,prdc --num=50000 --times=80 --times=80,0.8
cmjax evaluate --workdir=runs/cifar_ct --checkpoint=all --num=10000
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid --images=theirs.npz --reference=cifar10-32x32.npz

The same command goes on with an evaluation that was stopped. From Python:
evaluate.run("runs/digits_ct", metrics=["fd"], times=[80, (80, 0.8)])
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cmjax.cli.flags import Flags, Options
from cmjax.config.data import NO_IMAGES
from cmjax.config.evaluation import FEATURES, LABELS, WEIGHTS, Evaluation, evaluation_of_options
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.config.samples import times_text
from cmjax.data.base import DataError, kind_of
from cmjax.data.batches import RULES, UINT8
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import Evaluator, make_evaluator
from cmjax.evaluation.evaluator_check import check_evaluator
from cmjax.evaluation.image_files import images_in
from cmjax.evaluation.networks import networks_of
from cmjax.evaluation.results import CONTENT, ROWS, Row, curves, notes, table
from cmjax.evaluation.sweep import SampleSet, evaluate_once, evaluate_setting, weights_of
from cmjax.generation.autoguidance import weaker_model
from cmjax.generation.decoding import Decoder, check_are_images, decoder_of
from cmjax.generation.samplers import named_sampler, samples_from_flags
from cmjax.interop.statistics import write_statistics
from cmjax.metrics.registry import METRICS, too_few
from cmjax.plotting.plots import save_png
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import RECORD, cache_compilations, output
from cmjax.system.content import content_key
from cmjax.system.files import cache_of, to_path
from cmjax.system.processes import on_first_process, say

log = logging.getLogger(__name__)

MakeEvaluator = Callable[[int], Evaluator]  # of so many images


def declare(flags: Flags) -> None:
    flags.group("What is evaluated")
    flags.integer("num", None, "Samples of each setting. Default: 1000. Published FIDs are of 50000.", at_least=2)
    flags.integer("seed", 0, "The same seed gives the same samples.", at_least=0)
    flags.several("times", "Noise levels, as 80,0.8 or idx:0,22/40; each --times is one more setting.")
    flags.several("sampler", "multistep, or of flow maps chain(gamma=0); each --sampler is one more setting.")
    flags.gamma()
    flags.text("solver", None, "Of a teacher. Default: the run's.")
    flags.several("steps", "Noise levels of a teacher's grid; each --steps is one more setting.")
    flags.guidance()
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1], as OpenAI's code. Default: the run's.")
    flags.one_of("labels", None, LABELS, "Classes in turn, or at random, as EDM does. Default: balanced.")
    flags.autoencoder()
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
    # a run beside --images must be named: the default folder of a recipe may not be there
    named = options.images is None or options.is_set("workdir") or options.is_set("config")
    config = options.recipe if options.is_set("config") else None
    workdir = options.workdir if named else None
    run(workdir, config=config, data_dir=options.data_dir, checkpoint=options.checkpoint, **options.flags)


def run(
    workdir: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    images: str | None = None,
    check: bool = False,
    metrics: Sequence[str] | None = (),
    features: str | None = None,
    weights: str | None = None,
    reference: str | None = None,
    save_reference: str | None = None,
    uint8: str = "round",
    num: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    autoencoder: str | None = None,
    decode_dtype: str | None = None,
    decode_tile: int | None = None,
    **settings: Any,
) -> list[Row]:
    """Evaluates samples of the run in `workdir`, or the `images` of any program; keeps and prints the rows.

    Args:    config: a recipe, whose data take the place of the run's. data_dir: where the data are now.
             num: None for 1000 samples, or all of `images`. autoencoder, decode_dtype, decode_tile: as in `decoder_of`.
             settings: the other flags of the mode; times, sampler, steps, average and std are sequences, of texts as on
             the command line or of numbers; a setting's times may be several, as times=[80, (80, 0.8)].
    Returns: the rows of `evaluation.jsonl`, one a setting; none with `check`.
    Raises:  ConfigError or DataError naming what cannot be used.
    """
    sizes = {"num": 1000 if num is None else num, "labels": labels or LABELS[0], "uint8": uint8}
    evaluation = evaluation_of_options(metrics, features, weights, **sizes)
    trained = None
    if workdir is not None and (config is None or (to_path(workdir) / RECORD).exists()):
        trained = open_trained(to_path(workdir), data_dir=data_dir)
    data = _data(config, trained, reference)
    folder = to_path(workdir or to_path(images or "").expanduser().parent) if trained is None else trained.folder
    if save_reference:
        output(to_path(save_reference), "--save_reference")
    cache_compilations(folder)
    evaluator = partial(_make_evaluator, evaluation, data, reference, save_reference, folder)
    if images is not None:
        beside = to_path(images).expanduser().parent if trained is None else trained.folder
        shape = None if data is None else data.train.shape if trained is None else trained.images_shape
        return [_evaluate_images(images, num, evaluation, evaluator, shape, beside / ROWS)]
    if data is None and (check or reference in (None, "train", "test")):
        raise ConfigError("--workdir is of an imported model: name its data with --config, or a file by --reference")
    if check and data is not None:
        check_evaluator(evaluator(evaluation.num), data, evaluation.num, folder / "diagnostics")
        return []
    trained = _checked(trained, workdir, labels)
    decoder = _decoder(trained, autoencoder, data, dtype=decode_dtype, tile=decode_tile)
    return _evaluate_run(trained, evaluation, evaluator, seed, decoder=decoder, **settings)


def _checked(trained: Trained | None, workdir: str | Path | None, labels: str | None) -> Trained:
    """Gives the run. Raises: ConfigError where there is none to sample, or its model has no classes for --labels."""
    if trained is None:
        raise ConfigError(f"--workdir={workdir} is not a run's folder: it has no {RECORD}")
    if labels and not trained.num_classes:
        raise ConfigError(f"--labels={labels}: the model has no classes")
    return trained


def _decoder(trained: Trained, autoencoder: str | None, data: DataSets | None, **by: Any) -> Decoder | None:
    """Loads the run's decoder. Raises: ConfigError where samples are no images, or of another size than the data's."""
    decoder = decoder_of(trained, autoencoder, **by)
    if trained.kind not in NO_IMAGES:
        check_are_images(trained, decoder)
    if decoder is not None and data is not None and data.train.shape != decoder.shape:
        raise ConfigError(
            f"--autoencoder={decoder.path}: decodes images {decoder.shape}, and those of {data.name} are "
            f"{data.train.shape}; name others by --config"
        )
    return decoder


def _evaluate_run(
    trained: Trained,
    evaluation: Evaluation,
    evaluator: MakeEvaluator,
    seed: int,
    *,
    checkpoint: str = "newest",
    average: Sequence[str] | None = (),
    std: Sequence[str] | None = (),
    times: Sequence[str | float | Sequence[float]] | None = (),
    sampler: Sequence[str] | None = (),
    steps: Sequence[str | int] | None = (),
    autoguidance: str | None = None,
    autoguidance_average: int = 0,
    decoder: Decoder | None = None,
    **choices: Any,
) -> list[Row]:
    """Evaluates each of the run's weights with each sampler, and shows the rows."""
    weaker = weaker_model(trained, autoguidance, autoguidance_average)
    # the weaker model's name is a part of the setting: with another one it is another row
    choices["autoguidance"] = weaker.name if weaker else ""
    samplers = []
    # every combination of the flags that were repeated
    for name, levels, text in product(sampler or (None,), map(times_text, times or (None,)), steps or (None,)):
        if text is not None and not str(text).isdigit():
            raise ConfigError(f"--steps={text}: must be a whole number")
        of = {"sampler": name, "times": levels, "steps": None if text is None else int(text)}
        samplers.append(named_sampler(samples_from_flags(trained, **of, **choices), trained.model))
    made = evaluator(evaluation.num)
    samples = SampleSet(evaluation.num, seed, evaluation.labels, evaluation.uint8, weaker and weaker.load(), decoder)
    rows = []
    # The weights are outside: each is loaded once, and only one of them is in memory.
    for weights in weights_of(trained, checkpoint, average or (), std or ()):
        rows += [evaluate_setting(trained.folder, trained, weights, chosen, made, samples) for chosen in samplers]
    _show(rows, trained.folder / ROWS)
    if (image := curves(rows, trained.folder.name)) is not None:
        path = trained.folder / "evaluation.png"
        try:
            on_first_process(lambda: save_png(path, image))
            say(f"{path}")
        except OSError as error:  # a full disk: the metrics are shown, which took long
            log.warning("%s is not written: %s", path, error.strerror or error)
    return rows


def _data(config: Mapping[str, Any] | None, trained: Trained | None, reference: str | None) -> DataSets | None:
    """Gives the recipe's data where one is named, else the run's; None where the run has none recorded."""
    if config is not None:
        data = read_run(config).data
        return DataSets(data.name, data.open)
    if trained is None or trained.imported or not trained.recorded.has_data:
        return None
    data = DataSets(trained.images_name, trained.open_images)
    if trained.of_latents and reference not in (None, "train", "test"):
        try:  # the images may be elsewhere, and a file of statistics is enough
            data.split("train")
        except (ConfigError, DataError) as error:
            log.info("real images are left out: %s", error)
            return None
    return data


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


def _show(rows: list[Row], file: Path) -> None:
    say(f"{table(rows)}\n{notes(rows[-1])}")
    say(f"\n{file}")


def _evaluate_images(
    path: str, num: int | None, evaluation: Evaluation, evaluator: MakeEvaluator, shape: Any, rows: Path
) -> Row:
    """Evaluates the images of a file or a folder, of this shape if it is known; the row is kept in the file `rows`."""
    if shape is not None and len(shape) != 3:
        raise ConfigError(f"--images={path}: are compared with images, and the data are {kind_of(shape)}")
    images = images_in(path, shape, UINT8[evaluation.uint8])
    num = images.num if num is None else min(images.num, num)
    if why := too_few(networks_of(evaluation), num):
        raise ConfigError(f"--images={path}: {why}")
    setting = {"step": None, "checkpoint": None, "average": None, "sampler": "images", "times": []}
    setting |= {"evaluations": None, "num": num, "seed": None, "guidance": None, "images": path}
    setting |= {CONTENT: on_first_process(lambda: content_key(images.key(), images.shape))}
    row = evaluate_once(rows, setting, evaluator(num), images.of)
    _show([row], rows)
    return row
