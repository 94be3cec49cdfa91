"""The state of a run: everything that a checkpoint holds."""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Int

from cmjax.core.typing import Params


@flax.struct.dataclass
class TrainState:
    """Holds what a run goes on from. `step` counts optimizer updates and the steps `skipped`; the averages of the
    parameters live in `opt_state` (see `optimizer`).

    `finite` turns False at a loss that is not finite and may not be skipped; the rest then stays as it was before.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    finite: Bool[Array, ""]

    @property
    def skipped(self) -> Int[Array, ""]:
        """The number of steps that changed nothing, because their loss or gradient was not finite."""
        # the averages count updates alone
        return self.step - self.opt_state[-1].count


Examples = dict[str, Any]
"""`image` (b, h, w, c) uint8 or float, and `label` (b,) int32 where the data has classes."""
