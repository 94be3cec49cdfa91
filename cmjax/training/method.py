"""What the train step needs of a method: its loss, what the loss is given, and its teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.model import BoundModel
from cmjax.core.pairs import PairSampler
from cmjax.core.paths import Path, carry
from cmjax.core.typing import Conditions, Denoiser, Params, PerSample, PRNGKey, Samples, Schedule, Step
from cmjax.system.mesh import replicated

TEACHER = "teacher"
"""The teacher's parameters among what is frozen."""


@dataclass(frozen=True)
class FrozenWeights:
    """Weights that a loss uses and training leaves alone: what reads them, and their shapes, which need no files."""

    load: Callable[[], Params]
    shapes: Callable[[], Any]


@dataclass(frozen=True)
class Method:
    """How a run learns: `loss` is a function of `cmjax.losses` with its choices bound, the rest is what it is given.

        loss(model, params, key, batch, **arguments) -> (b,): `sample_batch` gives the batch, `arguments` the arguments.

    times: draws the times at which the loss looks. target_rate: of the target's average; None: the target is the
    student itself. by_step: arguments of the loss that are functions of the step. by_frozen: arguments that are made
    of the frozen weights. schedules: functions of the step to report. frozen: the weights that `by_frozen` takes.
    guidance: draws the scale that the network is given as the condition `guidance`. interval: draws, for times t and s,
    the one that it is given as `interval`. labels: `drop_first` and `keep_labels` of `step.prepare_inputs`.
    fraction: the fraction of the batch that learns in another way, the first samples of it.
    coupling: (x0, noise, times, labels) -> the noise of each sample; None: independent of it.
    stages: the steps at which its stages begin, where each is a training with a teacher of its own; () for none.
    teacher: the folder of the run that is distilled, "" for none. teacher_kind: the kind of model that it must be.
    teacher_as: the argument of the loss that it is given as. teacher_function: of (params, x, t), once it is loaded.
    teacher_drops_out: whether the loss evaluates it with the student's dropout masks; otherwise it drops out nothing.
    guided_by: the field of the objective for which the target also evaluates a network without a label, the teacher or
    where there is none the student; "" for none.
    """

    loss: Callable[..., PerSample]
    times: PairSampler
    target_rate: Schedule | None = None
    by_step: Mapping[str, Schedule] = field(default_factory=dict)
    by_frozen: Mapping[str, Callable[[Mapping[str, Params]], Any]] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    frozen: Mapping[str, FrozenWeights] = field(default_factory=dict)
    guidance: Callable[[PRNGKey, int], PerSample] | None = None
    interval: Callable[[PRNGKey, PerSample, PerSample], Array] | None = None
    labels: Mapping[str, bool] = field(default_factory=dict)
    fraction: float = 0.0
    coupling: Callable[..., Samples] | None = None
    stages: Sequence[int] = ()
    teacher: str = ""
    teacher_kind: str = "denoiser"
    teacher_as: str = "teacher"
    teacher_function: Denoiser | None = None
    teacher_drops_out: bool = False
    guided_by: str = ""

    def with_teacher(self, teacher: BoundModel | None, path: Path) -> "Method":
        """The method with its teacher, which is carried to the student's path if its own is another."""
        if teacher is None:
            return self
        same = teacher.path == path
        function = teacher.function if same else carry(teacher.function, teacher.path, path)
        return replace(self, teacher_function=function)

    def on(self, mesh: Mesh) -> "Method":
        """The method for batches that lie over the mesh: for its coupling every device has all of the batch, so that
        they exchange nothing in its rounds."""
        coupling = self.coupling
        if coupling is None:
            return self
        everywhere = partial(with_sharding_constraint, shardings=replicated(mesh))
        return replace(self, coupling=lambda *batch: everywhere(coupling(*everywhere(batch))))

    def sample_batch(self, key: PRNGKey, x0: Samples, step: Step, conditions: Conditions) -> tuple[Batch, PRNGKey]:
        """The batch that the loss is evaluated on, with its noise and times, and the key of the dropout masks."""
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
            noise = self.coupling(x0, noise, times.t, conditions.get("label"))
        return Batch(x0, noise, times, conditions), dropout_key

    def arguments(self, step: Step, target_params: Params, frozen: Mapping[str, Params]) -> dict[str, Any]:
        """What the loss is given by name at this step. `frozen` holds the teacher's parameters as `TEACHER`."""
        given = {name: schedule(step) for name, schedule in self.by_step.items()}
        given |= {name: make(frozen) for name, make in self.by_frozen.items()}
        if self.target_rate is not None:
            given["target_params"] = target_params
        if self.teacher_function is not None:
            given[self.teacher_as] = partial(self.teacher_function, frozen[TEACHER])
        return given
