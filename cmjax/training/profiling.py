"""Traces some steps of a run, for xprof and Perfetto."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from cmjax.core.typing import Params
from cmjax.system.files import write_atomically
from cmjax.system.processes import is_first
from cmjax.training.state import Examples, TrainState
from cmjax.training.step import CompiledStep, Metrics

log = logging.getLogger(__name__)

ENDINGS = ("xplane.pb", "trace.json.gz")
"""Endings of a trace's files: for xprof, and for Perfetto."""


def read_steps(text: str, total_steps: int) -> range:
    """Parse `20:25`: the steps 20 to 24, counted from 0.

    Raises: ValueError where it names no steps, or steps that the run does not have.
    """
    numbers = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    if not numbers:
        raise ValueError("must be the first step to trace and the first one not to, as 20:25")
    steps = range(*map(int, numbers.groups()))
    if not steps:
        raise ValueError("the first step must be below the second")
    if steps.stop > total_steps:
        raise ValueError(f"the run has {total_steps} steps")
    return steps


@contextlib.contextmanager
def traced(
    train_step: CompiledStep, steps: range | None, folder: Path, *, start: int, steps_per_call: int = 1
) -> Iterator["CompiledStep | TracedSteps"]:
    """Yields the train step, which traces `steps`, and then logs where the trace is.

    Args: folder: on a disk or in a bucket. start: the first step that the run will do.
    """
    if steps is None:
        yield train_step
        return
    if start >= steps.stop:
        log.warning("no trace: the run goes on from step %d, after those to be traced", start)
    tracing = TracedSteps(train_step, steps, folder, start=start, steps_per_call=steps_per_call)
    try:
        yield tracing
    finally:
        tracing.finish()


class TracedSteps:
    """A train step that traces `steps`. It waits for the devices at both ends, so that the trace holds only these."""

    def __init__(self, train_step: CompiledStep, steps: range, folder: Path, *, start: int, steps_per_call: int = 1):
        self._train_step, self._steps, self._folder = train_step, steps, folder
        self._next, self._steps_per_call = start, steps_per_call
        self._first = max(start, steps.start)
        self._scratch: tempfile.TemporaryDirectory | None = None  # the profiler writes on disks alone

    def __call__(self, state: TrainState, frozen: Params, batch: Examples, stop: int = 0) -> tuple[TrainState, Metrics]:
        step, self._next = self._next, self._next + self._steps_per_call
        # a call of several steps is traced if any of them is to be
        if self._next <= self._steps.start or step >= self._steps.stop:
            return self._train_step(state, frozen, batch, stop)
        if self._scratch is None:
            # what was dispatched before must not run into the trace
            jax.block_until_ready((state, batch))
            self._scratch = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._scratch.name)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            done = self._train_step(state, frozen, batch, stop)
        if self._next >= self._steps.stop:
            jax.block_until_ready(done)
            self.finish()
        return done

    def finish(self) -> None:
        """End the trace, if one is running, and write its files to the folder."""
        if self._scratch is None:
            return
        with self._scratch as written:
            jax.profiler.stop_trace()
            self._scratch = None
            session = self._folder / "plugins" / "profile" / f"steps-{self._steps.start}-{self._steps.stop}"
            name = f"process-{jax.process_index()}"  # for that of the host, which several processes may share
            try:
                for ending in ENDINGS:
                    for path in Path(written).rglob(f"*.{ending}"):
                        write_atomically(session / f"{name}.{ending}", path.read_bytes())
            except OSError as error:  # as of a full disk: no reason to end the run
                log.warning("the trace could not be written to %s: %s", self._folder, error)
                return
        if is_first():
            log.info("traced steps %d to %d: xprof --logdir=%s", self._first, self._next, self._folder)
            log.info("or open %s in https://ui.perfetto.dev", session / f"{name}.{ENDINGS[1]}")
