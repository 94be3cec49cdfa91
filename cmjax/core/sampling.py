"""Samplers: consistency sampling in one or several evaluations, and sampling by the probability-flow ODE."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.core.paths import Path, check_is_path, ve
from cmjax.core.typing import Keys, Noises, Samples, Shape, Solver, TimeGrid
from cmjax.system.mesh import split_as

Start = Samples | Float[np.ndarray, "b *dims"] | None
"""The state to start from; None for noise from the key."""

AddedNoises = Noises | Array | Float[np.ndarray, "k b *dims"] | None
"""The noises to add, in order: an array (k, b, ...), or a function of the traced index from 0; None: from the key."""


def _path_of(flow_map: Any, path: Path | None) -> Path:
    """Gives the path of the call, or the model's; `ve` for a function that has none."""
    known = getattr(flow_map, "path", ve) if path is None else path
    check_is_path(known)
    return known


def _end(flow_map: Any, path: Path) -> float:
    """Gives the last time of the model, where it has one, and of its path."""
    return min(getattr(flow_map, "t_max", np.inf), path.signal_ends)


def forward_scales(path: Path, times: Float[Array, " n"], start: float | None) -> tuple[Array, Array]:
    """Gives the scales kept and added, both (n,), of the forward process: x_t = kept·x_start + added·z at each of
    `times`.

    `start`: its first time. None starts from clean data, even if the path already has some noise at its first time.
    """
    if start is None:
        return path.a(times), path.b(times)
    begin = jnp.full_like(times, start)
    kept = path.a(times) / path.a(begin)
    noise, brought = path.b(times), kept * path.b(begin)
    # this product is exactly 0 at `start`; the difference of squares may be rounded to below 0
    return kept, jnp.sqrt((noise - brought) * (noise + brought))


def gaussian(key: Keys, shape: Shape, index: int | Array = 0) -> Array:
    """Samples the index-th unit Gaussian of `key`, of this shape (b, ...).

    With an array of keys (b,), one for each sample, a sample's noise does not depend on the batch that it is part of.
    """
    key = checks.as_key(key, shape[0])
    if key.ndim == 0:
        # `fold_in`, not `split`: the index is traced in a sampler's scan, and the number of noises need not be known
        return jax.random.normal(jax.random.fold_in(key, index), tuple(shape))
    # flat, since XLA takes twice as long to compile the same numbers in more dimensions
    size = math.prod(shape[1:])
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, index), (size,)))(key).reshape(shape)


def _started(
    key: Keys, shape: Shape, path: Path, first: Array, start: Start, noises: AddedNoises, count: int, inputs: Any
) -> tuple[Samples, Noises]:
    """Gives the state at the first time, and the function index -> noise that is added after it; the index starts at 0.

    count: how many noises a loop adds. inputs: the conditions, over whose devices the samples are split.
    """
    shape = checks.sample_shape(shape)
    key = checks.as_key(key, shape[0])
    # the whole trajectory has the dtype of the times, float32 or wider
    x = path.b(first) * gaussian(key, shape) if start is None else jnp.asarray(start, first.dtype)
    checks.same_shape("start", x.shape, shape, "the samples")
    x = split_as(x, (x, inputs))
    if noises is None:
        # noise 0 of a key made the start
        return x, lambda index: gaussian(key, shape, index + 1)
    if callable(noises):
        return x, noises
    listed = jnp.asarray(noises, x.dtype)

    def at(index: int | Array) -> Array:
        # in a scan the index is traced, and the loop's whole count is asked for
        checks.enough_noises(listed, shape, index + 1 if isinstance(index, int) else count)
        # the last evaluation of some samplers adds none: they ask for one and multiply it by 0
        return listed[jnp.minimum(index, len(listed) - 1)] if len(listed) else jnp.zeros_like(x)

    return x, at


