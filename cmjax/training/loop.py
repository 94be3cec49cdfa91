"""The training loop: dispatches steps, reads their metrics one step late, saves checkpoints and calls back."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from cmjax.core.typing import Params
from cmjax.system.chips import chip_of
from cmjax.system.errors import UserError
from cmjax.system.processes import all_agree
from cmjax.system.progress import Update
from cmjax.system.signals import Stopped, stop_requests
from cmjax.training.checkpoint import Checkpointer
from cmjax.training.logging import Results
from cmjax.training.state import Examples, TrainState
from cmjax.training.step import CompiledStep, Metrics

LoopedStep = Callable[[TrainState, Params, Examples, int], tuple[TrainState, Metrics]]
WriteRecord = Callable[[int, dict[str, float]], None]
Callback = Callable[[TrainState, int], None]
"""(state, step): called after that step, in every process."""
ResultsOf = Callable[[TrainState, int], Results]
"""(state, step): computes results after that step, in every process."""
Pause = Callable[[str], contextlib.AbstractContextManager]
"""(name): surrounds a pause between steps, such as "save", to measure its time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Converts seconds into speeds.

    batch_size: images of a step. chips: devices that share it. chip_flops: operations of one device in a step.
    peak_flops: the published bfloat16 operations per second of a device; None where there is no such number.
    """

    batch_size: int
    chips: int
    chip_flops: float
    peak_flops: float | None

    def at(self, step_seconds: float) -> dict[str, float]:
        """`images_per_second`, `images_per_second_per_chip` and, of a chip that is known, `peak_fraction`, 0 to 1."""
        rate = self.batch_size / step_seconds
        speeds = {"images_per_second": rate, "images_per_second_per_chip": rate / self.chips}
        if self.peak_flops:
            speeds["peak_fraction"] = self.chip_flops / step_seconds / self.peak_flops
        return speeds


def speed_on(mesh: Mesh, train_step: CompiledStep, *, batch_size: int) -> Speed:
    """Computes the speed of a train step on the chips of a mesh."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    # a device of an unknown kind has no peak, and so no fraction of it
    return Speed(batch_size, mesh.size, train_step.flops / mesh.size, chip and chip.peak_flops)


class NonFiniteLoss(UserError, RuntimeError):
    """The loss or its gradient is not finite at `step`, after `skipped` others. The state is not saved, since it may be
    ruined already. resume: what to do next."""

    def __init__(self, step: int, skipped: int = 0, resume: str = "start again with the same command"):
        before = f", after {skipped} steps that were skipped" if skipped else ""
        super().__init__(
            f"the loss or its gradient is not finite at step {step}{before}. Lower optimizer.learning_rate or set "
            f"optimizer.clip_norm, and {resume}; or go past such steps, with "
            f"--config.optimizer.skip_nonfinite={max(10, 2 * skipped)} up to that many"
        )
        self.step, self.skipped = step, skipped


def run_loop(
    state: TrainState,
    train_step: LoopedStep,
    frozen: Params,
    batches: Iterable[Examples],
    *,
    start: int,
    total_steps: int,
    speed: Speed,
    checkpointer: Checkpointer,
    save_every: int,
    write_record: WriteRecord,
    before_save: Callable[[int], None] = lambda step: None,
    log_every: int,
    callback: Callback,
    callback_every: int,
    update_progress: Update,
    steps_per_call: int = 1,
    pause: Pause = contextlib.nullcontext,
) -> TrainState:
    """Train from step `start`, that of the first batch, to `total_steps`, and save at the end.

    steps_per_call: how many steps one call of `train_step` does. It divides every other number of steps. Where it is
    above 1, batches and metrics have the step as their first axis.
    before_save: called with the step before each save, to write the records: a checkpoint must not be ahead of them.

    Raises: Stopped on a signal of `system.signals`, with the state saved; NonFiniteLoss.
    """
    late = _LateMetrics(write_record, update_progress, log_every=log_every, speed=speed, steps_per_call=steps_per_call)
    with stop_requests() as stop_requested:
        with _resume_advice(checkpointer, start), _saves_waited_for(checkpointer, pause):
            # strict: batches that end early, or do not end, are an error and no shorter run
            for step, batch in zip(range(start, total_steps, steps_per_call), batches, strict=True):
                # the vote goes with the step: processes that stopped at different ones would wait for ever
                state, metrics = train_step(state, frozen, batch, stop_requested())
                late.push(step, metrics)
                # `late.stop` comes from the metrics of the step before, so every process stops after the same step
                done, stop = step + steps_per_call, late.stop
                if stop or done % save_every == 0 or done == total_steps:
                    # never save a state under a step that it did not reach
                    late.flush()
                    with pause("save"):
                        before_save(done)
                        checkpointer.save(state, done)
                if stop:
                    raise Stopped(done, stop)
                # what ends a run makes samples and metrics of the last step itself
                if callback_every and done % callback_every == 0 and done < total_steps:
                    callback(state, done)
        # a signal that came after the last step's vote
        if not all_agree(not stop_requested()):
            raise Stopped(total_steps, stop_requested() or signal.SIGTERM)
    return state


