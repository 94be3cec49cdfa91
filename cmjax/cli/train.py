"""`--mode=train`: train a run, or resume it, and end it with images, metrics and a summary.

    cmjax train --config=configs/digits_ct.py
    cmjax train --config=configs/cifar_ct.py --config.data.data_dir=~/tensorflow_datasets --config.batch_size=256
    cmjax train --config=configs/digits_ct.py --workdir=runs/other --config.seed=1

The same command goes on with a run that was stopped.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import change, load_recipe, recipe_name
from cmjax.config.run import read_run
from cmjax.data.base import DataError
from cmjax.evaluation.results import ROWS, drop_rows_after
from cmjax.generation.decoding import decoder_for, images_for
from cmjax.generation.run_samples import RunSamples, grids
from cmjax.metrics.comparison import run_metrics
from cmjax.nets.adapter import count_parameters
from cmjax.runs.about_data import about_data
from cmjax.runs.dependencies import check_others
from cmjax.runs.history import Session, devices
from cmjax.runs.record import as_trained, keep_config, write_record
from cmjax.runs.setup import Setup, check_num_metrics, set_up
from cmjax.runs.summary import losses_of, summary_text, write_summary
from cmjax.runs.train_step import compile_step
from cmjax.runs.workdir import Workdir, cache_compilations, remove_later
from cmjax.system.files import cache_of, make_cache, to_path
from cmjax.system.libraries import require
from cmjax.system.notebook import show_inline
from cmjax.system.processes import on_first_process
from cmjax.system.progress import progress
from cmjax.system.signals import Stopped
from cmjax.training.checkpoint import Checkpointer
from cmjax.training.logging import MetricsWriter, Results, mirror, open_writer
from cmjax.training.loop import Callback, ResultsOf, in_turn, run_loop, speed_on
from cmjax.training.profiling import read_steps, traced
from cmjax.training.state import TrainState

log = logging.getLogger(__name__)


def declare(flags: Flags) -> None:
    flags.group("Training")
    flags.text("profile", None, "Trace these steps for xprof and Perfetto, as 20:25, in <workdir>/profile.")
    help = "Exit code of a run that a scheduler's signal stopped and saved; for launchers that take 0 as finished."
    flags.integer("stopped_exit_code", 0, help, at_least=0, at_most=255)


def start(options: Options) -> None:
    run(options.recipe, options.workdir, recipe=options.recipe_name, profile=options.profile)


def train(recipe: str, workdir: str | Path | None = None, **changes: Any) -> dict[str, Any]:
    """Trains a recipe as the command does, or resumes it: `cmjax.train("digits_ct", steps=500, net__width=128)`.

    In a notebook the plot of the losses and the samples at the end are shown.

    Args:    recipe: as in `--config=`. workdir: the run's folder; by default runs/<recipe>. changes: of fields, with
             "__" for each dot.
    Returns: the content of `summary.json`: paths of the samples, losses, metrics, times.
    Raises:  as `run`.
    """
    config = load_recipe(recipe)
    for field, value in changes.items():
        change(config, field.replace("__", "."), str(value))
    name = recipe_name(recipe)
    workdir = to_path(workdir or f"runs/{name}")
    run(config.to_dict(), workdir, recipe=name)
    summary = Workdir(workdir).read_summary()
    show_inline([path for path in (summary.get("losses"), *summary["samples"].values()) if path])
    return summary


def run(
    config: Mapping[str, Any], workdir: str | Path, *, recipe: str | None = None, profile: str | None = None
) -> None:
    """Train a configuration, from its newest checkpoint if there is one: `run(config, "runs/digits_ct")`.

    Args:   config: as `load_recipe("digits_ct").to_dict()` of `cmjax.config.recipes`. recipe: its name, for the record.
            profile: steps to trace, as "20:25".
    Raises: ConfigError or DataError, before anything is written, where something does not fit; Stopped where a signal
            stopped the run, which is saved; NonFiniteLoss; CheckpointError.
    """
    began, workdir = time.perf_counter(), to_path(workdir)
    run, folder = read_run(config), Workdir(workdir)
    if run.log.wandb:
        require("wandb", "config.log.wandb=True")
    check_others(run)
    check_num_metrics(run)
    try:
        trace_steps = None if profile is None else read_steps(profile, run.steps)
    except ValueError as error:
        raise ConfigError(f"--profile={profile}: {error}") from error
    on_first_process(lambda: folder.check(run.data.data_dir))
    with folder.exclusive(), Session(workdir, began=began, recipe=recipe) as session:
        on_first_process(lambda: make_cache(workdir))
        cache_compilations(workdir)
        newest = on_first_process(lambda: folder.newest)
        if newest is not None and newest > run.steps:
            problem = f"{workdir} has reached step {newest}: there is nothing to train"
            raise ConfigError(f"config.steps={run.steps}: {problem}")
        # all steps are done: from here on the new configuration counts only where it changes none of them
        if newest == run.steps:
            config = on_first_process(lambda: as_trained(workdir, config))
            run = read_run(config)
        setup = set_up(run, run.open_source)
        _run_all(setup, workdir, session, trace_steps, new=newest is None)


def _run_all(setup: Setup, workdir: Path, session: Session, trace_steps: range | None, *, new: bool) -> None:
    """Restore or initialise the state, train it to the end, and report."""
    run, config = setup.run, setup.run.config
    # before the record is written: a run that cannot start from its `init_from` leaves no folder behind
    state = setup.first_state() if new else None
    about = on_first_process(lambda: about_data(setup.source))
    about_run = {"recipe": session.recipe, "device": devices(), "classes": about}
    keep_record = partial(write_record, workdir, config, setup.shape, setup.source.num_classes, **about_run)
    for difference in on_first_process(keep_record):
        log.warning("going on with another config.%s", difference)
    # Warnings come after the record is checked: of a folder of another run they would mislead.
    on_first_process(setup.warn)
    if setup.model.prompted:
        from cmjax.runs.pipelines import keep_pipeline  # most runs read no foreign files

        on_first_process(lambda: keep_pipeline(run, workdir, setup.model.module, setup.shape, setup.frozen))
    decoder = decoder_for(run, setup.source)
    run_samples = RunSamples(run, setup.model, setup.source, workdir, decoder, setup.frozen)
    evaluate = _evaluation(run_samples)
    with contextlib.ExitStack() as stack:
        try:
            kept = {"keep": run.checkpoint.keep, "keep_every": run.checkpoint.keep_every}
            with Checkpointer(workdir / "checkpoints", **kept) as checkpointer:
                state = state or checkpointer.restore(setup.state_shapes(), setup.mesh) or setup.first_state()
                start = int(state.step)
                keep = partial(keep_record, step=start) if start < run.steps else partial(keep_config, workdir, config)
                session.begin(start, changes=on_first_process(keep), device=devices())
                writer = stack.enter_context(_writer(setup, workdir, start))
                speed: dict[str, float] = {}
                if start < run.steps:
                    computed = [(run_samples.refresh, run.samples.every), (evaluate, run.evaluation.every)]
                    callbacks = in_turn(computed, partial(mirror, writer))
                    of_run = checkpointer, session, writer, callbacks
                    state, speed = _train(setup, state, workdir, trace_steps, *of_run)
        except Stopped as stopped:
            step, by = stopped.step, {"stopped_by": Signals(stopped.number).name}
            more = by | losses_of(workdir, step) | session.totals()
            on_first_process(lambda: write_summary(run, workdir, step, more))
            raise
        # the loop calls back between steps, and not after the last one
        if evaluate is not None:
            mirror(writer, run.steps, evaluate(state, run.steps))
        _finish(setup, state, run_samples, speed, session, writer)


def _evaluation(run_samples: RunSamples) -> ResultsOf | None:
    """Gives what evaluates the run as it trains; None where it is not asked for."""
    if not run_samples.run.evaluation.every:
        return None
    # here, not above: most runs read no feature networks and no weights of other programs
    from cmjax.evaluation.callbacks import evaluation_callback

    return evaluation_callback(run_samples)


def _writer(setup: Setup, workdir: Path, start: int) -> contextlib.AbstractContextManager[MetricsWriter | None]:
    """Open the run's records, from step `start` on."""
    run = setup.run
    if 0 < start < run.steps:
        log.info("going on from step %d of %s", start, workdir)
    if start == run.steps:
        log.info("all %d steps of %s are done: its samples and metrics are made again", start, workdir)
    mirrors = {"tensorboard": run.log.tensorboard, "wandb": run.log.wandb}
    return open_writer(workdir, resume_step=start, config=run.config, **mirrors)


