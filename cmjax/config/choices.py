"""The choices of an objective's fields: a plain dict for each, from names to functions."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from cmjax.config.methods import NO_AVERAGE
from cmjax.core import couplings, curricula, distances, ema_rates, ode, pairs, times, weightings
from cmjax.core.derivatives import central_difference
from cmjax.core.losses import alpha_flow, tangents
from cmjax.ranges import Within
from cmjax.training.method import FrozenWeights

TIME_SAMPLERS = {
    "lognormal": times.lognormal,
    "logit_normal": times.logit_normal,
    "student": times.student,
    "uniform": times.uniform,
}
INTERVALS = {"uniform": pairs.uniform_intervals, "lognormal": pairs.lognormal_intervals}
DISCRETE_PAIRS = {"skipping": pairs.skipping_pairs, "ddim_grid": pairs.ddim_grid_pairs}
CURRICULA = {
    "constant": curricula.constant,
    "square_root_growth": curricula.square_root_growth,
    "doubling": curricula.doubling,
}
COUPLINGS = {"independent": lambda: None, "minibatch_ot": couplings.minibatch_ot}
PAIRS = {"sorted": pairs.sorted_pairs, "capped": pairs.capped_pairs}
RATES = {NO_AVERAGE: lambda: None, "ema": ema_rates.constant_rate}
RATES_BY_GRID = RATES | {"scheduled_ema": ema_rates.scheduled_rate}
WEIGHTINGS = {
    "uniform": weightings.uniform,
    "inverse_gap": weightings.inverse_gap,
    "inverse_c_out": weightings.inverse_c_out,
    "snr": weightings.snr,
    "snr_plus_one": weightings.snr_plus_one,
    "truncated_snr": weightings.truncated_snr,
    "karras": weightings.karras,
}
OF_VE = ("snr", "snr_plus_one", "truncated_snr", "karras")
"""Weights that take the time for the noise level."""
ALPHA_WEIGHTS = {"inverse": alpha_flow.inverse_alpha, "adaptive": alpha_flow.adaptive_alpha}
ODE_STEPS = {
    "ddim": ode.ddim_step,
    "euler": ode.euler_step,
    "heun": ode.heun_step,
    "midpoint": ode.midpoint_step,
}
NORMALIZATIONS = {
    "unit_norm": tangents.unit_norm,
    "unit_rms": tangents.unit_rms,
    "clipped": tangents.clipped,
    "none": tangents.unchanged,
}
GAINS = {"trig": jnp.cos, "linear": jnp.ones_like}
"""The bounded factor of a path's tangent."""
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

    pool = {"max": "max", "average": "avg"}[pooling]
    return partial(lpips, resize=resize, pool=pool), FrozenWeights(partial(load_lpips, vgg, heads), parameter_shapes)


DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "linf": distances.linf,
    "huber": distances.huber,
    "pseudo_huber": distances.pseudo_huber,
    "adaptive": distances.adaptive,
    "lpips": _lpips,
}
DISTANCES_OF_SPEED = {
    **{name: DISTANCES[name] for name in ("l1", "l2", "linf", "lpips")},
    "norm": lambda x, y: distances.pseudo_huber(x, y, c=0.0),
}
