"""Loss weights λ(t, r) of the student's time t and the target's time r, both (b,), for the `ve` path unless noted.

SNR is t⁻², the signal-to-noise ratio of x0 + t·noise for unit-variance data.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.core.paths import Path
from cmjax.core.preconditioning import Preconditioning
from cmjax.core.times import shifted
from cmjax.core.typing import PerSample
from cmjax.ranges import NotNegative, Positive, Real


def uniform(t: PerSample, r: PerSample) -> PerSample:
    """The weight 1.   [Song et al. 2023, sec. 6]"""
    return jnp.ones_like(t)


def inverse_gap(t: PerSample, r: PerSample) -> PerSample:
    """The weight 1/(t − r).   [Song & Dhariwal 2024, sec. 3.1]"""
    return 1 / (t - r)


def snr(t: PerSample, r: PerSample) -> PerSample:
    """The weight t⁻², the SNR.   [Salimans & Ho 2022, sec. 4]"""
    return t**-2


def snr_plus_one(t: PerSample, r: PerSample) -> PerSample:
    """The weight t⁻² + 1.   [Salimans & Ho 2022, sec. 4]"""
    return t**-2 + 1


def truncated_snr(t: PerSample, r: PerSample) -> PerSample:
    """The weight max(t⁻², 1).   [Salimans & Ho 2022, sec. 4]"""
    return jnp.maximum(t**-2, 1)


def karras(t: PerSample, r: PerSample, *, sigma_data: float) -> PerSample:
    """The weight (t² + σ_d²)/(t·σ_d)², or 1/c_out² of the `edm` preconditioning.   [Karras et al. 2022, table 1]"""
    return t**-2 + sigma_data**-2


def inverse_c_out(t: PerSample, r: PerSample, *, scalings: Preconditioning) -> PerSample:
    """The weight 1/c_out², which turns l2 into the squared error of the network's own output, on any path.

    With the scalings `edm` it is `karras`, with `linear` the weight of flow matching, with `trig` that of TrigFlow.
    [Karras et al. 2022, app. B.6]
    """
    return scalings(t).c_out ** -2


def tan_gap(t: PerSample, s: PerSample) -> PerSample:
    """The weight 1 + tan((1 − (t − s))·π/2.5) of a flow map from t to s, 1 to 4.1.   [Sun et al. 2025, RCGM]"""
    return 1 + jnp.tan((1 - (t - s)) * jnp.pi / 2.5)


def sigmoid(
    t: PerSample, s: PerSample, *, path: Path, sigma_data: float, shift: Real = 5.0, power: NotNegative = 1.0
) -> PerSample:
    """The weight −½·λ'(t)·sigmoid(shift − λ(t))·a^power/(a² + b²), λ = ln(a²/b²), with b in units of σ_d.

    [Zhou et al. 2025, IMM; Kingma & Gao 2023]
    """
    a, b = path.a(t), path.b(t) / sigma_data
    # −λ'(t), positive: the signal-to-noise ratio falls with t
    falls = 2 * (path.db(t) / path.b(t) - path.da(t) / a)
    return falls / 2 * jax.nn.sigmoid(shift - 2 * jnp.log(a / b)) * a**power / (a**2 + b**2)


def inverse_time_gap(t: PerSample, s: PerSample, *, c: Positive = 1.0) -> PerSample:
    """The weight 1/(t − s + c) of a flow map from t to s < t, and 1 where s = t.   [Wang et al. 2025, TiM]"""
    return jnp.where(s < t, 1 / (t - s + c), 1.0)


def inverse_tan_gap(t: PerSample, s: PerSample, *, c: Positive = 1.0) -> PerSample:
    """The weight (tan t − tan s + c)^−½ of a flow map from t to s < t, and 1 where s = t, for times below π/2.

    c is the data's std in the paper, where it is 1.   [Wang et al. 2025, TiM]
    """
    return jnp.where(s < t, (jnp.tan(t) - jnp.tan(s) + c) ** -0.5, 1.0)


def towards_noise(t: PerSample, s: PerSample, *, shift: Positive = 1.0) -> PerSample:
    """The weight t·√(1 − t) over its mean for t `uniform` with this shift, for the linear path.

    [AnyFlow, the released code]
    """
    # the midpoint rule: the mean is a number of the program, not of the batch
    times = shifted((np.arange(1000) + 0.5) / 1000, shift)
    return t * jnp.sqrt(1 - t) / float(np.mean(times * np.sqrt(1 - times)))
