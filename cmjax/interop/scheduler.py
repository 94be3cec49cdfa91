"""Reads and writes schedulers of diffusers' pipelines: the noise's path, the network's prediction, and the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from cmjax.core import preconditioning
from cmjax.core.grids import ddim_steps, lcm_steps
from cmjax.core.model import Model
from cmjax.core.paths import Path, ddpm, table
from cmjax.core.typing import Net
from cmjax.interop.fields import COUNT, FLAG, POSITIVE, Field, all_of, checked_fields, is_number, one_of, optional

DDIM, LCM = "DDIMScheduler", "LCMScheduler"
STATED = {DDIM: {"clip_sample": False}, LCM: {"clip_sample": False}, "PNDMScheduler": {"skip_prk_steps": True}}
"""Class of a scheduler -> further entries of its written config: diffusers' defaults are not Stable Diffusion's."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def _is_beta(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


FIELDS: dict[str, Field] = {
    "num_train_timesteps": (1000, *COUNT),
    "beta_start": (0.00085, *POSITIVE),
    "beta_end": (0.012, *POSITIVE),
    "beta_schedule": one_of("scaled_linear", ("linear", "scaled_linear")),
    "trained_betas": (
        None,
        optional(all_of(lambda beta: is_number(beta) and 0 < beta < 1)),
        "null or numbers in (0, 1)",
    ),
    "prediction_type": one_of("epsilon", PREDICTIONS),
    "rescale_betas_zero_snr": (False, lambda value: value is False, "false"),
    "set_alpha_to_one": (True, *FLAG),
    "steps_offset": (0, lambda value: type(value) is int and value >= 0, "a whole number"),
    "timestep_spacing": one_of("leading", ("leading", "trailing", "linspace")),
    "original_inference_steps": (50, *COUNT),
    "timestep_scaling": (10.0, *POSITIVE),
}


@dataclass(frozen=True)
class Schedule:
    """Holds what a scheduler's config says.

    path: of the noise; step i is at time i/steps. steps: of training. prediction: "epsilon" or "v".
    ends_clean: whether DDIM's last step leads to clean data, and not to the noise of step 0.
    offset, spacing: of `ddim_steps`. original: of `lcm_steps`. scaling: of `preconditioning.lcm`, for each step.
    is_lcm: whether the scheduler is LCM's. kind: its class otherwise. betas: of the path, numbers, or the name, start
    and end of a `beta_schedule`.
    """

    path: Path
    steps: int
    prediction: str
    ends_clean: bool
    offset: int
    spacing: str
    original: int
    scaling: float
    is_lcm: bool
    kind: str = DDIM
    betas: tuple[Any, ...] = ("scaled_linear", 0.00085, 0.012)

    def denoiser(self, net: Net) -> Model:
        """Makes the denoiser of a network whose times are steps/`steps`."""
        return Model(net, self.path, partial(preconditioning.PREDICTIONS[self.prediction], path=self.path))

    def consistency_fn(self, net: Net) -> Model:
        """Makes LCM's consistency function of such a network."""
        prediction: Any = self.prediction
        scalings = partial(
            preconditioning.lcm, path=self.path, prediction=prediction, scaling=self.scaling * self.steps
        )
        return Model(net, self.path, scalings)

    def ddim_steps(self, n: int, *, strength: float = 1.0) -> Int[np.ndarray, " m"]:
        """Gives n steps of DDIM, of which an edit of a lower strength takes the last int(n·strength)."""
        if not 0 < strength <= 1 or int(n * strength) < 1:
            raise ValueError(f"strength={strength:g} must lie in (0, 1], and leave one of n={n} steps or more")
        grid = ddim_steps(n, steps=self.steps, offset=self.offset, spacing=self.spacing)
        return grid[n - min(int(n * strength), n) :]

    def lcm_steps(self, steps: int | Sequence[int], *, strength: float = 1.0) -> Int[np.ndarray, " m"]:
        """Gives LCM's steps: n of those it learned, see `lcm_steps`, or named ones; an edit leaves out the first."""
        if isinstance(steps, int):
            return lcm_steps(steps, original=self.original, steps=self.steps, strength=strength)
        grid = np.asarray(steps)
        falls = grid.ndim == 1 and len(grid) and grid.dtype.kind == "i" and (np.diff(grid) < 0).all()
        if not falls or grid[-1] < 0 or grid[0] >= self.steps:
            raise ValueError(f"steps must be whole numbers that descend within {self.steps - 1} … 0, got {list(steps)}")
        if not 0 < strength <= 1 or int(len(grid) * strength) < 1:
            raise ValueError(f"strength={strength:g} must lie in (0, 1], and leave one of {len(grid)} steps or more")
        return grid[len(grid) - int(len(grid) * strength) :]


def read_schedule(config: Mapping[str, Any], where: Any) -> Schedule:
    """Reads a scheduler_config.json; what it leaves out is as in Stable Diffusion. Raises: ForeignError."""
    fields = checked_fields(config, FIELDS, where)
    betas, steps = fields["trained_betas"], fields["num_train_timesteps"]
    start, end = float(fields["beta_start"]), float(fields["beta_end"])
    if betas is None:
        path = ddpm(schedule=fields["beta_schedule"], beta_start=start, beta_end=end, steps=steps)
    else:
        path = table(tuple(np.cumsum(np.log1p(-np.asarray(betas, np.float64))).tolist()))
    return Schedule(
        path=path,
        steps=steps if betas is None else len(betas),
        prediction=PREDICTIONS[fields["prediction_type"]],
        ends_clean=fields["set_alpha_to_one"],
        offset=fields["steps_offset"],
        spacing=fields["timestep_spacing"],
        original=fields["original_inference_steps"],
        scaling=float(fields["timestep_scaling"]),
        is_lcm=config.get("_class_name") == LCM,
        kind=kind if (kind := config.get("_class_name")) in STATED and kind != LCM else DDIM,
        betas=(fields["beta_schedule"], start, end) if betas is None else tuple(map(float, betas)),
    )


def scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """Makes the scheduler_config.json of a schedule, as diffusers and `read_schedule` read it."""
    kind, betas = LCM if schedule.is_lcm else schedule.kind, schedule.betas
    named = len(betas) == 3 and isinstance(betas[0], str)
    of_lcm = {"original_inference_steps": schedule.original, "timestep_scaling": schedule.scaling}
    return {
        "_class_name": kind,
        "num_train_timesteps": schedule.steps,
        **(dict(zip(("beta_schedule", "beta_start", "beta_end"), betas, strict=True)) if named else {}),
        "trained_betas": None if named else list(betas),
        "prediction_type": next(name for name, ours in PREDICTIONS.items() if ours == schedule.prediction),
        "set_alpha_to_one": schedule.ends_clean,
        "steps_offset": schedule.offset,
        "timestep_spacing": schedule.spacing,
        **(of_lcm if kind == LCM else {}),
        **STATED[kind],
    }
