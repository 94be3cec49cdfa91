"""The state of a run: everything that a checkpoint holds."""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Int

from cmjax.core.typing import Params


@flax.struct.dataclass
class TrainState:
    """`step` counts optimizer updates; the averages of the parameters live in `opt_state` (see `optimizer`).

    `finite` turns False at the first loss that is not finite; the rest of the state then stays as it was before it.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    finite: Bool[Array, ""]


Batch = dict[str, Any]
"""`image` (b, h, w, c) uint8 or float, and `label` (b,) int32 where the data has classes."""
