"""Flow maps that are distilled from a diffusion teacher: AYF, CTM, and CMT, whose inputs are its trajectories."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative
from cmjax.core.distances import l2
from cmjax.core.losses.flow_maps import mean_velocity, on_line, on_path, teacher_velocity, velocity_at
from cmjax.core.losses.moments import check_groups
from cmjax.core.losses.tangents import Normalize
from cmjax.core.model import Model, check_path
from cmjax.core.paths import per_sample
from cmjax.core.typing import (
    BoundDenoiser,
    Distance,
    OdeStep,
    Params,
    PerSample,
    PRNGKey,
    Samples,
    Trajectory,
    Weight,
)
from cmjax.ranges import Count
from cmjax.system.mesh import split_as, whole, with_auto_axes


def ayf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    warmup: Array | float = 1.0,
    normalize: Normalize,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """AYF-EMD: ‖u_θ − sg(u_θ − n(g))‖²/D with the tangent g = u_θ − v + warmup·(t − s)·du_θ/dt, v the teacher's.

    n normalises the tangent, by `unit_norm` in the paper. `warmup`: its `tangents.ramp` at this step. Conditions of the
    batch, such as the scale `guidance`, are inputs of student and teacher alike; an `autoguided` teacher takes it.
    [Sabour et al. 2025, align your flow, eq. 8 and alg. 1]
    """
    t, s, x_t, _ = on_line(model, batch)
    v = teacher_velocity(teacher, model, batch, x_t)
    u, du_dt = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    tangent = u - v + warmup * per_sample(t - s, v) * du_dt
    return l2(u, jax.lax.stop_gradient(u - normalize(tangent)))


def ctm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    teacher: BoundDenoiser,
    ode_step: OdeStep,
    grid: Float64[np.ndarray, " n"],
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """CTM without its GAN: d(Φ⁻(Φ_θ(x_t, t, s), s, ε), Φ⁻(sg Φ_θ(x_r, r, s), s, ε)), compared at the lowest time ε.

    The teacher's ODE moves x_t to x_r along the points of the `grid` (n,), ascending, whose first is ε; all samples lie
    the same number of points apart. Φ⁻ has the `target_params`. Where s = t the loss is that of a denoiser,
    λ(t)·‖D_θ(x_t, t) − x0‖²/D. Its times: `skipping_grid_pairs`.   [Kim et al. 2024, CTM, eq. 9 to 11 and alg. 1]
    """
    check_path(model, teacher)
    t, s, x_t, _ = on_path(model, batch)
    r, held = batch.times.target, params if target_params is None else target_params
    points = jnp.asarray(grid, t.dtype)
    least = jnp.full_like(t, grid[0])

    def flow_map(params: Params) -> Callable[..., Samples]:
        return lambda x, t, s: model(params, x, t, s, key=key, **batch.conditions)

    def velocity(x, t):
        return model.path.velocity(x, teacher(x, t, **batch.conditions), t)

    def step(i, x):
        return ode_step(velocity, x, _at_places(points, place - i), _at_places(points, place - i - 1))

    place = _places_in(points, t)
    # the loop has a traced length and so no reverse mode; no parameter of the student enters it
    x_r = jax.lax.fori_loop(0, jnp.max(place - _places_in(points, r)), step, x_t)
    estimate = flow_map(held)(flow_map(params)(x_t, t, s), s, least)
    target = flow_map(held)(jax.lax.stop_gradient(flow_map(params)(x_r, r, s)), s, least)
    denoised = model.path.denoised(x_t, velocity_at(model, params, key, x_t, t, batch.conditions), t)
    error = weight(t, jnp.zeros_like(t)) * l2(denoised, batch.x0)
    return jnp.where(s < t, distance(estimate, jax.lax.stop_gradient(target)), error)


def cmt(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    trajectory: Trajectory,
    grid: Float64[np.ndarray, " n"],
    distance: Distance,
) -> PerSample:
    """CMT: d(f_θ(x_t, t), x_ε), where x_t and x_ε lie on one trajectory of the teacher.   [Hu et al. 2025, CMT]

    There is a trajectory for every n − 1 samples, as many as it has states above its end: they follow one another, and
    have the states' times. It starts from the first one's data and noise at the last time of the `grid`, with its
    conditions, and goes down to the first time ε. Its times: `map_pairs.all_of`.
    Raises: ValueError where the batch does not consist of such groups, or its size is symbolic.
    """
    at, conditions = _on_trajectories(model, batch, teacher, trajectory, grid, len(grid) - 1)
    t = batch.times.t
    estimate = model(params, at(t), t, key=key, **conditions)
    return distance(estimate, at(jnp.full_like(t, grid[0])))


def cmt_map(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    trajectory: Trajectory,
    grid: Float64[np.ndarray, " n"],
    group: Count,
    distance: Distance,
) -> PerSample:
    """CMT of flow maps: d(u_θ(x_t, t, s), (x_t − x_s)/(t − s)), where both states lie on one trajectory of the teacher.

    There is a trajectory for every `group` of samples that follow one another, as in `cmt`; t and s are any two points
    of the `grid`. Its times: `map_pairs.two_of`.   [Hu et al. 2025, CMT; MF-RAE with the times that its states have]
    Raises: ValueError as `cmt`, and where the path is not linear.
    """
    t, s, *_ = on_line(model, batch)
    at, conditions = _on_trajectories(model, batch, teacher, trajectory, grid, group)
    x_t, x_s = at(t), at(s)
    u = model.output(params, x_t, t, s, key=key, **conditions)
    return distance(u, (x_t - x_s) / per_sample(t - s, x_t))


def _on_trajectories(
    model: Model, batch: Batch, teacher: BoundDenoiser, trajectory: Trajectory, grid: np.ndarray, group: int
) -> tuple[Callable[[PerSample], Samples], dict[str, Array]]:
    """The state of each sample's trajectory at a time of the grid, a function of the times, and its conditions."""
    check_path(model, teacher)
    check_groups(batch.x0.shape[0], group)

    def first(value: Array) -> Array:
        # gathered first: every group-th sample of a split axis would lie unevenly over the devices
        return split_as(whole(value)[::group], batch.x0)

    conditions = {name: first(value) for name, value in batch.conditions.items()}
    start = model.path.add_noise(first(batch.x0), first(batch.noise), grid[-1])
    states = trajectory(lambda x, t: teacher(x, t, **conditions), start, grid[::-1])
    # (n, g, ...) to (g, n, ...): groups first, from the last time down to the first
    states = jax.lax.stop_gradient(whole(jnp.moveaxis(states, 0, 1)))

    def at(times: PerSample) -> Samples:
        # `states` begin with the last time of the grid
        place = len(grid) - 1 - _places_in(jnp.asarray(grid, times.dtype), times)
        return _chosen(place, states)

    spread = {name: split_as(jnp.repeat(whole(value), group, axis=0), batch.x0) for name, value in conditions.items()}
    return at, spread


@with_auto_axes
def _chosen(place: Int[Array, " b"], states: Float[Array, "g n *dims"]) -> Samples:
    """The state (b, ...) at each place (b,) of the trajectory of its group."""
    # (g, group, 1, …), to take from (g, n, ...) along the axis of states
    by_group = place.reshape(states.shape[0], -1, *(1,) * (states.ndim - 2))
    chosen = jnp.take_along_axis(states, by_group, axis=1)
    return chosen.reshape(place.shape[0], *states.shape[2:])


@partial(with_auto_axes, rows_from=1)
def _places_in(grid: Array, t: PerSample) -> Array:
    """Finds the place of each time in the grid, which is ascending and has it up to rounding."""
    return jnp.searchsorted(grid, (1 - 1e-6) * t)


@partial(with_auto_axes, rows_from=1)
def _at_places(grid: Array, place: Array) -> PerSample:
    # samples of the denoiser's loss have no place in the grid and may step below it; their x_r is not used
    return grid[jnp.maximum(place, 0)]
