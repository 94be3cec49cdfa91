"""`--mode=train`: train, or go on with, a run, and end it with images, metrics and a summary.

    cmjax train --config=configs/digits_ct.py
    cmjax train --config=configs/cifar_ct.py --config.data.data_dir=~/tensorflow_datasets --config.batch_size=256
    cmjax train --config=configs/digits_ct.py --workdir=runs/other --config.seed=1

The same command goes on with a run that was stopped.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError
from cmjax.config.optimizer import average_texts, long_average, long_target
from cmjax.config.run import Run, read_run
from cmjax.data.batches import Batches
from cmjax.data.sources import Source
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.callbacks import Callback, evaluation_callback, in_turn
from cmjax.evaluation.results import ROWS, drop_rows_after
from cmjax.generation.run_samples import RunSamples
from cmjax.metrics.comparison import run_metrics
from cmjax.reporting.page import report_at_end
from cmjax.runs.classes import about_data
from cmjax.runs.dependencies import check_others
from cmjax.runs.history import Session
from cmjax.runs.provenance import devices
from cmjax.runs.record import as_trained, keep_config, write_record
from cmjax.runs.setup import (
    Setup,
    alone_in,
    cache_compilations,
    check_num_metrics,
    count,
    first_state,
    set_up,
    shapes_of_state,
    train_step_of,
)
from cmjax.runs.stale import remove_later
from cmjax.runs.summary import losses_of, summary_text, write_summary
from cmjax.runs.trained import newest_checkpoint
from cmjax.runs.workdir import check_workdir
from cmjax.system.files import cache_of, make_cache
from cmjax.system.libraries import require
from cmjax.system.memory import FOR_ACTIVATIONS, program_bytes, too_little
from cmjax.system.mesh import batch_sharding
from cmjax.system.processes import on_first_process
from cmjax.system.progress import progress
from cmjax.training.checkpoint import Checkpointer
from cmjax.training.logging import MetricsWriter, MirrorError
from cmjax.training.loop import NonFiniteLoss, Stopped, run_loop
from cmjax.training.profiling import read_steps, traced
from cmjax.training.speed import speed_on
from cmjax.training.state import Examples, TrainState
from cmjax.training.step import CompiledStep, compile_train_step

log = logging.getLogger(__name__)


def declare(flags: Flags) -> None:
    flags.group("Training")
    flags.text("profile", None, "Trace these steps for xprof and Perfetto, as 20:25, in <workdir>/profile.")
    flags.integer(
        "stopped_exit_code",
        0,
        "Exit code of a run that a scheduler's signal stopped and saved; for launchers that take 0 as finished.",
        at_least=0,
        at_most=255,
    )


def start(options: Options) -> None:
    run(options.recipe, options.workdir, recipe=options.recipe_name, profile=options.profile)


def run(config: Mapping[str, Any], workdir: Path, *, recipe: str | None = None, profile: str | None = None) -> None:
    """Train the recipe `config` in `workdir`, from its newest checkpoint if there is one.

    Args: recipe: its name, for the record. profile: steps to trace, as 20:25.
    """
    began = time.perf_counter()
    run = read_run(config)
    if run.log.wandb:
        require("wandb", "config.log.wandb=True")
    check_others(run)
    check_num_metrics(run)
    steps = _steps_to_trace(profile, run)
    on_first_process(lambda: check_workdir(workdir, run.data.data_dir))
    with alone_in(workdir), Session(workdir, began=began, recipe=recipe) as session:
        _run_alone(run, config, workdir, session, steps)


def _run_alone(run: Run, config: Mapping[str, Any], workdir: Path, session: Session, steps: range | None) -> None:
    on_first_process(lambda: make_cache(workdir))
    cache_compilations(workdir)
    reached = on_first_process(lambda: newest_checkpoint(workdir))
    if reached > run.steps:
        raise ConfigError(f"config.steps={run.steps}: {workdir} has reached step {reached}: there is nothing to train")
    if reached == run.steps:
        config = on_first_process(lambda: as_trained(workdir, config))
        run = read_run(config)
    setup = set_up(run, run.open_source)
    state = None if reached >= 0 else first_state(setup)
    of_data = setup.source.shape, setup.source.num_classes
    known = {
        "recipe": session.recipe,
        "device": devices(),
        "classes": on_first_process(lambda: about_data(setup.source)),
    }
    keep_record = partial(write_record, workdir, config, *of_data, **known)
    for change in on_first_process(keep_record):
        log.warning("going on with another config.%s", change)
    on_first_process(lambda: run.say_what_is_not_as_asked(tuple(setup.source.shape)))
    _warn_of_averages(run, config)
    run_samples = RunSamples(run, setup.model, setup.source, workdir)
    evaluate = None
    if run.evaluation.every:
        evaluate = evaluation_callback(run_samples, DataSets(run.data.name, run.open_source), average_texts(config)[0])
    kept = {"keep": run.checkpoint.keep, "keep_every": run.checkpoint.keep_every}
    try:
        with Checkpointer(workdir / "checkpoints", **kept) as checkpointer:
            state = state or checkpointer.restore(shapes_of_state(setup), setup.mesh) or first_state(setup)
            start = int(state.step)
            keep = partial(keep_record, step=start) if start < run.steps else partial(keep_config, workdir, config)
            session.begin(start, changes=on_first_process(keep), device=devices())
            trained, speed = _train(setup, state, config, run_samples, steps, evaluate, checkpointer, session)
    except Stopped as stopped:
        step, by = stopped.step, {"stopped_by": Signals(stopped.number).name}
        on_first_process(lambda: write_summary(run, workdir, step, by | losses_of(workdir, step) | session.totals()))
        raise
    if evaluate is not None:
        evaluate(trained, int(trained.step))
    _finish(setup, trained, run_samples, speed, session)


def _warn_of_averages(run: Run, config: Mapping[str, Any]) -> None:
    """Say, before a run trains, which averages of its parameters will hold what it began with."""
    said = [long_average(config, i, run.steps) for i, _ in enumerate(average_texts(config))]
    for line in filter(None, [*said, long_target(config, run.method.target_rate, run.steps)]):
        log.warning("%s", line)


def _steps_to_trace(profile: str | None, run: Run) -> range | None:
    try:
        return None if profile is None else read_steps(profile, run.steps)
    except ValueError as error:
        raise ConfigError(f"--profile={profile}: {error}") from error


def _train(
    setup: Setup,
    state: TrainState,
    config: Mapping[str, Any],
    run_samples: RunSamples,
    trace_steps: range | None,
    evaluate: Callback | None,
    checkpointer: Checkpointer,
    session: Session,
) -> tuple[TrainState, dict[str, float]]:
    """The state, trained to the end, and what the run measured of itself."""
    run, mesh, workdir, start = setup.run, setup.mesh, run_samples.workdir, int(state.step)
    batches = _batches(setup)
    if start:
        log.info("going on from step %d of %s", start, workdir)
    if start >= run.steps:
        log.info("all %d steps of %s are done: its samples and metrics are made again", start, workdir)
        return state, {}
    if start % run.steps_per_call:
        raise ConfigError(f"config.steps_per_call={run.steps_per_call}: must divide the step {start} of {workdir}")
    with _records(run, workdir, start, config) as writer:
        compiled, compile_seconds = _compile(setup, state, batches.at(start))
        session.train(compile_seconds)
        speed = speed_on(mesh, compiled, batch_size=run.batch_size)
        callback, callback_every = in_turn([(run_samples.refresh, run.samples.every), (evaluate, run.evaluation.every)])
        on_first_process(lambda: _forget_after(workdir, start))
        with (
            contextlib.closing(batches.stream(start, run.steps)) as stream,
            progress("training", run.steps, start=start) as update,
            traced(
                compiled, trace_steps, workdir / "profile", start=start, steps_per_call=run.steps_per_call
            ) as train_step,
            _going_back(checkpointer, start),
        ):
            state = run_loop(
                state, train_step, setup.frozen, stream, start=start, total_steps=run.steps, speed=speed,
                checkpointer=checkpointer, save_every=run.checkpoint.save_every, log_every=run.log.every,
                write_record=writer.write if writer else lambda step, record: None,
                before_save=partial(_keep_until, writer, session),
                callback=callback, callback_every=callback_every, update_progress=update,
                steps_per_call=run.steps_per_call,
            )  # fmt: skip
    return state, speed.at(session.trained() / (run.steps - start))


@contextlib.contextmanager
def _records(run: Run, workdir: Path, start: int, config: Mapping[str, Any]) -> Iterator[MetricsWriter | None]:
    """What the run records is written with, in the first process; None in the others.

    Raises: ConfigError where Weights & Biases does not begin.
    """
    opened: list[MetricsWriter] = []
    mirrors = {"tensorboard": run.log.tensorboard, "wandb": run.log.wandb}
    try:
        on_first_process(lambda: opened.append(MetricsWriter(workdir, resume_step=start, config=config, **mirrors)))
    except MirrorError as error:
        raise ConfigError(f"config.log.wandb=True: {error}") from error
    with contextlib.closing(opened[0]) if opened else contextlib.nullcontext():
        yield opened[0] if opened else None


def _keep_until(writer: MetricsWriter | None, session: Session, step: int) -> None:
    if writer:
        writer.flush()
    session.reached(step)


def _forget_after(workdir: Path, step: int) -> None:
    """What lies in the folder of later steps was made of parameters that are gone."""
    remove_later(workdir, step)
    drop_rows_after(workdir / ROWS, step)


def _batches(setup: Setup) -> Batches:
    run, sharding = setup.run, batch_sharding(setup.mesh)
    return Batches(
        setup.source,
        run.batch_size,
        run.seed,
        sharding=sharding,
        workers=run.workers,
        steps_per_call=run.steps_per_call,
    )


@contextlib.contextmanager
def _going_back(checkpointer: Checkpointer, start: int) -> Iterator[None]:
    """Within, a loss that is not finite tells where the same command goes on. A checkpoint from which training failed
    before the next one was saved is put aside, for it may be ruined."""
    try:
        yield
    except NonFiniteLoss as error:
        newest = checkpointer.newest()
        goes_on = f"start again with the same command, which goes on from step {newest}"
        if newest == start > 0:
            checkpointer.quarantine(start, "ruined")
            newest = checkpointer.newest()
            place = f"from step {newest}" if newest else "at step 0, for no other is left"
            goes_on = f"start again with the same command: the checkpoint of step {start}, which led here, is put "
            goes_on += f"aside as ruined-{start}, and the run goes on {place}"
        raise NonFiniteLoss(error.step, error.skipped, goes_on) from error


def _compile(setup: Setup, state: TrainState, batch: Examples) -> tuple[CompiledStep, float]:
    """The compiled train step, and the seconds that it took."""
    log.info("compiling the train step of %s parameters", f"{count(state.params):,}")
    began = time.perf_counter()
    train_step = train_step_of(setup.run, setup.model, setup.teacher, setup.mesh)
    compiled = compile_train_step(
        train_step, state, setup.frozen, batch, setup.mesh, steps_per_call=setup.run.steps_per_call
    )
    if problem := too_little("a step of training", program_bytes(compiled.executable), FOR_ACTIVATIONS):
        raise ConfigError(f"config: {problem}")
    seconds = time.perf_counter() - began
    log.info("compiled in %.1f s; training steps %d to %d", seconds, int(state.step), setup.run.steps)
    return compiled, seconds


def _finish(
    setup: Setup, state: TrainState, run_samples: RunSamples, speed: dict[str, float], session: Session
) -> None:
    """Samples the last images and computes the metrics, for `summary.json` and the terminal."""
    run, steps = setup.run, int(state.step)
    num = max(run.num_metrics, run.samples.num)
    log.info("drawing %d samples by each of %s", num, ", ".join(run_samples.samplers))
    images = run_samples.sample(state, num)
    grids = run_samples.save_grids(images, steps)
    known = {"samples": grids, "parameters": count(state.params), **_rounded(speed), **session.totals()}
    on_first_process(lambda: _report_end(run, state, setup.source, run_samples.workdir, images, known))


def _rounded(speed: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4 if name == "peak_share" else 2) for name, value in speed.items()}


def _report_end(run: Run, state: TrainState, source: Source, workdir: Path, images, known: dict[str, Any]) -> None:
    compared = {name: batch[: run.num_metrics] for name, batch in images.items()} if run.num_metrics else {}
    metrics = run_metrics(compared, source, partial(run.open_source, "test"), cache_dir=cache_of(workdir))
    steps = int(state.step)
    summary = write_summary(run, workdir, steps, {**losses_of(workdir, steps), **known, **metrics})
    page = report_at_end(workdir, source) if run.report else None
    print(summary_text(summary | ({"report": page} if page else {})))
