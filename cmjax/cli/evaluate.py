"""`--mode=evaluate`: figures of a run's samples, or of any images, beside those of real ones.

cmjax evaluate --workdir=runs/digits_ct
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid,kid,prdc --num=50000 --times=80 --times=80,0.8
cmjax evaluate --workdir=runs/cifar_ct --checkpoint=all --num=10000
cmjax evaluate --workdir=runs/cifar_ct --metrics=fid --images=theirs.npz --reference=cifar10-32x32.npz

The same command goes on with an evaluation that was stopped.
"""

import logging
from pathlib import Path

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.data import Data
from cmjax.config.evaluation import FEATURES, LABELS, WEIGHTS, Evaluation, evaluation_of_options, networks_of
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data.batches import RULES, UINT8
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import Evaluator, make_evaluator
from cmjax.evaluation.evaluator_check import check_evaluator
from cmjax.evaluation.image_files import images_in
from cmjax.evaluation.results import CONTENT, ROWS, curves, notes, table
from cmjax.evaluation.sweep import Asked, evaluate_once, evaluate_setting, weights_of
from cmjax.generation.autoguidance import weaker_model
from cmjax.generation.samplers import named_sampler, samples_from_flags
from cmjax.interop.statistics import write_statistics
from cmjax.metrics.registry import FIGURES, too_few
from cmjax.plotting.plots import save_png
from cmjax.runs.record import RECORD
from cmjax.runs.setup import cache_compilations
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import output
from cmjax.system.content import content_key
from cmjax.system.files import cache_of, to_path
from cmjax.system.processes import on_first_process, say

log = logging.getLogger(__name__)


def declare(flags: Flags) -> None:
    flags.group("What is evaluated")
    flags.integer("num", 1000, "How many samples of each setting. Published FIDs are of 50000.", at_least=2)
    flags.integer("seed", 0, "The same seed gives the same samples.", at_least=0)
    flags.several("times", "Noise levels, as 80,0.8 or idx:0,22/40; each --times is a setting of its own.")
    flags.several("sampler", "multistep, or of flow maps chain(gamma=0); each --sampler is a setting of its own.")
    flags.number(
        "gamma", None, "Flow maps: short for --sampler='chain(gamma=…)', γ the fraction of new noise.", 0.0, 1.0
    )
    flags.text("solver", None, "Of a teacher. Default: the run's.")
    flags.several("steps", "Noise levels of a teacher's grid; each --steps is a setting of its own.")
    flags.number("guidance", None, "Scale of classifier-free guidance, of a model with classes. Default: the run's.")
    flags.texts("guidance_interval", "Times between which samples are guided, as 0.3,5. Default: the run's, or all.")
    flags.text(
        "autoguidance", None, "A weaker run, or a checkpoint of one, that guides a teacher, scaled by --guidance."
    )
    flags.integer("autoguidance_average", 0, "Which of its averages, numbered from 0.", at_least=0)
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1], as OpenAI's code. Default: the run's.")
    flags.one_of("labels", "balanced", LABELS, "Of a model with classes: all in turn, or at random, as EDM draws them.")
    flags.text("checkpoint", "newest", "newest, all, or steps as 4000,6000.")
    flags.texts("average", "Which of the run's averages, numbered from 0. Default: 0.")
    flags.texts("std", "Post-hoc averages of these widths at the newest checkpoint, as 0.05,0.1.")
    flags.text("images", None, "Images of any program instead: an .npz, or a folder of PNG and JPEG files.")
    flags.boolean("check", False, "Measure damaged real images instead, to see whether the figures notice.")
    flags.group("By what")
    flags.texts("metrics", f"{', '.join(FIGURES)}. Default: fid,kid,prdc, or without weights fd,kid,prdc.")
    flags.one_of("features", None, FEATURES, "Of kid, pr, prdc and is. Default: inception where it is, else own.")
    flags.text("weights", None, f"The folder of the networks' weights. Default: {WEIGHTS}.")
    flags.text("reference", None, "train, test, or a file of statistics (.npz, .pkl). Default: train; test for fd.")
    flags.text("save_reference", None, "Write the reference's statistics, to an .npz or a .pkl.")
    rules = "; ".join(f"{name}: {rule}" for name, rule in RULES.items())
    flags.one_of("uint8", "round", UINT8, f"How [-1, 1] becomes pixels. {rules}.")


def start(options: Options) -> None:
    others = {name: getattr(options, name) for name in ("num", "uint8", "labels")}
    evaluation = evaluation_of_options(options.metrics, options.features, options.weights, **others)
    if options.images is not None and not options.given("workdir") and not options.given("config"):
        data, workdir, trained = None, to_path(options.images).expanduser().parent, None
    else:
        workdir = options.workdir
        there = (to_path(workdir) / RECORD).exists() or not options.given("config")
        trained = open_trained(workdir, data_dir=options.data_dir) if there else None
        workdir = workdir if trained is None else trained.folder
        data = _data(options, trained)
    if options.save_reference:
        output(to_path(options.save_reference), "--save_reference")
    cache_compilations(workdir)
    if options.images is not None:
        _evaluate_images(options, evaluation, data, trained, workdir)
    elif data is None:
        raise ConfigError("--workdir is of an imported model: name its data with --config")
    elif options.check:
        _check(options, evaluation, data, workdir)
    elif trained is None:
        raise ConfigError(f"--workdir={workdir} is not a run's folder: it has no {RECORD}")
    else:
        _evaluate_run(options, evaluation, data, trained)


