"""From noise to samples: consistency sampling in one or several evaluations, and the probability-flow ODE."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.core.paths import Path
from cmjax.core.solvers import solve
from cmjax.core.typing import Denoiser, Keys, OdeStep, Params, Samples, Time

Times = Sequence[float] | Float[Array, " n"] | Float[np.ndarray, " n"]
"""Noise stds from the largest down: numbers, or a grid reversed."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["denoiser", "shape", "t_min", "t_max", "kind"],
)
@dataclass(frozen=True)
class FlowMap:
    """A trained network bound to its parameters: `flow_map(x, t)` estimates the clean data.

    f(x, t) of a consistency model (`kind == "consistency"`), D(x, t) of a diffusion teacher (`kind == "denoiser"`).
    A pytree whose leaves are the parameters, so it may be closed over or passed through `jax.jit` as an argument.
    `shape` is that of one sample, (h, w, c); times lie in [t_min, t_max].
    """

    params: Params
    denoiser: Denoiser = field(repr=False)
    shape: tuple[int, ...]
    t_min: float
    t_max: float
    kind: str

    def __call__(self, x: Array, t: Time, **conditions: Any) -> Array:
        """x (b, h, w, c), t a scalar or (b,), `label` (b,) where the network has classes -> (b, h, w, c)."""
        return self.denoiser(self.params, x, t, **conditions)


def gaussian(key: Keys, shape: Sequence[int], index: int | Array = 0) -> Array:
    """The index-th unit Gaussian of `key`, of the given shape (b, ...).

    With an array of keys (b,), one for each sample, a sample's noise does not depend on the batch it is drawn in.
    """
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, index), tuple(shape))
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, index), tuple(shape[1:])))(key)


def sample_fn(
    flow_map: Any,
    key: Keys,
    shape: Sequence[int],
    *,
    times: Times,
    t_min: float | None = None,
    clip: bool = False,
    **conditions: Any,
) -> Samples:
    """Multistep consistency sampling, x0 ← f(x0 + √(τ² − t_min²)·z, τ) for each τ.   [Song et al. 2023, alg. 1]

    Args:    flow_map: (x, t, **conditions) -> estimate of the clean data, for example `cmjax.load(workdir)`.
             key: one key, or (b,) keys, one for each sample. shape: (b, ...) of the samples.
             times: noise stds, descending, one evaluation each; the first is T and starts from T·z.
             t_min: ε, the time at which f is the identity; by default `flow_map.t_min`.
             clip: clip every estimate to [-1, 1], as the released code does.
    Returns: samples of `shape`, in [-1, 1] units but not clipped unless asked.
    Raises:  ValueError where `times` is empty, or `t_min` is neither given nor known.
    """
    if t_min is None:
        t_min = getattr(flow_map, "t_min", None)
    if t_min is None:
        raise ValueError("t_min must be given for a flow_map that has no attribute t_min")
    times = jnp.asarray(times, float)
    if times.ndim != 1 or not len(times):
        raise ValueError(f"times must be a sequence of at least one noise std, got shape {times.shape}")
    # as a product, exactly 0 at τ = t_min; the difference of squares may round below 0
    noise_scales = jnp.concatenate([times[:1], jnp.sqrt((times[1:] - t_min) * (times[1:] + t_min))])

    def renoise_and_denoise(x0, step):
        index, t, noise_scale = step
        x0 = flow_map(x0 + noise_scale * gaussian(key, shape, index), t, **conditions)
        return (jnp.clip(x0, -1, 1) if clip else x0), None

    start = jnp.zeros(tuple(shape), times.dtype)
    return jax.lax.scan(renoise_and_denoise, start, (jnp.arange(len(times)), times, noise_scales))[0]


def sample_ode(
    denoiser: Any,
    key: Keys,
    shape: Sequence[int],
    *,
    times: Times,
    path: Path,
    ode_step: OdeStep,
    **conditions: Any,
) -> Samples:
    """The probability-flow ODE from noise at times[0] down to times[-1], then one denoising evaluation, which is the
    Euler step to time 0.   [Karras et al. 2022, alg. 1]

    Args: denoiser: (x, t, **conditions) -> D(x, t). times: descending, for example `karras_grid(18, ...)[::-1]`.
    Returns: samples of `shape`; with `heun_step` and N times, after 2N − 1 evaluations.
    """
    times = jnp.asarray(times, float)

    def velocity(x, t):
        return path.velocity(x, denoiser(x, t, **conditions), t)

    x = path.add_noise(jnp.zeros(tuple(shape), times.dtype), gaussian(key, shape), times[0])
    return denoiser(solve(velocity, x, times, ode_step=ode_step), times[-1], **conditions)