def _train(
    setup: Setup,
    state: TrainState,
    workdir: Path,
    trace_steps: range | None,
    checkpointer: Checkpointer,
    session: Session,
    writer: MetricsWriter | None,
    callbacks: tuple[Callback, int],
) -> tuple[TrainState, dict[str, float]]:
    """Compile the train step and loop. Returns: the state of the last step, and the speed of the training."""
    run, start, batches, (callback, every) = setup.run, int(state.step), setup.batches(), callbacks
    if start % run.steps_per_call:
        raise ConfigError(f"config.steps_per_call={run.steps_per_call}: must divide the step {start} of {workdir}")
    compiled, compile_seconds = compile_step(setup, state, batches.at(start))
    session.train(compile_seconds)
    on_first_process(lambda: _forget_after(workdir, start))
    speed = speed_on(setup.mesh, compiled, batch_size=run.batch_size)
    trace = traced(compiled, trace_steps, workdir / "profile", start=start, steps_per_call=run.steps_per_call)
    with (
        contextlib.closing(batches.stream(start, run.steps)) as stream,
        progress("training", run.steps, start=start) as update_progress,
        trace as train_step,
    ):
        state = run_loop(
            state,
            train_step,
            setup.frozen,
            session.waited(stream),
            start=start,
            total_steps=run.steps,
            steps_per_call=run.steps_per_call,
            speed=speed,
            checkpointer=checkpointer,
            save_every=run.checkpoint.save_every,
            before_save=partial(_write_until, writer, session),
            log_every=run.log.every,
            write_record=writer.write if writer else lambda step, record: None,
            callback=session.pause("callback")(callback),
            callback_every=every,
            pause=session.pause,
            update_progress=update_progress,
        )
    return state, speed.at(session.trained() / (run.steps - start))


