"""Zero-shot editing: a consistency model completes images that are known only in part.

An invertible linear map A takes an image to coordinates. Some are known: pixels, the luma of each pixel, or the mean
of each patch.
All edits use the same loop (`edit`); they differ in the map.   [Song et al. 2023, alg. 4 and app. D]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.core.paths import Path, as_time, ve
from cmjax.core.sampling import forward_scales, gaussian
from cmjax.core.typing import Keys, PerSample, Samples, Time, TimeGrid
from cmjax.system.mesh import with_auto_axes

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in a pixel's grey value."""


@dataclass(frozen=True)
class Operator:
    """Holds an invertible linear map of images, and which of its coordinates are known.

    forward: images (b, h, w, c) -> coordinates (b, ...). inverse: its exact inverse.
    known: 1 where a coordinate is known and 0 where it is to be completed; its shape broadcasts with the coordinates.
    """

    forward: Callable[[Samples], Array]
    inverse: Callable[[Array], Samples]
    known: Array

    def degrade(self, images: Samples) -> Samples:
        """Sets the unknown coordinates of images to zero."""
        return self.inverse(self.known * self.forward(images))

    def combine(self, known: Samples, unknown: Samples) -> Samples:
        """Joins the known coordinates of the images `known` and the unknown coordinates of `unknown`."""
        return self.inverse(self.known * self.forward(known) + (1 - self.known) * self.forward(unknown))


def edit(
    flow_map: Any,
    key: Keys,
    images: Samples,
    operator: Operator,
    *,
    times: TimeGrid,
    start: Samples | None = None,
    t_min: float | None = None,
    clip: bool = False,
    **conditions: Any,
) -> Samples:
    """Completes the unknown coordinates of images:   [Song et al. 2023, alg. 4]

        x ← A⁻¹[known·A images];  for each t: x ← f(x + √(t² − t_min²)·z, t), x ← combine(images, x)

    where the first t adds t·z. On another path than `ve`, its forward process to t replaces the added noise.

    Args:    flow_map: (x, t, **conditions) -> estimate of the clean image. key: one, or (b,), one for each image.
             images: (b, h, w, c); only their known coordinates are used. times: noise stds that descend; one may
             be there several times.
             start: replaces the degraded images at the start. It may be a guess of the result, for times that begin
             low (strokes, blending), or zeros: then noise alone is the start, as in OpenAI's released code.
             t_min: by default `flow_map.t_min`. clip: clip every estimate to [-1, 1], as the released code does.
    Returns: (b, h, w, c) with the known coordinates of `images`: pixels exactly, others up to rounding.
    Raises:  ValueError where `times` do not descend within [t_min, t_max], or `t_min` is neither given nor known.
    """
    path = getattr(flow_map, "path", ve)
    checks.floating("images", images)
    key = checks.as_key(key, images.shape[0])
    t_min = getattr(flow_map, "t_min", None) if t_min is None else t_min
    if t_min is None:
        raise ValueError("t_min must be given for a flow_map that has no attribute t_min")

    def complete(x, step):
        return edit_step(flow_map, key, images, operator, x, step, clip=clip, **conditions), None

    x = operator.degrade(images) if start is None else start
    checks.same_shape("start", x.shape, images.shape, "the images")
    highest = min(getattr(flow_map, "t_max", np.inf), path.signal_ends)
    times = checks.descending(times, lowest=t_min, highest=highest, may_stay=True)
    steps = edit_steps(path, as_time(times, images), t_min)
    # the state has the dtype of the times, float32 or wider: bfloat16 would lose the little noise of late steps
    return jax.lax.scan(complete, jnp.asarray(x, steps.t.dtype), steps)[0].astype(images.dtype)


class EditStep(NamedTuple):
    """Holds one evaluation of `edit`, or n of them, (n,). x becomes kept·x + added·z before it; z is of (key,
    index)."""

    index: Array
    t: Array
    kept: Array
    added: Array


