"""A method as the train step takes it: its loss, its times, the arguments of the loss, and its teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.model import BoundModel, Kind
from cmjax.core.pairs import PairSampler
from cmjax.core.paths import Path, carry
from cmjax.core.typing import Conditions, Denoiser, Params, PerSample, PRNGKey, Samples, Schedule, Step
from cmjax.system.mesh import replicated

TEACHER = "teacher"
"""The teacher's parameters among what is frozen."""


@dataclass(frozen=True)
class FrozenWeights:
    """Reads weights that a loss uses and training leaves alone, and gives their shapes, which need no files."""

    load: Callable[[], Params]
    shapes: Callable[[], Any]


@dataclass(frozen=True)
class Method:
    """Holds how a run learns: its loss, a function of `cmjax.losses`, and what the loss is called with.

        batch, key = method.sample_batch(key, x0, step, conditions)
        losses = method.loss(model, params, key, batch, **method.arguments(step, target_params, frozen))

    Args: times: samples the times at which the loss looks.
          choices, by_step, by_frozen: arguments of the loss: those that stay the same, functions of the step, and
          functions of the `frozen` weights. schedules: functions of the step to report.
          target_rate: of the target's average; None: the target is the student itself.
          guidance, interval: sample the scale, and for times t and s the interval, of guidance that the network takes.
          labels: `drop_first` and `keep_labels` of `step.prepare_inputs`.
          fraction: of the batch, its first samples, which learn in another way.
          group: how many samples of the batch, one after another, belong together; it must hold whole groups.
          coupling: (x0, noise, times, labels) -> the noise of each sample; None: independent of it.
          stages: the steps at which trainings with a new teacher begin; () for none.
          teacher: the folder of the run that is distilled, "" for none. teacher_kind: the kind of model that it must
          be. teacher_as: its argument of the loss. teacher_function: of (params, x, t), once it is loaded.
          teacher_drops_out: whether it has the student's dropout masks, or none.
          guided_by: the field of the objective for which the target also evaluates a network, the teacher or else the
          student, without a label; "" for none.
    """

    loss: Callable[..., PerSample]
    times: PairSampler
    choices: Mapping[str, Any] = field(default_factory=dict)
    target_rate: Schedule | None = None
    by_step: Mapping[str, Schedule] = field(default_factory=dict)
    by_frozen: Mapping[str, Callable[[Mapping[str, Params]], Any]] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    frozen: Mapping[str, FrozenWeights] = field(default_factory=dict)
    guidance: Callable[[PRNGKey, int], PerSample] | None = None
    interval: Callable[[PRNGKey, PerSample, PerSample], Array] | None = None
    labels: Mapping[str, bool] = field(default_factory=dict)
    fraction: float = 0.0
    group: int = 1
    coupling: Callable[..., Samples] | None = None
    stages: Sequence[int] = ()
    teacher: str = ""
    teacher_kind: Kind = "denoiser"
    teacher_as: str = "teacher"
    teacher_function: Denoiser | None = None
    teacher_drops_out: bool = False
    guided_by: str = ""

    def with_teacher(self, teacher: BoundModel | None, path: Path) -> "Method":
        """Gives the method with its teacher, which is carried to the student's path if that is another."""
        if teacher is None:
            return self
        carried = teacher.function if teacher.path == path else carry(teacher.function, teacher.path, path)
        return replace(self, teacher_function=carried)

    def on(self, mesh: Mesh) -> "Method":
        """Gives the method for batches that lie over the mesh. Its coupling runs on the whole batch in every device, so
        that the devices exchange nothing in its rounds."""
        if (coupling := self.coupling) is None:
            return self
        everywhere = partial(with_sharding_constraint, shardings=replicated(mesh))
        return replace(self, coupling=lambda *batch: everywhere(coupling(*everywhere(batch))))

    def sample_batch(self, key: PRNGKey, x0: Samples, step: Step, conditions: Conditions) -> tuple[Batch, PRNGKey]:
        """Gives the batch that the loss is evaluated on, with its noise and times, and the key of the dropout masks."""
        # each extra sample splits the key anew, so that methods without it keep their numbers
        times_key, key = jax.random.split(key)
        if self.guidance is not None:
            guidance_key, key = jax.random.split(key)
            conditions = {**conditions, "guidance": self.guidance(guidance_key, len(x0))}
        noise_key, dropout_key = jax.random.split(key)
        noise, times = jax.random.normal(noise_key, x0.shape, x0.dtype), self.times(times_key, len(x0), step)
        if self.interval is not None:
            interval_key, dropout_key = jax.random.split(dropout_key)
            conditions = {**conditions, "interval": self.interval(interval_key, times.t, times.destination)}
        if self.coupling is not None:
            # last, so that a method without a coupling has the same noise
            noise = self.coupling(x0, noise, times.t, conditions.get("label"))
        return Batch(x0, noise, times, conditions), dropout_key

    def arguments(self, step: Step, target_params: Params, frozen: Mapping[str, Params]) -> dict[str, Any]:
        """Gives the arguments of the loss at this step. `frozen` holds the teacher's parameters as `TEACHER`."""
        arguments = {**self.choices, **{name: schedule(step) for name, schedule in self.by_step.items()}}
        arguments |= {name: make(frozen) for name, make in self.by_frozen.items()}
        if self.target_rate is not None:
            arguments["target_params"] = target_params
        # the teacher's parameters are bound here, inside the trace: they are an argument of the step, never a constant
        if self.teacher_function is not None:
            arguments[self.teacher_as] = partial(self.teacher_function, frozen[TEACHER])
        return arguments
