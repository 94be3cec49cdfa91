"""Distances between two batches, (b,), one for each sample; and speeds, the limits of distances as points meet."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax.core.paths import flat
from cmjax.core.typing import Distance, PerSample, Samples
from cmjax.ranges import Count, NotNegative, Positive

Speed = Callable[[Samples, Samples], PerSample]
"""(f, df/dt), both (b, ...) -> how fast f changes, (b,): the limit of d(f(t), f(t − h))/h^p, p the distance's power."""


def l1(x: Samples, y: Samples) -> PerSample:
    """Mean absolute difference over a sample's elements, (b,).   [Song et al. 2023, sec. 6]"""
    return jnp.mean(flat(jnp.abs(x - y)), axis=1)


def l2(x: Samples, y: Samples, *, resize: Count | None = None) -> PerSample:
    """Mean squared difference over a sample's elements, (b,).   [Song et al. 2023, sec. 6]

    `resize`: compare images (b, h, w, c) at this height and width, by bilinear interpolation without smoothing; 32 is
    the "l2-32" of OpenAI's released code.
    """
    gap = x - y
    if resize is not None:  # resizing is linear, so one resizing of the difference is enough
        gap = jax.image.resize(gap, (gap.shape[0], resize, resize, gap.shape[3]), "bilinear", antialias=False)
    return jnp.mean(flat(gap**2), axis=1)


def linf(x: Samples, y: Samples) -> PerSample:
    """Largest absolute difference among a sample's elements, (b,).   [Song et al. 2023, released CIFAR-10 code]"""
    gaps = flat(jnp.abs(x - y))
    # selected by index: the derivative of a maximum searches for the equal element, which rounding may hide
    return jnp.take_along_axis(gaps, jnp.argmax(gaps, axis=1, keepdims=True), axis=1)[:, 0]


def pseudo_huber(x: Samples, y: Samples, *, c: NotNegative) -> PerSample:
    """√(‖x − y‖² + c²) − c with the norm over all of a sample's elements, (b,).   [Song & Dhariwal 2024, eq. 8]

    The paper's choice is c = 0.00054·√D for D elements. The gradient is finite everywhere, also at c = 0, x = y.
    """
    squared = jnp.sum(flat((x - y) ** 2), axis=1) + c**2
    # the inner `where` as well: the derivative of √ at 0 is inf, and times the outer one's 0 it would be nan
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0) - c


def huber(x: Samples, y: Samples, *, c: Positive) -> PerSample:
    """The mean over a sample's elements of √(Δ² + c²) − c with Δ = x − y, (b,): nearly `l1` for a small c.

    In `pseudo_huber` the root is of the whole sample's norm.   [Luo et al. 2023, LCM, released code, with c = 0.001]
    """
    squared = flat((x - y) ** 2)
    # √(Δ² + c²) − c, without the cancellation for small Δ
    return jnp.mean(squared / (jnp.sqrt(squared + c**2) + c), axis=1)


def adaptive(x: Samples, y: Samples, *, p: NotNegative, c: NotNegative) -> PerSample:
    """‖x − y‖²/sg(‖x − y‖² + c)^p over a sample's elements, (b,).

    p = 0 is the squared norm; p = 1 weighs all samples alike. The gradient is finite everywhere, also at c = 0, x = y.
    [Geng et al. 2025, MeanFlow, eq. 22]
    """
    squared = jnp.sum(flat((x - y) ** 2), axis=1)
    scale = jax.lax.stop_gradient(squared + c)
    # where x = y and c = 0 the loss is 0: a divisor of 0 would make it nan
    return squared / jnp.where(scale > 0, scale, 1) ** p


def cosine_gap(x: Samples, y: Samples) -> PerSample:
    """The mean over pixels of 1 − cos, the angle's cosine between the channels of x and of y, (b,)."""
    cosine = jnp.sum(_direction(x) * _direction(y), axis=-1)
    return 1 - jnp.mean(cosine.reshape(cosine.shape[0], -1), axis=1)


def _direction(x: Samples) -> Samples:
    """Divides the channels of each pixel by their norm. A pixel of zeros has no direction, and stays."""
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    # of 0 the root's slope is infinite: a network that begins with zeros would have no gradient
    return x / jnp.maximum(jnp.sqrt(jnp.where(squared > 0, squared, 1)), 1e-8)


def directional(x: Samples, y: Samples, *, c: Positive) -> PerSample:
    """e/sg(e + c), e the mean squared difference plus `cosine_gap`: x is held to the direction of y, too.

    All samples count about equally, as with `adaptive` of p = 1.   [Wang et al. 2025, TiM, the released code]
    """
    error = l2(x, y) + cosine_gap(x, y)
    return error / jax.lax.stop_gradient(error + c)


def speed_by(distance: Distance) -> Speed:
    """Makes the speed of a distance that is a power of a norm of x − y: the distance of df/dt from 0.

    Such distances are `l1`, `l2`, `linf`, and `pseudo_huber` with c = 0, which is the norm itself.
    """
    return lambda f, slope: distance(slope, jnp.zeros_like(slope))


def curvature_speed(distance: Distance) -> Speed:
    """Makes the speed vᵀHv/2 of a smooth distance such as LPIPS, with v = df/dt and H the Hessian of d(·, f) at f.

    For l2 it is ‖v‖²/D.   [Song et al. 2023, theorem 3]
    """

    def speed(f, slope):
        def along(step):
            return distance(f + step * slope, f)

        def rate(step):
            return jax.jvp(along, (step,), (jnp.ones_like(step),))[1]

        start = jnp.zeros((), f.dtype)
        # derivatives by one number, twice: H itself is never made
        return jax.jvp(rate, (start,), (jnp.ones_like(start),))[1] / 2

    return speed