def edit_steps(path: Path, times: TimeGrid, t_min: float) -> EditStep:
    """Lists the evaluations of `edit` along the descending `times` (n,).   [Song et al. 2023, alg. 4]

    Raises: ValueError where `times` do not descend, or end below t_min.
    """
    levels = checks.descending(times, lowest=t_min, highest=path.signal_ends, may_stay=True)
    times = levels.astype(times.dtype) if isinstance(times, jax.Array) else levels  # in float64 too, as the images are
    kept, added = forward_scales(path, times, t_min)
    first = times[0]  # here the start counts as clean data
    kept, added = kept.at[0].set(path.a(first)), added.at[0].set(path.b(first))
    return EditStep(jnp.arange(len(times)), times, kept, added)


def edit_step(
    flow_map: Any,
    key: Keys,
    images: Samples,
    operator: Operator,
    x: Samples,
    step: EditStep,
    *,
    clip: bool = False,
    **conditions: Any,
) -> Samples:
    """x (b, h, w, c) after one evaluation of `edit`, whose arguments the others are. step: a single one."""
    index, t, kept, added = step
    x = flow_map(kept * x + added * gaussian(key, x.shape, index), t, **conditions)
    return operator.combine(images, jnp.clip(x, -1, 1) if clip else x).astype(x.dtype)


def inpainting(known: Float[Array, "*b h w c"]) -> Operator:
    """Makes the operator that keeps the pixels where `known` is 1, so that the others are generated. A is the
    identity."""
    return Operator(lambda x: x, lambda y: y, known)