def in_turn(computed: list[tuple[ResultsOf | None, int]], show: Callable[[int, Results], None]) -> tuple[Callback, int]:
    """Combine functions that run every so many steps (0: never) into one callback and its number of steps. show: takes
    the step and the results."""
    wanted = [(results_of, every) for results_of, every in computed if results_of and every]

    def call_all(state: TrainState, step: int) -> None:
        for results_of, every in wanted:
            if step % every == 0:
                show(step, results_of(state, step))

    # the gcd of nothing is 0, at which the loop never calls back
    return call_all, math.gcd(*(every for _, every in wanted))


@contextlib.contextmanager
def _saves_waited_for(checkpointer: Checkpointer, pause: Pause) -> Iterator[None]:
    """Wait for the saves under way, however the block ends."""
    try:
        yield
    finally:
        with pause("save"):
            checkpointer.wait()


@contextlib.contextmanager
def _resume_advice(checkpointer: Checkpointer, start: int) -> Iterator[None]:
    """Add to a NonFiniteLoss from where the same command resumes. If no checkpoint was saved since `start`, that of
    `start` may be ruined: it is renamed, and the run resumes from the one before."""
    try:
        yield
    except NonFiniteLoss as error:
        resume = f"start again with the same command, which goes on from step {checkpointer.newest or 0}"
        if checkpointer.newest == start > 0:
            checkpointer.quarantine(start, "ruined")
            newest = checkpointer.newest
            place = "at step 0, for no other is left" if newest is None else f"from step {newest}"
            resume = f"start again with the same command: the checkpoint of step {start}, which led here, is put "
            resume += f"aside as ruined-{start}, and the run goes on {place}"
        raise NonFiniteLoss(error.step, error.skipped, resume) from error


class _LateMetrics:
    """Reads a step's metrics when the next one is already under way, so that the device never waits for the host.

    stop: the signal to stop by, the same in all processes, which vote in every step; 0 for none.
    """

    def __init__(
        self, write_record: WriteRecord, update_progress: Update, *, log_every: int, speed: Speed, steps_per_call: int
    ):
        self._write_record, self._update_progress = write_record, update_progress
        self._log_every, self._speed, self._steps_per_call = log_every, speed, steps_per_call
        self.stop = 0
        self._pending: tuple[int, Metrics] | None = None
        self._losses: list[float] = []
        # since the last record, with those that were skipped
        self._steps = 0
        # left on the device until they are recorded
        self._loss_bins: list[jax.Array] = []
        self._window_start = time.perf_counter()

    def push(self, step: int, metrics: Metrics) -> None:
        """Read the metrics of the step before, and hold these."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        # the highest signal wins: a `stop` once read is kept until the loop acts on it
        self.stop = max(self.stop, int(metrics.pop("stop")))
        if self._steps_per_call == 1:
            return self._read(step, metrics)
        # one transfer for all of its steps
        metrics = jax.device_get(metrics)
        for i in range(self._steps_per_call):
            self._read(step + i, {name: values[i] for name, values in metrics.items()})

    def _read(self, step: int, metrics: Metrics) -> None:
        loss, bin_sums = float(metrics.pop("loss")), metrics.pop("loss_bins", None)
        if not metrics.pop("finite"):
            raise NonFiniteLoss(step, int(metrics.get("skipped", 0)))
        self._steps += 1
        if math.isfinite(loss):
            self._losses.append(loss)
            self._loss_bins += [] if bin_sums is None else [bin_sums]
            self._update_progress(step + 1, f"loss {loss:.4g}")
        else:
            skipped = int(metrics["skipped"])
            log.warning("step %d is skipped, the %d. of the run: its loss or gradient is not finite", step, skipped)
        if (step + 1) % self._log_every == 0:
            self._record(step + 1, metrics)

    def _record(self, done: int, metrics: Metrics) -> None:
        now = time.perf_counter()
        seconds = (now - self._window_start) / self._steps
        # what is not finite, as the gradient's norm at a skipped step, is no number in JSON
        record = {name: value for name, leaf in metrics.items() if math.isfinite(value := float(leaf))}
        if self._losses:
            record["loss"] = sum(self._losses) / len(self._losses)
        if self._loss_bins:
            sums, counts = np.asarray(jax.device_get(self._loss_bins), np.float64).sum(axis=0)
            # a bin without samples has no mean
            record |= {f"loss_bin_{i:02d}": float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}
        record |= {"step_seconds": seconds, **self._speed.at(seconds)}
        self._write_record(done, record | {"nimg": done * self._speed.batch_size})
        self._losses, self._loss_bins, self._steps, self._window_start = [], [], 0, now