def sample_fn(
    flow_map: Any,
    key: Keys,
    shape: Shape,
    *,
    times: TimeGrid,
    t_min: float | None = None,
    path: Path | None = None,
    clip: bool = False,
    full_noise: bool = False,
    start: Start = None,
    noises: AddedNoises = None,
    **conditions: Any,
) -> Samples:
    """Samples by multistep consistency sampling, x0 ← f(x0 + √(τ² − t_min²)·z, τ).   [Song et al. 2023, alg. 1]

    τ runs through `times`. On another path than `ve`, f takes the state at τ of the forward process from x0 at t_min:
    a_τ/a_ε·x0 + √(b_τ² − (b_ε·a_τ/a_ε)²)·z.

    Args:    flow_map: (x, t, **conditions) -> estimate of the clean data, for example `cmjax.load(workdir)`.
             key: one key, or (b,) keys, one for each sample. shape: (b, ...) of the samples.
             times: noise stds, descending, one evaluation each; the first is T, where sampling starts from T·z.
             t_min: ε, the time at which f is the identity; by default `flow_map.t_min`. path: by default the path of
             `flow_map`, or `ve` where it has none.
             clip: clip every estimate to [-1, 1], as OpenAI's released code does.
             full_noise: treat the estimate as clean data and add all noise, a_τ·x0 + b_τ·z, as ECT's released code and
             latent consistency models do; the noise that the estimate already has at t_min is not subtracted.
             start: the state at times[0], (b, ...); by default b(T)·z. Latent consistency models start from z itself.
             noises: those that are added, in order, one before each evaluation but the first, see `AddedNoises`; by
             default from `key`.
    Returns: samples of `shape`, in [-1, 1] units, clipped only where `clip` is set.
    Raises:  ValueError where `times` do not descend within [t_min, t_max], or `t_min` is neither given nor known;
             where keys, `start` or `noises` are not those of so many samples. Values that are traced are not checked.
    """
    path = _path_of(flow_map, path)
    if t_min is None:
        t_min = getattr(flow_map, "t_min", None)
    if t_min is None:
        raise ValueError("t_min must be given for a flow_map that has no attribute t_min")
    times = checks.descending(times, lowest=t_min, highest=_end(flow_map, path))
    kept, added = forward_scales(path, times, None if full_noise else t_min)
    x, noises = _started(key, shape, path, times[0], start, noises, len(times) - 1, conditions)
    # The state before each evaluation is carried; after the last one nothing is added to the estimate.
    gains = jnp.concatenate([kept[1:], jnp.ones_like(kept[:1])])
    noise_scales = jnp.concatenate([added[1:], jnp.zeros_like(added[:1])])

    def denoise_and_renoise(x, step):
        index, t, gain, noise_scale = step
        x0 = flow_map(x, t, **conditions)
        x0 = jnp.clip(x0, -1, 1) if clip else x0
        return gain * x0 + noise_scale * noises(index), None

    steps = (jnp.arange(len(times)), times, gains, noise_scales)
    return jax.lax.scan(denoise_and_renoise, x, steps)[0]


def sample_chain(
    flow_map: Any,
    key: Keys,
    shape: Shape,
    *,
    times: TimeGrid,
    gamma: float = 0.0,
    path: Path | None = None,
    start: Start = None,
    noises: AddedNoises = None,
    **conditions: Any,
) -> Samples:
    """Samples by γ-sampling, x ← Φ(x, t_n, √(1 − γ²)·t_{n+1}) + γ·t_{n+1}·z.   [Kim et al. 2024, alg. 3]

    γ = 0 chains the flow map from time to time; γ = 1 is multistep consistency sampling with s = 0. On another path
    than `ve`, the noise levels b/a replace the times in this formula.

    Args:   flow_map: Φ(x, t, s, **conditions) -> the state at s of the PF-ODE through x at t.
            key, shape, start, noises: as in `sample_fn`. times: descending; the last (0 or t_min) is the time of
            the samples; one evaluation for each interval.
    Raises: ValueError as `sample_fn`, where there are fewer than two `times`, or gamma lies outside [0, 1].
    """
    path = _path_of(flow_map, path)
    times = checks.descending(times, least=2, highest=_end(flow_map, path))
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    ends = times[1:]
    x, noises = _started(key, shape, path, times[0], start, noises, len(times) - 1, conditions)
    # without new noise the map goes to the end itself, and not to its time by way of a noise level
    reached = path.time_at((1 - gamma**2) ** 0.5 * path.b(ends) / path.a(ends)) if gamma else ends

    def jump(x, step):
        index, t, r, s = step
        # from s to r > s by new noise alone: the state there is scaled as the signal is
        x = path.a(r) / path.a(s) * flow_map(x, t, s, **conditions)
        return (x + gamma * path.b(r) * noises(index) if gamma else x), None

    return jax.lax.scan(jump, x, (jnp.arange(len(times) - 1), times[:-1], ends, reached))[0]


def sample_denoiser(
    denoiser: Any,
    key: Keys,
    shape: Shape,
    *,
    times: TimeGrid,
    path: Path,
    solver: Solver,
    to_zero: bool = True,
    clip: bool = False,
    start: Start = None,
    noises: AddedNoises = None,
    **conditions: Any,
) -> Samples:
    """Samples of a diffusion model: from noise at times[0] along `times`, then to time 0, by a solver of `solvers`.

    Args: denoiser: (x, t, **conditions) -> D(x, t). key, shape, start, noises: as in `sample_fn`.
          times: descending and positive, for example `karras_grid(18, ...)[::-1]`.
          solver: for example `solvers.heun`, or `partial(solvers.churn, s_churn=10.0)`.
          to_zero: False leaves out the last evaluation and gives the state at times[-1].
          clip: clip every estimate of the clean data to [-1, 1], as OpenAI's released code does.
          noises: as in `sample_fn`; solvers of the ODE add none.
    Raises: ValueError as `sample_fn`.
    """
    path = _path_of(denoiser, path)
    # the last time is also evaluated where the solver goes on to zero
    lowest, highest = getattr(denoiser, "t_min", 0.0) if to_zero else 0.0, _end(denoiser, path)
    times = checks.descending(times, lowest=lowest, highest=highest, positive=to_zero)
    x, noises = _started(key, shape, path, times[0], start, noises, len(times) - 1, conditions)

    def denoise(x, t):
        estimate = denoiser(x, t, **conditions)
        return jnp.clip(estimate, -1, 1) if clip else estimate

    return solver(denoise, x, times, noises, path=path, to_zero=to_zero)