def mask_of_latents(mask: Any, factor: int) -> Array:
    """Gives the mask (b, h, w, 1) of latents from that of pixels, (b, h·factor, w·factor, 1).

    It is 1 where the mask is 1 at all pixels of the latent.
    """
    b, height, width, _ = mask.shape
    return jnp.min(jnp.reshape(mask, (b, height // factor, factor, width // factor, factor, 1)), axis=(2, 4))


def colorization() -> Operator:
    """Makes the operator that keeps the luma of each pixel, so that its color is generated.

    A multiplies the channels of each pixel by an orthogonal Q whose first column is ∝ LUMA.
    """
    q = orthogonal(np.array(LUMA))
    # the first of the turned channels is the luma, up to a factor
    return _channels(q, np.array([1.0, 0, 0]))


def super_resolution(patch: int) -> Operator:
    """Makes the operator that keeps the mean of each patch×patch square in each channel, so that the detail is
    generated.

    A multiplies the patch² pixels of a square by an orthogonal Q whose first column is 1/patch.
    Raises: ValueError where patch < 1. The operator raises it where patch does not divide the image.
    """
    if patch < 1:
        raise ValueError(f"patch={patch} must be at least 1")
    q = orthogonal(np.ones(patch**2))
    turn = _channels(q, np.eye(patch**2)[0])

    def forward(x):
        b, h, w, c = x.shape
        if h % patch or w % patch:
            raise ValueError(f"patch={patch} does not divide the image's {h}x{w} pixels")
        # (b, rows, columns, c, patch, patch): the pixels of a square come last
        squares = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 5, 2, 4)
        return turn.forward(squares.reshape(b, h // patch, w // patch, c, patch**2))

    def inverse(y):
        b, rows, columns, c, _ = y.shape
        squares = turn.inverse(y).reshape(b, rows, columns, c, patch, patch).transpose(0, 1, 4, 2, 5, 3)
        return squares.reshape(b, rows * patch, columns * patch, c)

    # [None]: these coordinates are (b, rows, columns, c, patch²), with one axis more than `_channels` expects
    return Operator(with_auto_axes(forward), with_auto_axes(inverse), turn.known[None])


def nothing_known() -> Operator:
    """Makes the operator that keeps no pixel: `edit` makes all from `start`. Stroke-guided editing.   [Meng et al.
    2022]"""
    return Operator(lambda x: x, lambda y: y, jnp.zeros((1, 1, 1, 1)))


def orthogonal(first: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """Makes an orthogonal matrix, float64, whose first column is `first` over its norm: a Householder reflection."""
    v = first / np.linalg.norm(first)
    v = v + np.eye(len(v))[0]  # 2vvᵀ/(vᵀv) − I maps e₁ to the column; no cancellation if its first entry is >= 0
    return 2 * np.outer(v, v) / (v @ v) - np.eye(len(v))


def invert(
    flow_map: Any,
    images: Samples,
    latents: Samples,
    *,
    time: Time,
    steps: int,
    learning_rate: float | Array,
    **conditions: Any,
) -> tuple[Samples, PerSample]:
    """Finds latents z with f(T·z, T) near the images, by steps of Adam on the squared error.   [Kingma & Ba 2015]

    For unlikely images z could get any norm, but the flow map was trained, and `slerp` has a meaning, near typical
    norms only: after every step z is scaled by `typical`. Adam's second moment is one number for each sample: steps
    that are scaled element by element, and then back to a sphere, do not come to rest at its nearest point.

    Args:    flow_map: (x, t, **conditions) -> estimate of the clean image. images: (b, ...). latents: (b, ...), the
             starting point, for example Gaussian. time: T. learning_rate: in units of a latent's std.
    Returns: the latents (b, ...), and the root of the mean squared error of each image (b,).
    """
    axes, path = tuple(range(1, images.ndim)), getattr(flow_map, "path", ve)

    def squares(z):
        return jnp.square(flow_map(path.b(as_time(time, z)) * z, time, **conditions) - images)

    def descend(state, count):
        z, mean, square = state
        # samples do not depend on each other: the sum's gradient has each one's own
        slope = jax.grad(lambda z: jnp.sum(squares(z)))(z)
        mean = 0.9 * mean + 0.1 * slope
        # (b, 1, …): one second moment for each sample
        square = 0.99 * square + 0.01 * jnp.mean(slope**2, axes, keepdims=True)
        # both moments start at 0: Adam divides by 1 − rate^count to make up for it
        change = mean / (1 - 0.9**count) / (jnp.sqrt(square / (1 - 0.99**count)) + 1e-8)
        return (typical(z - learning_rate * change), mean, square), None

    zeros = jnp.zeros_like(latents)
    start = (latents, zeros, jnp.mean(zeros, axes, keepdims=True))
    latents = jax.lax.scan(descend, start, jnp.arange(1.0, steps + 1))[0][0]
    return latents, jnp.sqrt(jnp.mean(squares(latents), axes))


def typical(latents: Samples) -> Samples:
    """Scales latents (b, ...) of d elements as little as needed to bring ‖z‖² into d ± 3√(2d), as for a Gaussian."""
    d = math.prod(latents.shape[1:])
    square = jnp.sum(latents**2, tuple(range(1, latents.ndim)), keepdims=True)
    spread = 3 * (2 * d) ** 0.5
    return latents * jnp.sqrt(jnp.clip(square, max(d - spread, 0.0), d + spread) / square)


def slerp(a: Samples, b: Samples, fraction: Time) -> Samples:
    """Spherical interpolation of Gaussian latents, sample by sample: a at fraction 0, b at 1, unit variance between.

    sin((1 − s)ψ)/sin ψ·a + sin(sψ)/sin ψ·b with the angle ψ between a and b.   [Song et al. 2023, app. D]
    """
    axes = tuple(range(1, a.ndim))
    cosine = jnp.sum(a * b, axes, keepdims=True) / jnp.sqrt(
        jnp.sum(a**2, axes, keepdims=True) * jnp.sum(b**2, axes, keepdims=True)
    )
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    fraction = jnp.reshape(fraction, (-1, *(1,) * (a.ndim - 1)))
    # Where the angle is 0, both weights take their limits.
    apart = jnp.sin(angle) > 1e-6
    safe = jnp.where(apart, angle, 1.0)
    of_a = jnp.where(apart, jnp.sin((1 - fraction) * safe) / jnp.sin(safe), 1 - fraction)
    of_b = jnp.where(apart, jnp.sin(fraction * safe) / jnp.sin(safe), fraction)
    return of_a * a + of_b * b


def _channels(q: np.ndarray, known: np.ndarray) -> Operator:
    """Makes the operator that multiplies the last axis by Q."""
    # Q is orthogonal, so its transpose inverts it; m=m binds each matrix, where both functions would use the last one
    forward, inverse = (lambda x, m=m: jnp.einsum("...i,ij->...j", x, jnp.asarray(m, x.dtype)) for m in (q, q.T))
    return Operator(forward, inverse, jnp.asarray(known)[None, None, None])
