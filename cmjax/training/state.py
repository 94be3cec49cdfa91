"""The state of a run: everything that a checkpoint holds."""

from typing import Any

import flax.struct
import optax
from jaxtyping import Array, Int

from cmjax.core.typing import Params


@flax.struct.dataclass
class TrainState:
    """`step` counts optimizer updates; the averages of the parameters live in `opt_state` (see `optimizer`)."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


Batch = dict[str, Any]
"""`image` (b, h, w, c) uint8 or float, and `label` (b,) int32 where the data has classes."""
