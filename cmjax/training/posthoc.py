"""Power-function averages of any width, made after training from snapshots of a few.

The average of exponent γ after t updates weighs the parameters of time τ by its profile p(τ) = (γ + 1)·τ^γ / t^(γ+1),
0 <= τ <= t, whose shape does not change as t grows: its standard deviation is always the same fraction of t, `std`,
which names the width. Snapshots of other times and widths are combined so that their profiles come nearest to the one
that is wanted. No further network is trained, and nothing but those snapshots is stored.
[Karras et al. 2024, sec. 3 and app. C]
"""

from collections.abc import Sequence

import numpy as np

LARGEST_STD = 12**-0.5
"""The width of the flat average, γ = 0, of all updates alike. A larger one would weigh the first updates most."""


def exponent(std: float) -> float:
    """γ of a width: the largest root of γ³ + 7γ² + (16 − std⁻²)γ + 12 − std⁻².   [Karras et al. 2024, eq. 126]

    Args:   std: of the profile, as a fraction of the training so far; 0.05 and 0.1 are what is usually tracked.
    Raises: ValueError where it is not in (0, 12^(−1/2)].
    """
    if not 0 < std <= LARGEST_STD:
        raise ValueError(f"std must lie above 0 and be at most {LARGEST_STD:.4f}, of the flat average; got {std}")
    return float(np.roots([1.0, 7.0, 16 - std**-2, 12 - std**-2]).real.max())


def coefficients(steps: Sequence[float], stds: Sequence[float], *, step: float, std: float) -> tuple[np.ndarray, float]:
    """Combines snapshots of averages into the average of another width or time, by least squares over profiles.

    [Karras et al. 2024, app. C.3, algorithm 3]

    Args:    steps, stds: of the n snapshots, updates done (>= 1) and the width tracked; any order.
             step, std: of the average that is wanted.
    Returns: (n,) float64 weights that sum to 1, and the residual: the norm of the difference between the profile wanted
             and their combination, as a fraction of the former's; 0 where it is met exactly.
    Raises:  ValueError for a width or step out of range.
    """
    times, wanted_time = np.asarray(steps, np.float64), np.float64(step)
    if len(times) != len(stds) or not len(times) or times.min() < 1 or wanted_time < 1:
        raise ValueError(f"steps and stds must be as many, and steps at least 1, got {steps}, {stds} and {step}")
    exponents, wanted = np.array([exponent(width) for width in stds]), np.float64(exponent(std))
    norms, norm = (np.sqrt(_product(t, g, t, g)) for t, g in ((times, exponents), (wanted_time, wanted)))
    # profiles scaled to norm 1, as late ones are low and long
    gram = _product(times[:, None], exponents[:, None], times, exponents) / np.outer(norms, norms)
    # (n, n) above and (n,) here: scalar products of the snapshots' profiles with one another, and with the one wanted
    overlap = _product(times, exponents, wanted_time, wanted) / (norms * norm)
    # least squares without the constraint Σ weights = 1, which follows by a division
    # not solve: a width that is tracked twice makes the matrix singular
    weights = np.linalg.lstsq(gram, overlap)[0] * norm / norms
    weights /= weights.sum()
    # ‖p* − Σ w·p‖² multiplied out, in units of ‖p*‖²; rounding may take it below 0
    scaled = weights * norms / norm
    return weights, float(np.sqrt(max(scaled @ gram @ scaled - 2 * scaled @ overlap + 1, 0.0)))


def _product(time_a, exponent_a, time_b, exponent_b):
    """∫ p_a(τ) p_b(τ) dτ, elementwise.   [Karras et al. 2024, eq. 151]"""
    later = np.maximum(time_a, time_b)
    # of the profile that goes on beyond the other's end
    power = np.where(time_a > time_b, exponent_a, exponent_b)
    fraction = (np.minimum(time_a, time_b) / later) ** power
    return (exponent_a + 1) * (exponent_b + 1) / (exponent_a + exponent_b + 1) * fraction / later
