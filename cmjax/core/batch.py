"""The batch of a loss: clean data, its noise, the times and the network's conditions."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cmjax import checks
from cmjax.core.paths import Path
from cmjax.core.typing import Conditions, PerSample, Samples


class Times(NamedTuple):
    """Times (b,) on one trajectory, s <= r <= t: the student's input is at `t`, the target's input at `r`.

    `s` is the destination of a flow map. `r` and `s` are None for methods that do not use them.
    """

    t: PerSample
    r: PerSample | None = None
    s: PerSample | None = None

    @property
    def target(self) -> PerSample:
        """The target's time r. Raises: ValueError where r is None."""
        return _required(self.r, "r, the time of the target, such as those of pairs.grid_pairs or pairs.ratio_pairs")

    @property
    def destination(self) -> PerSample:
        """The destination s. Raises: ValueError where s is None."""
        return _required(self.s, "s, the destination, such as those of pairs.sorted_pairs or pairs.segmented")


def _required(time: Array | None, what: str) -> Array:
    if time is None:
        raise ValueError(f"this loss needs times with {what}")
    return time


# a pytree, so that a batch is an argument of jit, grad and shard_map as any array is
@partial(jax.tree_util.register_dataclass, data_fields=["x0", "noise", "times", "conditions"], meta_fields=[])
@dataclass(frozen=True)
class Batch:
    """Holds one batch for a loss. A loss samples dropout masks only; all other randomness is here.

    x0: clean data (b, ...) in [-1, 1]. noise: unit Gaussians of the same shape. times: see `Times`.
    conditions: the network's inputs besides x and the times, such as `label` (b,).
    """

    x0: Samples
    noise: Samples
    times: Times
    conditions: Conditions = field(default_factory=dict)

    def noised(self, path: Path, t: PerSample) -> Samples:
        """x_t = a(t)·x0 + b(t)·noise.

        Raises: TypeError or ValueError naming what of the batch cannot be right, as far as it is known in tracing.
        """
        self._check(path)
        return path.add_noise(self.x0, self.noise, t)

    def _check(self, path: Path) -> None:
        checks.floating("x0", self.x0)
        checks.floating("noise", self.noise)
        checks.same_shape("noise", jnp.shape(self.noise), self.x0.shape, "x0")
        size, (t, r, s) = self.x0.shape[0], self.times
        for name, time in zip(Times._fields, self.times, strict=True):
            if time is not None:
                checks.per_sample_shape(f"times.{name}", time, size, scalar=False)
                checks.within(f"times.{name}", time, 0.0, path.signal_ends)
        checks.ordered(t if r is None else r, t, "r t")
        if s is not None:
            checks.ordered(s, t if r is None else r, "s t" if r is None else "s r")
        if "label" in self.conditions:
            checks.as_labels(self.conditions["label"], size)
