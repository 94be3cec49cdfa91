"""Loss weights λ(t, r) of the student's time t and the target's time r, both (b,), on the `ve` path unless said.

SNR is t⁻², the signal-to-noise ratio of x0 + t·noise for unit-variance data.
"""

import jax.numpy as jnp

from cmjax.core.preconditioning import Preconditioning
from cmjax.core.typing import PerSample


def uniform(t: PerSample, r: PerSample) -> PerSample:
    """1.   [Song et al. 2023, sec. 6]"""
    return jnp.ones_like(t)


def inverse_gap(t: PerSample, r: PerSample) -> PerSample:
    """1/(t − r).   [Song & Dhariwal 2024, sec. 3.1]"""
    return 1 / (t - r)


def snr(t: PerSample, r: PerSample) -> PerSample:
    """t⁻².   [Salimans & Ho 2022, sec. 4]"""
    return t**-2


def snr_plus_one(t: PerSample, r: PerSample) -> PerSample:
    """t⁻² + 1.   [Salimans & Ho 2022, sec. 4]"""
    return t**-2 + 1


def truncated_snr(t: PerSample, r: PerSample) -> PerSample:
    """max(t⁻², 1).   [Salimans & Ho 2022, sec. 4]"""
    return jnp.maximum(t**-2, 1)


def karras(t: PerSample, r: PerSample, *, sigma_data: float) -> PerSample:
    """(t² + σ_d²)/(t·σ_d)² = 1/c_out² of the `edm` preconditioning.   [Karras et al. 2022, table 1]"""
    return t**-2 + sigma_data**-2


def inverse_c_out(t: PerSample, r: PerSample, *, scalings: Preconditioning) -> PerSample:
    """1/c_out²: the squared error of the network's own output, on any path. With `edm` this is `karras`, with `linear`
    flow matching's, with `trig` TrigFlow's.   [Karras et al. 2022, app. B.6]"""
    return scalings(t).c_out ** -2