def _data(options: Options, trained: Trained | None) -> DataSets | None:
    """The recipe's data where one is named, else the run's own; None where the run has none recorded."""
    found: Data | None = None
    if options.given("config"):
        found = read_run(options.recipe).data
    elif trained is not None and trained.recorded.has_data and not trained.imported:
        found = trained.run().data
    return None if found is None else DataSets(found.name, found.open)


def _make_evaluator(
    options: Options, evaluation: Evaluation, data: DataSets | None, num: int, workdir: Path
) -> Evaluator:
    evaluator = make_evaluator(evaluation, data, num=num, reference=options.reference, cache_dir=cache_of(workdir))
    for name, network in evaluator.networks.items():
        log.info("%s: %s", name, network.about)
    if options.save_reference:
        path = to_path(options.save_reference).expanduser()
        try:
            on_first_process(lambda: write_statistics(path, evaluator.reference_statistics()))
        except (ValueError, OSError) as error:
            raise ConfigError(f"--save_reference={path}: {error}") from error
        say(f"{path}")
    return evaluator


def _evaluate_run(options: Options, evaluation: Evaluation, data: DataSets, trained: Trained) -> None:
    if trained.shape[-1] not in (1, 3):
        raise ConfigError(f"--workdir={trained.folder} draws {trained.shape}: figures are of images")
    weaker = weaker_model(trained, options.autoguidance, options.autoguidance_average)
    once = {name: getattr(options, name) for name in ("solver", "gamma", "guidance", "guidance_interval", "clip")}
    once["autoguidance"] = weaker.name if weaker else ""
    if options.given("labels") and not trained.num_classes:
        raise ConfigError(f"--labels={options.labels}: the model has no classes")
    ways = [
        samples_from_flags(trained, times=times and times.split(","), steps=_steps(steps), sampler=sampler, **once)
        for sampler in options.sampler or (None,)
        for times in options.times or (None,)
        for steps in options.steps or (None,)
    ]
    samplers = [named_sampler(samples, trained.model) for samples in ways]
    evaluator, rows = _make_evaluator(options, evaluation, data, options.num, trained.folder), []
    asked = Asked(options.num, options.seed, evaluation.labels, evaluation.uint8, weaker and weaker.load())
    for weights in weights_of(trained, options.checkpoint, options.average or (), options.std or ()):
        for chosen in samplers:
            rows.append(evaluate_setting(trained.folder, trained, weights, chosen, evaluator, asked))
    say(f"{table(rows)}\n{notes(rows[-1])}")
    say(f"\n{trained.folder / ROWS}")
    if (image := curves(rows, trained.folder.name)) is not None:
        path = trained.folder / "evaluation.png"
        try:
            on_first_process(lambda: save_png(path, image))
            say(f"{path}")
        except OSError as error:
            log.warning("%s is not written: %s", path, error.strerror or error)


def _steps(text: str | None) -> int | None:
    if text is not None and not text.isdigit():
        raise ConfigError(f"--steps={text}: must be a whole number")
    return None if text is None else int(text)


def _evaluate_images(
    options: Options, evaluation: Evaluation, data: DataSets | None, trained: Trained | None, workdir: Path
) -> None:
    shape = None if data is None else data.train.shape if trained is None else trained.shape
    images = images_in(options.images, shape, UINT8[evaluation.uint8])
    num = min(images.num, options.num) if options.given("num") else images.num
    if why := too_few(networks_of(evaluation), num):
        raise ConfigError(f"--images={options.images}: {why}")
    evaluator = _make_evaluator(options, evaluation, data, num, workdir)
    setting = {"step": None, "checkpoint": None, "average": None, "sampler": "images", "times": []}
    setting |= {"evaluations": None, "num": num, "seed": None, "guidance": None, "images": options.images}
    setting |= {CONTENT: on_first_process(lambda: content_key(images.key(), images.shape))}
    path = (workdir if trained is not None else to_path(options.images).expanduser().parent) / ROWS
    row = evaluate_once(path, setting, evaluator, images.of)
    say(f"{table([row])}\n{notes(row)}")
    say(f"\n{path}")


def _check(options: Options, evaluation: Evaluation, data: DataSets, workdir: Path) -> None:
    evaluator = _make_evaluator(options, evaluation, data, options.num, workdir)
    for path in check_evaluator(evaluator, data, options.num, workdir / "diagnostics"):
        say(str(path))
