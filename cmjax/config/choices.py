"""The choices of an objective's fields: a plain dict for each, from names to functions."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from cmjax.config.fields import by_name
from cmjax.config.methods import NO_AVERAGE
from cmjax.core import couplings, curricula, distances, ema_rates, map_pairs, ode, pairs, times, weightings
from cmjax.core.derivatives import central_difference
from cmjax.core.losses import alpha_flow, tangents
from cmjax.ranges import Within
from cmjax.training.method import FrozenWeights

TIME_SAMPLERS = by_name(times.lognormal, times.logit_normal, times.student, times.uniform)
INTERVALS = {"uniform": pairs.uniform_intervals, "lognormal": pairs.lognormal_intervals}
DISCRETE_PAIRS = {"skipping": pairs.skipping_pairs, "ddim_grid": pairs.ddim_grid_pairs}
CURRICULA = by_name(curricula.constant, curricula.square_root_growth, curricula.doubling)
COUPLINGS = {"independent": lambda: None, "minibatch_ot": couplings.minibatch_ot}
PAIRS = {
    "sorted": pairs.sorted_pairs,
    "capped": pairs.capped_pairs,
    "long": map_pairs.long_pairs,
    "ending": map_pairs.ending_pairs,
}
RATES = {NO_AVERAGE: lambda: None, "ema": ema_rates.constant_rate}
RATES_BY_GRID = RATES | {"scheduled_ema": ema_rates.scheduled_rate}
WEIGHTINGS_OF_VE = by_name(weightings.snr, weightings.snr_plus_one, weightings.truncated_snr, weightings.karras)
"""They take the time for the noise level."""
WEIGHTINGS = by_name(weightings.uniform, weightings.inverse_gap, weightings.inverse_c_out) | WEIGHTINGS_OF_VE
MAP_WEIGHTINGS = by_name(
    weightings.uniform,
    weightings.tan_gap,
    weightings.inverse_tan_gap,
    weightings.inverse_time_gap,
    weightings.towards_noise,
)
"""Weights of a flow map's loss, of t and the destination s."""
ALPHA_WEIGHTS = {"inverse": alpha_flow.inverse_alpha, "adaptive": alpha_flow.adaptive_alpha}
ODE_STEPS = {"ddim": ode.ddim_step, "euler": ode.euler_step, "heun": ode.heun_step, "midpoint": ode.midpoint_step}
NORMALIZATIONS = by_name(tangents.unit_norm, tangents.unit_rms, tangents.clipped) | {"none": tangents.unchanged}
GAINS = {"trig": jnp.cos, "linear": jnp.ones_like}  # the bounded factor of a path's tangent
DERIVATIVES = {"jvp": lambda: jax.jvp, "central_difference": central_difference}


def _lpips(
    *,
    vgg: str,
    heads: str,
    resize: Annotated[int, Within(16, 4096)] = 224,
    pooling: Literal["max", "average"] = "max",
) -> tuple[Callable, FrozenWeights]:
    """LPIPS, and its weights: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`.

    `pooling`: "max" as VGG16 was trained and LPIPS published; "average" in the released runs on ImageNet and LSUN.
    """
    # Imported here: most runs need neither the network nor what reads foreign files.
    from cmjax.interop.features import load_lpips
    from cmjax.nets.features.lpips import lpips, parameter_shapes

    distance = partial(lpips, resize=resize, pool={"max": "max", "average": "avg"}[pooling])
    return distance, FrozenWeights(partial(load_lpips, vgg, heads), parameter_shapes)


_NORMS = by_name(distances.l1, distances.l2, distances.linf)
_ROBUST = by_name(distances.huber, distances.pseudo_huber, distances.adaptive, distances.directional)
DISTANCES = {**_NORMS, **_ROBUST, "lpips": _lpips}
DISTANCES_OF_SPEED = {**_NORMS, "lpips": _lpips, "norm": lambda x, y: distances.pseudo_huber(x, y, c=0.0)}