def _write_until(writer: MetricsWriter | None, session: Session, step: int) -> None:
    if writer:
        writer.flush()
    session.reached(step)


def _forget_after(workdir: Path, step: int) -> None:
    """Remove the samples and rows of later steps; called after compiling, so that a run that fails there keeps them."""
    remove_later(workdir, step)
    drop_rows_after(workdir / ROWS, step)


def _finish(
    setup: Setup,
    state: TrainState,
    run_samples: RunSamples,
    speed: Mapping[str, float],
    session: Session,
    writer: MetricsWriter | None,
) -> None:
    """Sample the last images, and report the run in `summary.json` and on the terminal."""
    run, step = setup.run, int(state.step)
    # enough for the metrics and for the grid, which take the first of the same images
    num = max(run.num_metrics, run.samples.num)
    log.info("sampling %d images by each of %s", num, ", ".join(run_samples.samplers))
    images = run_samples.sample(state, num)
    rounded = {name: round(value, 4 if name == "peak_fraction" else 2) for name, value in speed.items()}
    entries = {"samples": run_samples.save_grids(images, step), "parameters": count_parameters(state.params)}
    entries |= {**rounded, **session.totals()}
    mirror(writer, step, grids(entries["samples"]))
    on_first_process(lambda: _report(run_samples, step, images, entries, writer))


def _report(
    run_samples: RunSamples,
    step: int,
    images: Mapping[str, Any],
    entries: Mapping[str, Any],
    writer: MetricsWriter | None,
) -> None:
    """Compare the images with held-out ones; write `summary.json` and the page, and print the summary."""
    run, workdir = run_samples.run, run_samples.workdir
    compared = {name: batch[: run.num_metrics] for name, batch in images.items()} if run.num_metrics else {}
    source = run_samples.source
    _, open_images = images_for(run, source, run_samples.decoder)
    if compared and run_samples.decoder is not None:
        try:
            source = open_images("train")
        except (DataError, ConfigError) as error:
            log.warning("no metrics: the images of the latents cannot be opened: %s", error)
            compared = {}
    metrics = run_metrics(compared, source, partial(open_images, "test"), cache_dir=cache_of(workdir))
    summary = write_summary(run, workdir, step, {**losses_of(workdir, step), **entries, **metrics})
    rows = {f"{row}/{name}": value for row, of in summary["metrics"].items() for name, value in of.items()}
    mirror(writer, step, Results({name: value for name, value in rows.items() if value is not None}))
    page = None
    if run.report:
        from cmjax.reporting.page import report_at_end  # the page's parts, for one call at the end

        page = report_at_end(workdir, source)
    print(summary_text(summary | ({"report": page} if page else {})))
